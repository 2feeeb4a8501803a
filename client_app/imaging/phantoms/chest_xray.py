"""Phantom chest radiographs as DICOM: some with an opacity in a lung, which is called pneumonia.

The drawing is soft-edged ellipses, arcs and smoothed noise: enough for a network to have something
to learn and something to mistake (nipples, nodules, breasts and vessels), and no more.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    generate_uid,
)
from scipy.ndimage import gaussian_filter

from client_app.imaging.phantoms._dicom import code
from client_app.site import Data

Image = NDArray[np.float32]

LAYOUTS = ("dicom",)
LABELS = ("normal", "pneumonia")


@dataclass(frozen=True)
class Hospital:
    """What sets one hospital apart.

    Attributes:
        sop_class: computed (CR) or digital (DX) radiography.
        inverted: stored as MONOCHROME1, where the lowest value is shown white.
        edge: pixels along a side; spacing: millimetres from pixel to pixel.
        gamma: exponent of the contrast curve, 1 for none.
        blur: standard deviation of the detector's blur as a share of the edge.
        noise: standard deviation of the noise, brightness running from 0 to 1.
        prevalence: share of patients with pneumonia.
        age: mean in years; supine: share of images taken AP, in bed, badly centred.
    """

    manufacturer: str
    model: str
    sop_class: UID
    inverted: bool
    bits_stored: int
    edge: int
    spacing: float
    gamma: float
    blur: float
    noise: float
    prevalence: float
    age: float
    supine: float


_CR, _DX = ComputedRadiographyImageStorage, DigitalXRayImageStorageForPresentation
_HOSPITALS = (
    Hospital(
        "SIEMENS", "Phantom DX-1", _DX, False, 12, 128, 3.2, 1.0, 0.005, 0.030, 0.40, 58, 0.15
    ),
    Hospital(
        "GE Healthcare", "Phantom DX-2", _DX, False, 16, 112, 3.6, 0.75, 0.007, 0.040, 0.30, 47, 0.1
    ),
    Hospital(
        "Philips Medical Systems", "Phantom DX-3", _DX, True, 12, 120, 3.4, 1.3, 0.006, 0.035, 0.5,
        66, 0.5,
    ),
    Hospital(
        "FUJIFILM Corporation", "Phantom CR-1", _CR, False, 12, 96, 4.2, 0.9, 0.010, 0.050, 0.35,
        38, 0.25,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """A patient. `severity` is 0 without pneumonia, about 1 with; `side` is -1 or 1."""

    female: bool
    age: int
    severity: float
    side: int
    build: float


def hospital(site: int) -> Hospital:
    """Four are drawn by hand; the others are relatives of these with another population."""
    kin = _HOSPITALS[site % len(_HOSPITALS)]
    if site < len(_HOSPITALS):
        return kin
    rng = np.random.default_rng(site)
    return replace(
        kin,
        gamma=kin.gamma * rng.uniform(0.85, 1.15),
        noise=kin.noise * rng.uniform(0.8, 1.25),
        prevalence=float(np.clip(kin.prevalence + rng.uniform(-0.12, 0.12), 0.2, 0.6)),
        age=kin.age + rng.uniform(-8, 8),
        supine=float(np.clip(kin.supine + rng.uniform(-0.1, 0.2), 0, 0.8)),
    )


def draw_subject(rng: np.random.Generator, place: Hospital) -> Subject:
    ill = rng.random() < place.prevalence
    return Subject(
        female=bool(rng.random() < 0.5),
        age=int(np.clip(rng.normal(place.age + (5 if ill else 0), 18), 3, 97)),
        # Mild disease overlaps with none.
        severity=float(rng.lognormal(0.0, 0.35)) if ill else 0.0,
        side=int(rng.choice((-1, 1))),
        build=float(rng.uniform(0.9, 1.1)),
    )


def render(rng: np.random.Generator, subject: Subject, *, edge: int, supine: bool = False) -> Image:
    """Brightness (edge, edge) in [0, 1] before any detector: dense tissue bright, air dark.

    Rows run from neck to abdomen; the patient's left is on the right.
    """
    x, y = _grid(rng, edge, supine)
    x = x / subject.build
    thorax = _soft_ellipse(x, y - 0.25, 0.95, 1.45, power=4, softness=0.05)
    lungs = np.zeros_like(x)
    for side in (-1, 1):
        # The left lung gives way to the heart; the apices lean towards the spine.
        centre = 0.41 * side + 0.12 * side * y
        lungs += _soft_ellipse(x - centre, y + 0.1, 0.31, 0.66, power=2.6, softness=0.10)
    lungs = np.minimum(lungs, 1)
    enlargement = rng.normal(1.0, 0.08) + (0.12 if supine else 0) + 0.002 * (subject.age - 50)
    heart = _soft_ellipse(x - 0.13, y - 0.27, 0.31 * enlargement, 0.33, power=2, softness=0.10)
    spine = np.exp(-((x / 0.13) ** 2))
    vessels = gaussian_filter(rng.standard_normal(x.shape).astype(np.float32), edge / 50)
    vessels *= np.exp(-(((np.abs(x) - 0.2) / 0.3) ** 2) - ((y - 0.05) / 0.5) ** 2) / vessels.std()
    ribs = np.clip(np.sin(2 * np.pi * (3.6 * y + 1.5 * x**2) + rng.uniform(0, 6)), 0, 1)

    picture = 0.08 + 0.55 * thorax + 0.15 * spine * thorax
    picture = picture - 0.40 * lungs * (1 - 0.8 * heart) + 0.06 * heart
    picture = picture + 0.05 * ribs * thorax * (1 - 0.6 * heart) + 0.025 * vessels * lungs
    if subject.female and subject.age > 12:
        size = rng.uniform(0.2, 0.3)
        for side in (-1, 1):
            breast = _soft_ellipse(x - 0.45 * side, y - 0.35, size * 1.1, size, 2, 0.15)
            picture = picture + 0.07 * breast
    picture = picture + _opacities(rng, subject, x, y) * lungs
    brightness: Image = np.clip(picture, 0, 1).astype(np.float32)
    return brightness


def _opacities(rng: np.random.Generator, subject: Subject, x: Image, y: Image) -> Image:
    """Pneumonia where there is some, and spots that are none in anybody."""
    result = np.zeros_like(x)
    for _ in range(rng.poisson(0.6)):
        at = rng.choice((-1, 1)) * rng.uniform(0.25, 0.6), rng.uniform(-0.5, 0.45)
        result += rng.uniform(0.05, 0.14) * _blob(x, y, at, rng.uniform(0.04, 0.09))
    if subject.severity > 0:
        texture = gaussian_filter(rng.standard_normal(x.shape).astype(np.float32), len(x) / 24)
        patchy = np.clip(1 + 0.5 * texture / texture.std(), 0, 2)
        for _ in range(1 + rng.poisson(0.4)):
            at = subject.side * rng.uniform(0.25, 0.55), rng.uniform(-0.35, 0.45)
            strength = 0.28 * subject.severity * rng.uniform(0.6, 1.4)
            result += strength * patchy * _blob(x, y, at, rng.uniform(0.12, 0.24))
    return result


def expose(rng: np.random.Generator, picture: Image, place: Hospital) -> Image:
    """What the hospital's detector makes of a brightness in [0, 1]: blur, noise, contrast curve."""
    seen = gaussian_filter(picture, place.blur * len(picture))
    # Less light passes dense tissue, so there is more noise in it.
    noise = rng.standard_normal(picture.shape, dtype=np.float32) * (0.6 + 0.8 * picture)
    exposure = rng.uniform(0.85, 1.1)
    curve: Image = np.clip(seen * exposure + place.noise * noise, 0, 1) ** place.gamma
    return curve


