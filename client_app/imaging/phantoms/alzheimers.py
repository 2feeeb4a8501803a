"""Phantom heads in T1: ventricles widen, hippocampi and cortex shrink with age and with disease.

Ellipsoids with soft edges, folded by sines: sizes are about those of adults, the anatomy is not.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import nibabel
import numpy as np
from numpy.typing import NDArray
from pydicom.uid import EnhancedMRImageStorage
from scipy.ndimage import gaussian_filter

from client_app.imaging.phantoms._dicom import (
    Equipment,
    Floats,
    Grid,
    Person,
    Study,
    draw_person,
    draw_study,
    ellipsoid,
    grid,
    header,
    orientation,
    pixel_spacing,
    position,
    rotation,
    save,
    set_pixels,
    soft,
    write_planes,
)
from client_app.imaging.phantoms._mr import classic, enhance
from client_app.site import Data

LAYOUTS = ("dicom", "nifti")
LABELS = ("CN", "MCI", "AD")
# How far the disease has gone, by class.
_SEVERITY = {"CN": 0.0, "MCI": 0.5, "AD": 1.0}

Plane = Literal["sagittal", "axial", "coronal"]
# Unit vectors of columns, rows and slices in RAS+, as columns of a matrix.
_DIRECTIONS: dict[Plane, NDArray[np.float64]] = {
    "axial": np.array([[-1, 0, 0], [0, -1, 0], [0, 0, 1]], dtype=float),
    "sagittal": np.array([[0, 0, -1], [-1, 0, 0], [0, -1, 0]], dtype=float),
    "coronal": np.array([[-1, 0, 0], [0, 0, 1], [0, -1, 0]], dtype=float),
}
_EXTENT = np.array([186.0, 222.0, 204.0])  # mm, left to right, back to front, up

# Brightness of tissues.
Contrast = Mapping[str, float]
T1: Contrast = {
    "air": 0.01, "scalp": 0.95, "muscle": 0.50, "bone": 0.06, "fluid": 0.16, "grey": 0.55,
    "white": 0.85,
}  # fmt: skip
T2: Contrast = {
    "air": 0.01, "scalp": 0.60, "muscle": 0.25, "bone": 0.05, "fluid": 1.00, "grey": 0.55,
    "white": 0.38,
}  # fmt: skip


@dataclass(frozen=True)
class Hospital:
    """What sets one hospital apart.

    Attributes:
        plane: of acquisition; tesla: field strength.
        in_plane, between: mm between voxels in a plane and between planes.
        enhanced: one multi-frame file a series instead of one file a plane.
        backwards: planes are numbered against their axis.
        scale: the intensity that is drawn as 1; noise: standard deviation as a share of it.
        contrast: exponent on brightness; bias: how much the coil's sensitivity varies, as a share.
        prevalence: shares of CN, MCI and AD; age: mean in years.
    """

    equipment: Equipment
    sequence: str
    plane: Plane
    tesla: float
    in_plane: float
    between: float
    enhanced: bool
    backwards: bool
    scale: float
    noise: float
    contrast: float
    bias: float
    prevalence: tuple[float, float, float]
    age: float


_HOSPITALS = (
    Hospital(
        Equipment("SIEMENS", "Prisma", "MRC40560", "syngo MR E11"), "MPRAGE",
        "sagittal", 3.0, 3.0, 3.0, False, False, 620.0, 0.025, 1.0, 0.20, (0.40, 0.30, 0.30), 71,
    ),
    Hospital(
        Equipment("GE MEDICAL SYSTEMS", "SIGNA Explorer", "GEHCMR15", "DV26.0_R03"), "Ax 3D SPGR",
        "axial", 1.5, 2.8, 3.2, False, True, 2900.0, 0.045, 1.2, 0.12, (0.50, 0.30, 0.20), 66,
    ),
    Hospital(
        Equipment("Philips Medical Systems", "Ingenia", "PHILIPS-3T", "5.7.1"), "sT1W_3D_TFE",
        "coronal", 3.0, 2.9, 3.1, True, False, 1400.0, 0.030, 0.9, 0.28, (0.30, 0.35, 0.35), 75,
    ),
    Hospital(
        Equipment("TOSHIBA", "MRT200SP5", "TITAN", "V2.31"), "MPRAGE",
        "sagittal", 1.5, 3.0, 3.3, False, True, 3400.0, 0.040, 0.8, 0.15, (0.45, 0.25, 0.30), 69,
    ),
)  # fmt: skip


def hospital(site: int) -> Hospital:
    """Four are drawn by hand; the others are relatives of these with other sequences."""
    kin = _HOSPITALS[site % len(_HOSPITALS)]
    if site < len(_HOSPITALS):
        return kin
    rng = np.random.default_rng(site)
    return replace(
        kin,
        scale=kin.scale * rng.uniform(0.7, 1.1),
        noise=kin.noise * rng.uniform(0.8, 1.25),
        contrast=kin.contrast * rng.uniform(0.9, 1.1),
        age=kin.age + rng.uniform(-5, 5),
    )


@dataclass(frozen=True)
class Brain:
    """What age and disease have done, as linear factors on sizes.

    Attributes:
        ventricles, hippocampi: 1 in a healthy person of 60 years.
        sulci: share of the cortex's depth that is fluid, about 0.2 to 0.5.
    """

    size: float
    ventricles: float
    hippocampi: float
    sulci: float


def draw_brain(rng: np.random.Generator, label: str, age: int) -> Brain:
    # People differ, so that mild disease overlaps with none.
    severity = _SEVERITY[label] + rng.normal(0, 0.12)
    years = age - 60
    return Brain(
        size=float(rng.normal(1.0, 0.03)),
        ventricles=float(1 + 0.40 * severity + 0.007 * years + rng.normal(0, 0.06)),
        hippocampi=float(1 - 0.22 * severity - 0.003 * years + rng.normal(0, 0.03)),
        sulci=float(np.clip(0.22 + 0.14 * severity + 0.003 * years, 0.1, 0.6)),
    )


def render(brain: Brain, points: Floats, contrast: Contrast, folds: float = 0.0) -> Floats:
    """Brightness at points (3, …) in mm from the middle of the brain, RAS+.

    Args:
        folds: phase of the sulci; any number.
    """
    points = points / np.float32(brain.size)
    x, y, z = points
    picture = np.full(x.shape, contrast["air"], dtype=np.float32)

    def lay(tissue: str, inside: Floats, softness: float = 2.5) -> None:
        nonlocal picture
        share = soft(inside, softness)
        picture += share * (contrast[tissue] - picture)

    lay("scalp", ellipsoid(points, (0, -4, 4), (78, 97, 92)))
    neck = np.minimum(52 - np.hypot(x, 0.9 * (y + 12)), -z - 30)
    lay("muscle", neck, 6)
    lay("bone", ellipsoid(points, (0, -3, 5), (73, 91, 84)))
    lay("fluid", ellipsoid(points, (0, -2, 8), (68, 84, 70)))
    # The surface of the cerebrum sinks in where sulci run.
    waves = np.sin(x / 5.5 + 2 * np.sin(y / 16 + folds)) * np.sin(
        y / 6.5 + 1.5 * np.sin(z / 13 + folds)
    )
    sulcus = soft(np.abs(waves) - (1 - brain.sulci * 1.6), 0.5)
    cerebrum = ellipsoid(points, (0, -2, 12), (65, 80, 60))
    # The fissure between the hemispheres ends above the ventricles, and before and behind them.
    bridge = np.maximum(0, 52 * (1 - np.hypot(y / 48, (z - 8) / 26)))
    fissure = np.abs(x) - 1.2 - 3 * brain.sulci + bridge
    hemispheres = np.minimum(cerebrum - 9 * sulcus, fissure)
    lay("grey", hemispheres)
    lay("white", hemispheres - (9 - 7 * brain.sulci))
    lay("grey", ellipsoid(points, (0, -50, -36), (46, 30, 22)))
    lay("white", ellipsoid(points, (0, -46, -36), (30, 16, 10)))
    lay("white", ellipsoid(points, (0, -18, -40), (13, 13, 42)))

    wide = brain.ventricles
    for side in (-1, 1):
        lay("grey", ellipsoid(points, (side * 25, 8, 8), (7, 18, 11)))
        lay("grey", ellipsoid(points, (side * 11, -10, 8), (9, 14, 9)))
        body = np.array((side * (9 + 4 * wide), 4, 22))
        lay("fluid", ellipsoid(points, body, (6.5 * wide, 30, 8.5 * wide)))
        horn = (side * (16 + 4 * wide), -30, 14)
        lay("fluid", ellipsoid(points, horn, (5.5 * wide, 17, 7.5 * wide)))
        # A cavity of one size: what the hippocampus gives up, fluid fills.
        lay("fluid", ellipsoid(points, (side * 29, -17, -12), (10, 23, 9)))
        small = brain.hippocampi
        lay(
            "grey", ellipsoid(points, (side * 28, -17, -13), (9.5 * small, 22 * small, 8.5 * small))
        )
    lay("fluid", ellipsoid(points, (0, -4, 8), (2.8 * wide, 13, 9)))
    return picture


def expose(
    rng: np.random.Generator, picture: Floats, points: Floats, place: Hospital
) -> NDArray[np.uint16]:
    """12-bit intensities as the hospital's scanner gives them: contrast, coil, noise, scale."""
    seen = gaussian_filter(picture, 0.4) ** place.contrast
    slope = rng.normal(0, 1, size=3)
    slope /= np.linalg.norm(slope)
    coil = 1 + place.bias * np.tensordot(slope, points / 90, axes=1) * rng.uniform(0.5, 1)
    # The magnitude of a signal with noise in both channels (Rice).
    noise = rng.standard_normal((2, *picture.shape), dtype=np.float32) * place.noise
    magnitude = np.hypot(seen * coil + noise[0], noise[1]) * place.scale * rng.uniform(0.85, 1.1)
    stored: NDArray[np.uint16] = np.clip(magnitude.round(), 0, 4095).astype(np.uint16)
    return stored


