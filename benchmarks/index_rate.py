"""How fast folders are indexed, how fast they are looked at again, and in how much memory.

    python benchmarks/index_rate.py [--headers 20000] [--files 1000000] [--workers N] [--json FILE]

1. Rate. CT slices with the elements that scanners write (90, private ones and sequences among them) are
   generated in a temporary folder. A bare loop in one process, `pydicom.dcmread(path,
   stop_before_pixels=True)`, reads them all; then `index.update` indexes them from nothing: walking,
   starting the readers, writing SQLite and grouping the slices into volumes included. Both read what
   the system holds in memory, three times in turn; the medians are compared. So is the processor time
   that a header takes, all processes together, which says the same where others use the machine too.
2. A second look at 100,000 unchanged files, and
3. the memory of the service's process (VmHWM) while it indexes a million: here the folders are real,
   names of few hard-linked files, and the headers are made up from the names by the readers
   (`tests/client_app/imaging/fake_reader.py`); all else is as ever.

Readers are processes of their own: their memory is bounded each, and not counted.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT))

import pydicom  # noqa: E402
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian  # noqa: E402

from client_app.imaging import readers  # noqa: E402
from client_app.imaging.index import update  # noqa: E402
from client_app.site import Data  # noqa: E402
from tests.client_app.imaging import fake_reader  # noqa: E402

KEY = bytes(range(32))
SLICES = 100  # a series
REPEATS = 3
SECOND_LOOK = 100_000


def write_headers(root: Path, files: int) -> None:
    """CT series of 100 slices of 32 × 32 pixels. What differs is replaced at equal length."""
    template = _slice()
    for number in range(files):
        series, z = divmod(number, SLICES)
        content = template
        for old, new in (
            (b"SERIES0000", b"%010d" % (1_000_000_000 + series)),
            (b"SLICES0000", b"%010d" % (1_000_000_000 + number)),
            (b"PERSON0000", b"%010d" % (series // 3)),
            (b"ZZZZZZ", b"%06.1f" % (z * 2.5)),
        ):
            content = content.replace(old, new)
        path = root / f"{series:05d}/IM{z:04d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def bare_loop(root: Path) -> dict[str, float]:
    """Seconds to read all headers in one process, on the clock and of the processor."""
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    began, used = time.perf_counter(), processor_time()
    for path in paths:
        pydicom.dcmread(path, stop_before_pixels=True)
    return {"seconds": time.perf_counter() - began, "processor": processor_time() - used}


def processor_time() -> float:
    """Seconds that this process and its ended children have computed."""
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


def index(root: Path, state: Path, workers: int | None) -> dict[str, float]:
    began, used = time.perf_counter(), processor_time()
    with update(Data(root=root, layout="dicom"), state=state, key=KEY, workers=workers) as found:
        seconds, processor = time.perf_counter() - began, processor_time() - used
        volumes = sum(1 for _ in found.images())
        left = sum(1 for _ in found.set_aside())
        return {
            "seconds": seconds,
            "processor": processor,
            "read": found.read,
            "volumes": volumes,
            "set_aside": left,
        }


def index_generated(root: Path, state: Path, workers: int | None) -> dict[str, float]:
    """A first and a second look, headers made up from names."""
    readers.READER = fake_reader.GENERATING
    first, second = index(root, state, workers), index(root, state, workers)
    status = Path("/proc/self/status").read_text()
    (peak,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return {
        "first_seconds": first["seconds"],
        "second_seconds": second["seconds"],
        "second_read": second["read"],
        "volumes": first["volumes"],
        "peak_bytes": int(peak) * 1024,
        "index_bytes": (state / "index.sqlite").stat().st_size,
    }


def in_a_process(function: Callable[..., Any], *arguments: object) -> Any:
    """In a fresh interpreter, so that nothing is warm there and its memory is its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_answer, args=(theirs, function, arguments))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    finally:
        process.join()


def _answer(pipe: Connection, function: Callable[..., Any], arguments: tuple[object, ...]) -> None:
    pipe.send(function(*arguments))


