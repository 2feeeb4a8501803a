"""Phantom planning CTs of the chest with a tumour in a lung: DICOM with RTSTRUCT or SEG, or NIfTI.

The tumour is soft tissue with an irregular outline; round nodules, vessels and a heart are none.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import nibabel
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage
from scipy.ndimage import gaussian_filter

from client_app.imaging.masks import segmentation, structure_set
from client_app.imaging.phantoms._dicom import (
    Equipment,
    Floats,
    Grid,
    Study,
    decimals,
    draw_person,
    draw_study,
    ellipsoid,
    grid,
    header,
    save,
    soft,
    write_planes,
)
from client_app.site import Data

LAYOUTS = ("dicom", "nifti")
TUMOUR, ORGAN = 1, 2
PADDING = -2000  # as stored

Mask = NDArray[np.uint8]


@dataclass(frozen=True)
class Hospital:
    """What sets one hospital apart.

    Attributes:
        in_plane, between: mm between voxels in a plane and along the table.
        slices: planes a volume; tilt: of the gantry, degrees.
        padded: values outside of the circle that the scanner sees are marked (PixelPaddingValue).
        masks: the kind of file that outlines come in.
        tumour, organ: names of the two structures here; organ_first: in which order they stand.
        noise: standard deviation in HU; blur: in voxels; radius: mean of tumours in mm.
        age: mean in years.
    """

    equipment: Equipment
    in_plane: float
    between: float
    slices: int
    tilt: float
    padded: bool
    masks: Literal["structure_set", "segmentation"]
    tumour: str
    organ: str
    organ_first: bool
    noise: float
    blur: float
    radius: float
    age: float


_HOSPITALS = (
    Hospital(
        Equipment("SIEMENS", "SOMATOM Definition AS", "CTAWP73", "syngo CT VA48A"),
        4.0, 5.0, 24, 0.0, False, "structure_set", "GTV", "Heart", False, 18, 0.5, 16, 66,
    ),
    Hospital(
        Equipment("GE MEDICAL SYSTEMS", "LightSpeed RT16", "CTSIM1", "07MW18.4"),
        3.9, 4.0, 28, 0.0, True, "segmentation", "GTVp", "Lung", True, 28, 0.4, 14, 71,
    ),
    Hospital(
        Equipment("Philips", "Brilliance Big Bore", "BIGBORE", "3.6.6"),
        4.2, 6.0, 20, 0.0, False, "structure_set", "Tumour", "Lung", True, 22, 0.7, 18, 62,
    ),
    Hospital(
        Equipment("TOSHIBA", "Aquilion LB", "AQLB", "V4.86ER012"),
        4.0, 5.0, 24, 8.0, False, "segmentation", "GTV_Prim", "Heart", False, 35, 0.5, 15, 69,
    ),
)  # fmt: skip


def hospital(site: int) -> Hospital:
    """Four are drawn by hand; the others are relatives of these with other protocols."""
    kin = _HOSPITALS[site % len(_HOSPITALS)]
    if site < len(_HOSPITALS):
        return kin
    rng = np.random.default_rng(site)
    return replace(
        kin,
        noise=kin.noise * rng.uniform(0.8, 1.3),
        blur=kin.blur * rng.uniform(0.8, 1.4),
        radius=kin.radius + rng.uniform(-2, 2),
        age=kin.age + rng.uniform(-5, 5),
    )


@dataclass(frozen=True)
class Tumour:
    """Attributes:
    centre: mm from the middle of the chest, RAS+; radius: its mean, mm.
    waves: (4, 5) direction (3), phase and height of the waves of its outline.
    """

    centre: tuple[float, float, float]
    radius: float
    waves: NDArray[np.float64]

    def inside(self, points: Floats) -> Floats:
        """About the distance in mm to the outline, positive inside."""
        away = points - np.asarray(self.centre, dtype=np.float32)[:, None, None, None]
        distance = np.sqrt(np.square(away).sum(axis=0)) + 1e-3
        outline = np.full(distance.shape, self.radius, dtype=np.float32)
        for *direction, phase, height in self.waves:
            along = np.tensordot(np.asarray(direction, dtype=np.float32), away / distance, axes=1)
            outline += np.float32(self.radius * height) * np.cos(along + np.float32(phase))
        inside: Floats = outline - distance
        return inside


def draw_tumour(rng: np.random.Generator, place: Hospital) -> Tumour:
    side = rng.choice((-1, 1))
    centre = side * rng.uniform(46, 60), rng.uniform(-30, 22), rng.uniform(-26, 26)
    waves = np.empty((4, 5))
    directions = rng.standard_normal((4, 3))
    waves[:, :3] = (
        directions / np.linalg.norm(directions, axis=1, keepdims=True) * rng.uniform(2, 5)
    )
    waves[:, 3], waves[:, 4] = rng.uniform(0, 6, size=4), rng.uniform(0.05, 0.16, size=4)
    radius = float(np.clip(place.radius * rng.lognormal(0, 0.22), 10, 26))
    return Tumour((float(centre[0]), float(centre[1]), float(centre[2])), radius, waves)


def render(
    rng: np.random.Generator, tumour: Tumour, place: Hospital, points: Floats
) -> tuple[Floats, Mask]:
    """Hounsfield units before any scanner, and the mask (1 tumour, 2 the organ), at points (3, …).

    Points are mm from the middle of the chest, RAS+.
    """
    x, y, z = points
    values = np.full(x.shape, -1000, dtype=np.float32)
    size = rng.uniform(0.95, 1.05)

    def lay(value: float, inside: Floats, softness: float = 3.0) -> None:
        nonlocal values
        values += soft(inside, softness) * (np.float32(value) - values)

    lay(-150, np.minimum(5 - np.abs(y + 96), 105 - np.abs(x)))  # the table
    trunk = (1 - np.hypot(x / (112 * size), y / (82 * size))) * 82
    lay(-95, trunk)
    lay(45, trunk - 9)
    ribs = 3.0 - np.abs(trunk - 15) + 2.5 * np.sin((z + 0.5 * y) / 4.0)
    lay(350, ribs - 1.5)
    lungs = []
    for side in (-1, 1):
        lung = ellipsoid(points, (side * 50 * size, -2, 0), (38 * size, 57 * size, 95))
        lay(-830, lung)
        lungs.append(lung)
    lay(-40, 14 - np.hypot(x, y - 8))
    heart = ellipsoid(points, (-12, 16, -34), (31, 27, 36))
    lay(42, heart)
    spine = 15 - np.hypot(x, y + 58)
    lay(240, spine)
    lay(20, 6 - np.hypot(x, y + 66))  # the canal
    lung = np.maximum(*lungs)
    for _ in range(10):  # vessels run outwards from the hilum
        side, radius = rng.choice((-1, 1)), rng.uniform(1.5, 3.5)
        direction = rng.standard_normal(3).astype(np.float32)
        direction *= np.array((1, 0.7, 0.9), dtype=np.float32) / np.linalg.norm(direction)
        direction[0] = side * abs(direction[0])
        away = points - np.array((side * 20, 0, 0), dtype=np.float32)[:, None, None, None]
        along = np.tensordot(direction, away, axes=1)
        across = np.sqrt(np.maximum(np.square(away).sum(axis=0) - along**2, 0))
        lay(30, np.minimum(np.minimum(radius - across, along), lung))
    for _ in range(int(rng.poisson(1.5))):  # round, sharp, some calcified
        centre = (
            rng.choice((-1, 1)) * rng.uniform(38, 62),
            rng.uniform(-35, 35),
            rng.uniform(-45, 45),
        )
        if np.linalg.norm(np.subtract(centre, tumour.centre)) > tumour.radius + 18:
            lay(rng.choice((30, 30, 260)), ellipsoid(points, centre, (rng.uniform(4, 7),) * 3), 1.5)
    inside = tumour.inside(points)
    lay(rng.normal(38, 8), inside, 1.5)

    other = lungs[0 if tumour.centre[0] > 0 else 1]  # RAS+: the first lies left of the spine
    organ = heart if place.organ == "Heart" else np.minimum(other, -heart)
    mask = np.where(organ > 0, ORGAN, 0)
    mask[inside > 0] = TUMOUR
    return values, mask.astype(np.uint8)


def expose(rng: np.random.Generator, values: Floats, place: Hospital) -> NDArray[np.int16]:
    """Hounsfield units as the hospital's scanner gives them: blur, noise, 12 bits."""
    seen = gaussian_filter(values, (place.blur, place.blur, 0))
    seen = (
        seen + gaussian_filter(rng.standard_normal(seen.shape), (0.5, 0.5, 0)) * place.noise * 1.8
    )
    units: NDArray[np.int16] = np.clip(seen.round(), -1024, 3071).astype(np.int16)
    return units