def write_phantom(
    out: Path,
    *,
    patients: int,
    site: int,
    seed: int,
    layout: Literal["dicom", "nifti"] = "dicom",
) -> Data:
    """Write a DICOM tree `images/` with `labels.csv`, or a BIDS tree, below `out`.

    Some patients' DICOM studies hold a localiser and a T2 series too, which no task of T1 wants.

    Returns:
        Where the data lie, as a site's configuration says it.
    """
    place = hospital(site)
    out.mkdir(parents=True, exist_ok=True)
    people = []
    for number in range(patients):
        rng = np.random.default_rng([seed, site, number])
        name = (
            f"PHA{site:02d}-{number:05d}" if layout == "dicom" else f"sub-PHA{site:02d}{number:05d}"
        )
        label = str(rng.choice(LABELS, p=place.prevalence))
        older = 4 * _SEVERITY[label]
        person = draw_person(rng, name, age=place.age + older, spread=7, youngest=50)
        brain, folds = draw_brain(rng, label, person.age), float(rng.uniform(0, 6))
        where, head = _position(rng, place)
        picture = render(brain, head, T1, folds)
        stored = expose(rng, picture, head, place)
        people.append((person, label))
        if layout == "nifti":
            _write_nifti(out / name / "anat" / f"{name}_T1w", stored, where, place)
            continue
        study = draw_study(
            rng, person, place.equipment, ("alzheimers", seed, site, number), "BRAIN"
        )
        folder = out / "images" / f"P{number:05d}"
        _write_t1(study, place, stored, where, folder / "SE0002")
        if rng.random() < 0.4:
            _write_localiser(study, place, brain, folds, rng, folder / "SE0001")
        if rng.random() < 0.4:
            _write_t2(study, place, brain, folds, rng, folder / "SE0003")
    return _write_tables(out, people, layout)