def write_phantom(
    out: Path,
    *,
    patients: int,
    site: int,
    seed: int,
    images_per_patient: tuple[int, int] = (1, 3),
) -> Data:
    """Write `out/images/PATIENT/STUDY/IMAGE.dcm` and `out/labels.csv` (patient,label).

    Args:
        images_per_patient: fewest and most, both included; each is a study of its own.

    Returns:
        Where the data lie, as a site's configuration says it.
    """
    place = hospital(site)
    fewest, most = images_per_patient
    out.mkdir(parents=True, exist_ok=True)
    with (out / "labels.csv").open("w", newline="", encoding="utf-8") as table:
        rows = csv.writer(table)
        rows.writerow(("patient", "label"))
        for number in range(patients):
            rng = np.random.default_rng([seed, site, number])
            subject = draw_subject(rng, place)
            identifier = f"PHX{site:02d}-{number:05d}"
            rows.writerow((identifier, LABELS[subject.severity > 0]))
            born = date(2024, 1, 1) - timedelta(days=subject.age * 365 + int(rng.integers(365)))
            for image in range(int(rng.integers(fewest, most + 1))):
                supine = bool(rng.random() < place.supine)
                picture = render(rng, subject, edge=place.edge, supine=supine)
                dataset = _dataset(rng, expose(rng, picture, place), place, supine=supine)
                _identify(dataset, rng, subject, identifier, born, (seed, site, number, image))
                path = out / "images" / f"P{number:05d}" / f"ST{image:03d}" / "IM0001.dcm"
                path.parent.mkdir(parents=True, exist_ok=True)
                dataset.save_as(path, enforce_file_format=True)
    return Data(root=out / "images", layout="dicom", labels=out / "labels.csv")