def write_phantom(
    out: Path,
    *,
    patients: int,
    site: int,
    seed: int,
    layout: Literal["dicom", "nifti"] = "dicom",
) -> Data:
    """Write CT series with outlines below `out/images`, or `images/`, `labels/`, `patients.csv`.

    Returns:
        Where the data lie, as a site's configuration says it.
    """
    place = hospital(site)
    out.mkdir(parents=True, exist_ok=True)
    people = []
    for number in range(patients):
        rng = np.random.default_rng([seed, site, number])
        identifier = f"PHT{site:02d}-{number:05d}"
        person = draw_person(rng, identifier, age=place.age, spread=9, youngest=35, female=0.42)
        where, points = _position(rng, place)
        tumour = draw_tumour(rng, place)
        values, mask = render(rng, tumour, place, points)
        units = expose(rng, values, place)
        if place.padded:
            units[_outside_of_view(where)] = PADDING - 1024
        if layout == "nifti":
            name = f"phantom_{site:02d}_{number:04d}.nii.gz"
            _write_nifti(out, name, units, mask, where)
            age = person.age if person.age_known else ""
            people.append((name, identifier, person.sex, age, place.equipment.manufacturer))
            continue
        source = ("tumour_segmentation", seed, site, number)
        study = draw_study(rng, person, place.equipment, source, "RT PLANNING CHEST")
        side = "L" if tumour.centre[0] > 0 else "R"  # the organ is the lung without the tumour
        organ = f"{place.organ}_{side}" if place.organ == "Lung" else place.organ
        _write_dicom(study, place, units, mask, where, organ, out / "images" / f"P{number:05d}")
    if layout == "dicom":
        names = {"tumour": [place.tumour]}
        return Data(root=out / "images", layout="dicom", structures=names)
    with (out / "patients.csv").open("w", newline="", encoding="utf-8") as table:
        rows = csv.writer(table)
        rows.writerow(("file", "patient", "sex", "age", "manufacturer"))
        rows.writerows(people)
    return Data(root=out, layout="nifti", patients=out / "patients.csv")