def _position(rng: np.random.Generator, place: Hospital) -> tuple[Grid, Floats]:
    """A grid about a head that lies a little turned and off the middle, and the points in the head."""
    directions = rotation(rng.normal(0, 3, size=3)) @ _DIRECTIONS[place.plane]
    spacing = (place.in_plane, place.in_plane, place.between)
    extent = np.abs(_DIRECTIONS[place.plane].T @ _EXTENT)
    columns, rows, slices = (
        round(float(mm / step)) for mm, step in zip(extent, spacing, strict=True)
    )
    where = grid((columns, rows, slices), directions, spacing, rng.normal(0, 6, size=3))
    turned = rotation(rng.normal(0, 4, size=3))
    middle = where.affine @ (*(np.array(where.shape) - 1) / 2, 1)
    off = middle[:3] + rng.normal(0, 3, size=3) + (0, 0, 6)
    points = where.points() - np.asarray(off, dtype=np.float32)[:, None, None, None]
    head = np.tensordot(turned.astype(np.float32), points, axes=1)
    return where, np.asarray(head, dtype=np.float32)


def _write_nifti(stem: Path, stored: NDArray[np.uint16], where: Grid, place: Hospital) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(stored.astype(np.int16), where.affine)
    image.header.set_xyzt_units("mm", "sec")
    nibabel.save(image, stem.with_name(stem.name + ".nii.gz"))
    sidecar = {
        "Manufacturer": place.equipment.manufacturer,
        "ManufacturersModelName": place.equipment.model,
        "MagneticFieldStrength": place.tesla,
        "SeriesDescription": place.sequence,
    }
    stem.with_name(stem.name + ".json").write_text(json.dumps(sidecar, indent=1) + "\n")