def _dataset(rng: np.random.Generator, seen: Image, place: Hospital, *, supine: bool) -> Dataset:
    """Equipment and pixels; whose they are comes with `_identify`."""
    top = 2**place.bits_stored - 1
    # Hospitals use the upper or the lower part of their range.
    low, high = sorted(rng.uniform((0.02, 0.75), (0.1, 0.98)) * top)
    stored = (low + seen * (high - low)).round().astype(np.uint16)
    if place.inverted:
        stored = (top - stored).astype(np.uint16)
    header = Dataset()
    header.SOPClassUID = place.sop_class
    header.Modality = "CR" if place.sop_class == _CR else "DX"
    header.Manufacturer, header.ManufacturerModelName = place.manufacturer, place.model
    header.ImageType = ["ORIGINAL", "PRIMARY"]
    header.BodyPartExamined = "CHEST"
    header.ViewPosition = "AP" if supine else "PA"
    header.PatientOrientation = ["L", "F"]
    header.BurnedInAnnotation = "NO"
    header.SamplesPerPixel = 1
    header.PhotometricInterpretation = "MONOCHROME1" if place.inverted else "MONOCHROME2"
    header.Rows, header.Columns = stored.shape
    header.PixelSpacing = header.ImagerPixelSpacing = [place.spacing, place.spacing]
    header.BitsAllocated, header.BitsStored = 16, place.bits_stored
    header.HighBit, header.PixelRepresentation = place.bits_stored - 1, 0
    header.RescaleSlope, header.RescaleType = 1, "US"
    header.RescaleIntercept = -1000 if place.sop_class == _CR else 0
    header.WindowCenter = int(stored.mean()) + int(header.RescaleIntercept)
    header.WindowWidth = max(1, int(4 * stored.std()))
    header.LossyImageCompression = "00"
    if place.sop_class == _DX:
        header.PresentationIntentType = "FOR PRESENTATION"
        header.PresentationLUTShape = "INVERSE" if place.inverted else "IDENTITY"
        header.PixelIntensityRelationship = "DISP"
        header.PixelIntensityRelationshipSign = 1
        header.ImageLaterality, header.DetectorType = "U", "DIRECT"
        header.PositionerType, header.AcquisitionContextSequence = "NONE", []
        header.AnatomicRegionSequence = [code("816094009", "SCT", "Chest")]
    header.PixelData = stored.astype("<u2").tobytes()
    return header


def _identify(
    header: Dataset,
    rng: np.random.Generator,
    subject: Subject,
    identifier: str,
    born: date,
    numbers: tuple[int, int, int, int],
) -> None:
    """Patient, study, series and instance; UIDs follow from the numbers alone."""
    seed, site, patient, image = map(str, numbers)
    taken = date(2024, 1, 1) + timedelta(days=int(rng.integers(300)))
    entropy = ["phantom chest_xray", seed, site, patient, image]
    header.PatientName = f"Phantom^{identifier}"
    header.PatientID = identifier
    # As in every archive, a few lack what fairness would like to know.
    header.PatientSex = "O" if rng.random() < 0.03 else ("F" if subject.female else "M")
    knows_age = rng.random() > 0.04
    header.PatientAge = f"{subject.age:03d}Y" if knows_age else ""
    header.PatientBirthDate = f"{born:%Y%m%d}" if knows_age else ""
    header.StudyDate = header.SeriesDate = header.ContentDate = f"{taken:%Y%m%d}"
    header.StudyTime = header.SeriesTime = header.ContentTime = "120000"
    header.AccessionNumber, header.ReferringPhysicianName = "", ""
    header.StudyID, header.SeriesNumber, header.InstanceNumber = image, 1, 1
    header.StudyInstanceUID = generate_uid(entropy_srcs=[*entropy, "study"])
    header.SeriesInstanceUID = generate_uid(entropy_srcs=[*entropy, "series"])
    header.SOPInstanceUID = generate_uid(entropy_srcs=[*entropy, "instance"])
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID


def _grid(rng: np.random.Generator, edge: int, supine: bool) -> tuple[Image, Image]:
    """Coordinates of the patient at each pixel, about -1 to 1: moved, turned and scaled."""
    careless = 2.0 if supine else 1.0
    line = np.linspace(-1, 1, edge, dtype=np.float32)
    x, y = np.meshgrid(line, line)
    angle, scale = rng.normal(0, 0.03 * careless), rng.normal(1.0, 0.04 * careless)
    across, down = rng.normal(0, 0.04 * careless, size=2)
    cosine, sine = np.cos(angle) * scale, np.sin(angle) * scale
    turned = cosine * x - sine * y + across, sine * x + cosine * y + down
    return turned[0].astype(np.float32), turned[1].astype(np.float32)


def _soft_ellipse(
    x: Image, y: Image, width: float, height: float, power: float, softness: float
) -> Image:
    """1 inside |x/width|^p + |y/height|^p < 1, 0 outside, a smooth edge between."""
    radius = (np.abs(x / width) ** power + np.abs(y / height) ** power) ** (1 / power)
    edge: Image = 1 / (1 + np.exp(np.clip((radius - 1) / (softness / 2), -30, 30)))
    return edge


def _blob(x: Image, y: Image, at: tuple[float, float], radius: float) -> Image:
    blob: Image = np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / (2 * radius**2))
    return blob
