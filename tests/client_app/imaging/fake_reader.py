"""A reader whose files say in JSON what their headers are, and which misbehaves when a name asks it to.

It takes the place of the DICOM reader in a reader's process, so that what the index does with headers,
and with readers that hang, die or eat memory, can be tested apart from DICOM.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from client_app.imaging.header import Header, Kind, Plane
from client_app.imaging.layouts import Layout
from client_app.imaging.record import Record, guarded, record_of

NAME = f"{__name__}:open_reader"
REFUSING = f"{__name__}:open_refusing_reader"
GENERATING = f"{__name__}:open_generating_reader"
_PER_SERIES, _PER_FILE = 200, 50_000


def plane(
    path: Path,
    z: float,
    *,
    patient: str = "P1",
    series: str = "S1",
    instance: str | None = None,
    kind: str = "planes",
    **attributes: str,
) -> None:
    """Write a file that holds one plane, or a radiograph, or a mask that refers to `series`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    said = {"kind": kind, "z": z, "patient": patient, "series": series, "attributes": attributes}
    path.write_text(json.dumps({**said, "instance": instance or str(path)}))


def open_reader(root: Path, layout: Layout, key: bytes) -> Callable[[bytes], Record]:
    def read(path: bytes) -> Record:
        name = os.fsdecode(path).rpartition("/")[2]
        if name.startswith("hang"):
            time.sleep(3600)
        if name.startswith("crash"):
            ctypes.string_at(0)
        if name.startswith("exit"):
            os._exit(0)
        if name.startswith("eat"):
            bytearray(64 << 30)
        content = (root / os.fsdecode(path)).read_text()
        if name.startswith("shout"):
            print(content, flush=True)  # noqa: T201
            print(content, file=sys.stderr, flush=True)  # noqa: T201
            os.write(1, content.encode())
        return record_of(_header(json.loads(content)), path, key)

    return guarded(read)


def generate(root: Path, number: int) -> None:
    """A name below the root for `open_generating_reader`; few files behind many names."""
    path = root / f"{number // _PER_SERIES:06d}/{number % _PER_SERIES:03d}"
    if number % _PER_SERIES == 0:
        path.parent.mkdir(parents=True)
    source = root / f"{number // _PER_FILE * _PER_FILE // _PER_SERIES:06d}/000"
    if number % _PER_FILE == 0:
        path.write_bytes(b"x")
    else:
        os.link(source, path)


def open_generating_reader(root: Path, layout: Layout, key: bytes) -> Callable[[bytes], Record]:
    """Headers of CT slices made up from the files' names; the files are not opened."""

    def read(path: bytes) -> Record:
        series, _, z = os.fsdecode(path).partition("/")
        said = {
            "kind": "planes",
            "z": float(z),
            "patient": f"P{int(series) // 4}",
            "series": series,
        }
        words = {
            "sex": "female",
            "age_band": "40-59",
            "manufacturer": "siemens",
            "model": "unknown",
        }
        return record_of(
            _header({**said, "instance": os.fsdecode(path), "attributes": words}), path, key
        )

    return guarded(read)


def open_refusing_reader(*_: object) -> Callable[[bytes], Record]:
    """As where the service's user has no leave to read (the tests may run as root, who has)."""

    def read(path: bytes) -> Record:
        raise PermissionError(13, "Permission denied", path)

    return guarded(read)


def _header(said: dict[str, Any]) -> Header:
    kind = Kind(said["kind"])
    place = Plane(0, (0.0, 0.0, said["z"]), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0), (1.0, 1.0))
    return Header(
        kind=kind,
        shape=(4, 5),
        modality="CT",
        planes=(place,) if kind is Kind.PLANES else (),
        patient_id=said["patient"],
        study_uid=f"study of {said['patient']}",
        series_uid=said["series"],
        instance_uid=said["instance"],
        frame_of_reference_uid="1.2.3",
        references=(said["series"],) if kind is Kind.SEGMENTATION else (),
        structures=("tumour",) if kind is Kind.SEGMENTATION else (),
        attributes=said["attributes"],
    )