def _write_tables(
    out: Path, people: list[tuple[Person, str]], layout: Literal["dicom", "nifti"]
) -> Data:
    if layout == "dicom":
        with (out / "labels.csv").open("w", newline="", encoding="utf-8") as table:
            rows = csv.writer(table)
            rows.writerow(("patient", "label"))
            rows.writerows((person.identifier, label) for person, label in people)
        return Data(root=out / "images", layout="dicom", labels=out / "labels.csv")
    with (out / "participants.tsv").open("w", newline="", encoding="utf-8") as table:
        rows = csv.writer(table, delimiter="\t", lineterminator="\n")
        rows.writerow(("participant_id", "age", "sex", "diagnosis"))
        for person, label in people:
            age = person.age if person.age_known else "n/a"
            rows.writerow((person.identifier, age, person.sex or "n/a", label))
    description = {
        "Name": "Phantom heads, of no patient",
        "BIDSVersion": "1.10.0",
        "DatasetType": "raw",
        "License": "CC0",
    }
    (out / "dataset_description.json").write_text(json.dumps(description, indent=1) + "\n")
    return Data(root=out, layout="bids")


def _write_t1(
    study: Study, place: Hospital, stored: NDArray[np.uint16], where: Grid, folder: Path
) -> None:
    if place.enhanced:
        series = header(
            study, EnhancedMRImageStorage, modality="MR", series=2, description=place.sequence
        )
        enhance(series, study, where, tesla=place.tesla)
        set_pixels(series, stored.transpose(2, 1, 0), bits=12)
        save(series, folder / "IM0001.dcm")
        return
    planes = classic(
        study, 2, place.sequence, where, tesla=place.tesla, echo=2.9, repetition=2300, inversion=900
    )
    write_planes(planes, study, stored, where, folder, bits=12, backwards=place.backwards)


def _write_t2(
    study: Study,
    place: Hospital,
    brain: Brain,
    folds: float,
    rng: np.random.Generator,
    folder: Path,
) -> None:
    spacing = (4.0, 4.0, 8.0)
    where = grid((48, 56, 20), _DIRECTIONS["axial"], spacing, rng.normal(0, 5, size=3))
    points = where.points()
    stored = expose(rng, render(brain, points, T2, folds), points, place)
    planes = classic(
        study, 3, "Ax T2 TSE", where, tesla=place.tesla, echo=98, repetition=5200, inversion=None
    )
    write_planes(planes, study, stored, where, folder, bits=12)


def _write_localiser(
    study: Study,
    place: Hospital,
    brain: Brain,
    folds: float,
    rng: np.random.Generator,
    folder: Path,
) -> None:
    """One plane in each direction, all in one series."""
    for number, directions in enumerate(_DIRECTIONS.values(), start=1):
        where = grid((64, 64, 1), directions, (4.0, 4.0, 8.0), np.zeros(3))
        points = where.points()
        stored = expose(rng, render(brain, points, T1, folds), points, place)
        plane = classic(
            study, 1, "localizer", where, tesla=place.tesla, echo=4, repetition=9, inversion=None
        )
        plane.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        plane.InstanceNumber = number
        plane.SOPInstanceUID = study.uid("instance", 1, number)
        plane.ImagePositionPatient = position(where, 0)
        plane.ImageOrientationPatient, plane.PixelSpacing = orientation(where), pixel_spacing(where)
        set_pixels(plane, stored[:, :, 0].T, bits=12)
        save(plane, folder / f"IM{number:04d}.dcm")