def _position(rng: np.random.Generator, place: Hospital) -> tuple[Grid, Floats]:
    """A grid about a chest; a tilted gantry's planes lean while the table moves along the body."""
    lean = np.radians(place.tilt)
    directions = np.array(
        [[-1, 0, 0], [0, -np.cos(lean), 0], [0, np.sin(lean), 1]], dtype=np.float64
    )
    shape = (64, 64, place.slices)
    spacing = (place.in_plane, place.in_plane, place.between)
    middle = rng.normal(0, 1, size=3) * (4, 4, 0) + (0, 0, rng.uniform(-400, -200))
    where = grid(shape, directions, spacing, middle)
    off = middle + rng.normal(0, 4, size=3) * (1, 1, 1.5)
    return where, where.points() - np.asarray(off, dtype=np.float32)[:, None, None, None]


def _outside_of_view(where: Grid) -> NDArray[np.bool_]:
    columns, rows, _ = where.shape
    x, y = np.ogrid[:columns, :rows]
    away = np.hypot(x - (columns - 1) / 2, y - (rows - 1) / 2)
    return np.broadcast_to((away > columns / 2)[:, :, None], where.shape)


def _write_nifti(out: Path, name: str, units: NDArray[np.int16], mask: Mask, where: Grid) -> None:
    arrays = (("images", units), ("labels", (mask == TUMOUR).astype(np.uint8)))
    for folder, array in arrays:
        (out / folder).mkdir(exist_ok=True)
        image = nibabel.Nifti1Image(array, where.affine)
        image.header.set_xyzt_units("mm")
        nibabel.save(image, out / folder / name)


def _write_dicom(
    study: Study,
    place: Hospital,
    units: NDArray[np.int16],
    mask: Mask,
    where: Grid,
    organ: str,
    folder: Path,
) -> None:
    stored = units.astype(np.int32) + 1024
    kind = np.int16 if place.padded else np.uint16  # padding is negative
    bits = 16 if place.padded else 12
    planes = _ct(study, place)
    files = write_planes(planes, study, stored.astype(kind), where, folder / "SE0002", bits=bits)
    sources = [pydicom.dcmread(path) for path in files]
    names = [place.tumour, organ]
    if place.organ_first:
        names, mask = names[::-1], np.choose(mask, (0, 2, 1)).astype(np.uint8)
    write = structure_set.write if place.masks == "structure_set" else segmentation.write
    outlines = write(
        mask,
        sources,
        names=names,
        algorithm="Phantom",
        version="1",
        series_uid=study.uid("series", 3),
        instance_uid=study.uid("instance", 3, 1),
        series_number=3,
    )
    _settle(outlines, study)
    save(outlines, folder / "SE0003" / "IM0001.dcm")


def _ct(study: Study, place: Hospital) -> Dataset:
    """The modules of a CT image, PS3.3 A.3 and C.8.2.1, but its plane and pixels."""
    result = header(study, CTImageStorage, modality="CT", series=2, description="Thorax RT")
    result.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    result.BodyPartExamined, result.PatientPosition = "CHEST", "HFS"
    result.FrameOfReferenceUID = study.uid("frame of reference")
    result.PositionReferenceIndicator = ""
    result.KVP, result.AcquisitionNumber, result.XRayTubeCurrent = 120, 1, 240
    result.GantryDetectorTilt, result.ConvolutionKernel = decimals([place.tilt])[0], "B30f"
    result.SliceThickness = decimals([place.between])[0]
    result.RescaleIntercept, result.RescaleSlope, result.RescaleType = -1024, 1, "HU"
    result.WindowCenter, result.WindowWidth = 40, 400
    if place.padded:
        result.add_new("PixelPaddingValue", "SS", PADDING)
    return result


def _settle(outlines: Dataset, study: Study) -> None:
    """Give what was written just now the date of the study, and what is left of random UIDs."""
    for moment in ("Series", "Content", "StructureSet", "InstanceCreation"):
        if f"{moment}Date" in outlines:
            setattr(outlines, f"{moment}Date", f"{study.taken:%Y%m%d}")
            setattr(outlines, f"{moment}Time", "093000")
    for element in outlines.iterall():
        if element.keyword == "DimensionOrganizationUID":
            element.value = study.uid("dimensions")
        elif element.keyword == "ContributionDateTime":
            element.value = f"{study.taken:%Y%m%d}093000"