def _slice() -> bytes:
    """A CT slice as bytes with placeholders, 90 elements at its top."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = CTImageStorage
    data.SOPInstanceUID = "1.2.826.0.1.3680043.8.498.SLICES0000"
    data.StudyInstanceUID = data.FrameOfReferenceUID = "1.2.826.0.1.3680043.8.498.1.SERIES0000"
    data.SeriesInstanceUID = "1.2.826.0.1.3680043.8.498.2.SERIES0000"
    data.PatientID, data.PatientName = "PERSON0000", "Phantom^Person"
    data.PatientSex, data.PatientAge, data.PatientBirthDate = "F", "061Y", "19600101"
    data.Modality, data.Manufacturer = "CT", "SIEMENS"
    data.ManufacturerModelName, data.SoftwareVersions = "SOMATOM Definition AS", "syngo CT 2012B"
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 SPI"]
    for name in ("Study", "Series", "Acquisition", "Content"):
        setattr(data, f"{name}Date", "20210304")
        setattr(data, f"{name}Time", "101112.345000")
    data.StudyDescription, data.SeriesDescription = "Thorax", "Thorax 2.5 B30f"
    data.AccessionNumber, data.StudyID, data.ReferringPhysicianName = "1", "1", ""
    data.InstitutionName, data.StationName, data.ProtocolName = "Phantom", "CT1", "Thorax"
    data.KVP, data.XRayTubeCurrent, data.ExposureTime, data.Exposure = "120", "200", "500", "100"
    data.SliceThickness, data.ConvolutionKernel, data.GantryDetectorTilt = "2.5", "B30f", "0"
    data.ReconstructionDiameter, data.DataCollectionDiameter = "350", "500"
    data.DistanceSourceToDetector, data.DistanceSourceToPatient = "1085.6", "595"
    data.TableHeight, data.RotationDirection, data.FilterType = "150", "CW", "0"
    data.GeneratorPower, data.FocalSpots, data.PatientPosition = "48", "1.2", "HFS"
    data.SeriesNumber, data.AcquisitionNumber, data.InstanceNumber = "2", "1", "1"
    data.ImagePositionPatient = ["-160.0", "-160.0", "0.0"]
    data.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    data.SliceLocation, data.PixelSpacing, data.BodyPartExamined = "0", ["0.68", "0.68"], "CHEST"
    data.WindowCenter, data.WindowWidth = ["40", "-600"], ["400", "1200"]
    data.RescaleIntercept, data.RescaleSlope, data.RescaleType = "-1024", "1", "HU"
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows = data.Columns = 32
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "CT", "DCM", "Thorax"
    data.ProcedureCodeSequence, data.RequestAttributesSequence = [code], [code]
    reference = Dataset()
    reference.ReferencedSOPClassUID = CTImageStorage
    reference.ReferencedSOPInstanceUID = "1.2.826.0.1.3680043.8.498.3"
    data.ReferencedImageSequence, data.SourceImageSequence = [reference], [reference]
    block = data.private_block(0x19, "PHANTOM CT", create=True)
    for element in range(24):
        block.add_new(element, "DS", f"{element}.5")
    data.PixelData = bytes(32 * 32 * 2)
    stream = BytesIO()
    data.save_as(stream, enforce_file_format=True)
    place = b"-160.0\\-160.0\\0.0 "
    assert stream.getvalue().count(place) == 1
    return stream.getvalue().replace(place, b"-160\\-160\\ZZZZZZ  ")


def measure_rate(folder: Path, files: int, workers: int | None) -> dict[str, float]:
    root = folder / "headers"
    write_headers(root, files)
    in_a_process(bare_loop, root)  # so that all rounds find the files in memory
    bare, ours = [], []
    for repeat in range(REPEATS):
        bare.append(in_a_process(bare_loop, root))
        ours.append(in_a_process(index, root, folder / f"state{repeat}", workers))
    assert {(o["read"], o["volumes"], o["set_aside"]) for o in ours} == {
        (files, -(-files // SLICES), 0)
    }
    cores = workers or len(os.sched_getaffinity(0))
    figures = {"headers": files, "cores": cores}
    for name, runs in (("bare", bare), ("index", ours)):
        figures[f"{name}_rate"] = files / statistics.median(run["seconds"] for run in runs)
        figures[f"{name}_processor"] = statistics.median(run["processor"] for run in runs) / files
    figures["ratio"] = figures["index_rate"] / (cores * figures["bare_rate"])
    figures["processor_ratio"] = figures["bare_processor"] / figures["index_processor"]
    print(f"{files:,} headers, {cores} readers")
    print(f"  bare loop, one process      {figures['bare_rate']:8,.0f} headers/s", end="")
    print(f"{figures['bare_processor'] * 1e6:8,.0f} µs of processor time a header")
    print(f"  index                       {figures['index_rate']:8,.0f} headers/s", end="")
    print(f"{figures['index_processor'] * 1e6:8,.0f} µs of processor time a header")
    print(f"  index / ({cores} × bare loop)     {figures['ratio']:8.2f}", end="")
    print(f"{figures['processor_ratio']:20.2f} by processor time")
    return figures


def measure_many(folder: Path, files: int, workers: int | None) -> dict[str, float]:
    root = folder / f"{files}"
    for number in range(files):
        fake_reader.generate(root, number)
    found: dict[str, float] = in_a_process(index_generated, root, folder / f"state{files}", workers)
    print(
        f"{files:,} files, made-up headers: first look {found['first_seconds']:.0f} s, second look "
        f"{found['second_seconds']:.2f} s ({found['second_read']:.0f} read), "
        f"{found['peak_bytes'] / 1e6:,.0f} MB at most, index of {found['index_bytes'] / 1e6:,.0f} MB"
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--headers", type=int, default=20_000, help="to measure the rate with")
    parser.add_argument("--files", type=int, default=1_000_000, help="to measure the memory with")
    parser.add_argument("--workers", type=int, help="readers; one a core unless given")
    parser.add_argument("--json", type=Path, help="where to write the figures too")
    arguments = parser.parse_args()
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as name:
        if arguments.headers:
            figures["rate"] = measure_rate(Path(name), arguments.headers, arguments.workers)
        for files in sorted({SECOND_LOOK, arguments.files} - {0}):
            figures[f"{files}"] = measure_many(Path(name), files, arguments.workers)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
