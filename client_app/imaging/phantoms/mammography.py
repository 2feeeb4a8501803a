"""Phantom mammograms as DICOM: four views a patient, some with a spiculated mass in one breast.

A cancer is a dense core with an irregular edge and spicules, at one distance from the chest wall in
both views of its breast; round masses with a smooth edge are none. Glands, vessels and skin are soft
shapes and smoothed noise.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    DigitalMammographyXRayImageStorageForPresentation,
    DigitalMammographyXRayImageStorageForProcessing,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)
from scipy.ndimage import gaussian_filter

from client_app.imaging.phantoms._dicom import (
    Equipment,
    Floats,
    Study,
    code,
    draw_person,
    draw_study,
    header,
    save,
    set_pixels,
    soft,
)
from client_app.site import Data

LAYOUTS = ("dicom",)
LABELS = ("no_cancer", "cancer")
DENSITIES = ("a", "b", "c", "d")  # BI-RADS, 5th edition

ROWS, COLUMNS = 160, 128
View = Literal["CC", "MLO"]
_VIEWS: dict[View, tuple[str, str, str]] = {
    # DICOM PS3.16, context group 4014.
    "CC": ("399162004", "SCT", "cranio-caudal"),
    "MLO": ("399368009", "SCT", "medio-lateral oblique"),
}
# Along a row and down a column of an image that hangs as radiologists want it.
_ORIENTATIONS = {
    ("L", "CC"): ["A", "R"],
    ("R", "CC"): ["P", "L"],
    ("L", "MLO"): ["A", "FR"],
    ("R", "MLO"): ["P", "FL"],
}
# 5 × 3 dots a letter, as lead markers on the detector show.
_LETTERS = {
    "L": ("100", "100", "100", "100", "111"),
    "R": ("110", "101", "110", "101", "101"),
    "C": ("111", "100", "100", "100", "111"),
    "M": ("101", "111", "111", "101", "101"),
    "O": ("111", "101", "101", "101", "111"),
}


@dataclass(frozen=True)
class Hospital:
    """What sets one hospital apart.

    Attributes:
        inverted: stored as MONOCHROME1, where the lowest value is shown white.
        bits: stored; spacing: mm from pixel to pixel at the detector.
        compression: transfer syntax; none for uncompressed.
        raw: share of images that come with their unprocessed twin.
        gamma: exponent of the contrast curve; blur: of the detector, in mm.
        noise: standard deviation, brightness running from 0 to 1.
        prevalence: share of patients with a cancer; age: mean in years.
        dense: mean BI-RADS density, 0 for a … 3 for d.
    """

    equipment: Equipment
    inverted: bool
    bits: int
    spacing: float
    compression: UID | None
    raw: float
    gamma: float
    blur: float
    noise: float
    prevalence: float
    age: float
    dense: float


_HOSPITALS = (
    Hospital(
        Equipment("HOLOGIC, Inc.", "Selenia Dimensions", "MAMMO1", "AWS:1.10.0.65"),
        False, 12, 1.5, None, 0.0, 1.0, 1.2, 0.020, 0.40, 61, 1.3,
    ),
    Hospital(
        Equipment("GE MEDICAL SYSTEMS", "Senographe Pristina", "PRISTINA2", "ADS 59.10.4"),
        False, 14, 1.6, JPEG2000Lossless, 0.3, 0.75, 1.6, 0.030, 0.30, 56, 1.8,
    ),
    Hospital(
        Equipment("SIEMENS", "MAMMOMAT Inspiration", "MAMMO-S", "VB60D"),
        True, 12, 1.45, None, 0.15, 1.3, 1.0, 0.025, 0.50, 66, 1.0,
    ),
    Hospital(
        Equipment("FUJIFILM Corporation", "AMULET Innovality", "AMULET", "FDR-3000AWS V7.0"),
        False, 16, 1.5, JPEGLSLossless, 0.0, 0.9, 2.0, 0.040, 0.35, 49, 2.3,
    ),
)  # fmt: skip


def hospital(site: int) -> Hospital:
    """Four are drawn by hand; the others are relatives of these with another population."""
    kin = _HOSPITALS[site % len(_HOSPITALS)]
    if site < len(_HOSPITALS):
        return kin
    rng = np.random.default_rng(site)
    return replace(
        kin,
        compression=kin.compression or RLELossless,
        gamma=kin.gamma * rng.uniform(0.85, 1.15),
        noise=kin.noise * rng.uniform(0.8, 1.25),
        prevalence=float(np.clip(kin.prevalence + rng.uniform(-0.12, 0.12), 0.2, 0.6)),
        age=kin.age + rng.uniform(-6, 6),
        dense=kin.dense + rng.uniform(-0.4, 0.4),
    )


@dataclass(frozen=True)
class Mass:
    """Attributes:
    depth: mm from the chest wall, the same in both views; heights: mm above the nipple by view.
    radius: mm; strength: brightness added.
    """

    depth: float
    heights: dict[View, float]
    radius: float
    strength: float
    spiculated: bool


@dataclass(frozen=True)
class Breast:
    """Attributes:
    length: mm from chest wall to nipple; height: mm, half of it; density: 0 … 3 for a … d.
    """

    length: float
    height: float
    density: int
    masses: tuple[Mass, ...]


def draw_breasts(
    rng: np.random.Generator, place: Hospital, age: int
) -> tuple[dict[str, Breast], str]:
    """Both breasts of a patient, and the side of the cancer; empty if there is none."""
    side = str(rng.choice(("L", "R"))) if rng.random() < place.prevalence else ""
    length, height = rng.uniform(85, 130), rng.uniform(68, 92)
    density = int(np.clip(round(rng.normal(place.dense - 0.02 * (age - 58), 0.8)), 0, 3))
    breasts = {}
    for breast in ("L", "R"):
        size = rng.uniform(0.95, 1.05)
        masses = [
            _draw_mass(rng, length * size, height * size, spiculated=False)
            for _ in range(rng.poisson(0.35))
        ]
        if breast == side:
            masses.append(_draw_mass(rng, length * size, height * size, spiculated=True))
        breasts[breast] = Breast(length * size, height * size, density, tuple(masses))
    return breasts, side


def _draw_mass(rng: np.random.Generator, length: float, height: float, *, spiculated: bool) -> Mass:
    depth = rng.uniform(0.25, 0.7) * length
    reach = 0.55 * height * np.sqrt(1 - (depth / length) ** 2)
    heights: dict[View, float] = {view: float(rng.uniform(-reach, reach)) for view in _VIEWS}
    radius = rng.uniform(6, 10) if spiculated else rng.uniform(5, 9)
    # Small, faint cancers overlap with benign masses.
    strength = 0.32 * rng.lognormal(0, 0.25) if spiculated else rng.uniform(0.12, 0.28)
    return Mass(float(depth), heights, float(radius), float(strength), spiculated)


def render(rng: np.random.Generator, breast: Breast, view: View, *, spacing: float) -> Floats:
    """Brightness (ROWS, COLUMNS) in [0, 1] before any detector, chest wall in the first column."""
    rows, columns = np.mgrid[:ROWS, :COLUMNS].astype(np.float32)
    shift = rng.normal(0, 4)
    depth = columns * spacing
    above = ((ROWS - 1) / 2 - rows) * spacing + shift - (8 if view == "MLO" else 0)
    inside = breast.length * (
        1 - np.sqrt((depth / breast.length) ** 2 + (np.abs(above) / breast.height) ** 2.2)
    )
    tissue = soft(inside, 6)
    # Compressed flat, thinner towards the skin.
    flat = 0.04 + 0.28 * tissue * (0.6 + 0.4 * np.clip(inside / 25, 0, 1))
    picture: Floats = np.asarray(flat, dtype=np.float32)
    noise = rng.standard_normal((2, ROWS, COLUMNS), dtype=np.float32)
    coarse, fine = (
        gaussian_filter(noise[i], sigma / spacing) for i, sigma in enumerate((9.0, 3.0))
    )
    glands = coarse / coarse.std() + 0.6 * fine / fine.std()
    threshold = (1.5, 0.7, 0.0, -0.8)[breast.density]
    # Glands gather behind the nipple.
    cone = np.exp(-((above / (0.55 * breast.height)) ** 2)) * soft(depth - 0.2 * breast.length, 30)
    picture = picture + 0.22 * soft(glands - threshold, 1.2) * cone * tissue
    if view == "MLO":
        edge = 0.55 * (above - 0.1 * breast.height) - depth
        picture = picture + 0.30 * soft(edge, 8) * (0.3 + 0.7 * tissue)
    for mass in breast.masses:
        at_depth, at_height = depth - mass.depth, above - mass.heights[view]
        picture = picture + _draw(rng, mass, at_depth, at_height) * tissue
    brightness: Floats = np.clip(picture, 0, 1).astype(np.float32)
    return brightness


def _draw(rng: np.random.Generator, mass: Mass, x: Floats, y: Floats) -> Floats:
    distance, angle = np.hypot(x, y), np.arctan2(y, x)
    if not mass.spiculated:
        return mass.strength * soft(mass.radius - distance, 2.0)
    lobes = sum(
        rng.normal(0, 0.10) * np.cos(order * angle + rng.uniform(0, 6)) for order in range(2, 7)
    )
    core = soft(mass.radius * (1 + lobes) - distance, 3.0)
    spicules: NDArray[np.floating] = np.zeros_like(x)
    for direction in rng.uniform(0, 2 * np.pi, size=int(rng.integers(9, 15))):
        along = x * np.cos(direction) + y * np.sin(direction)
        across = -x * np.sin(direction) + y * np.cos(direction)
        reach = mass.radius * rng.uniform(1.8, 3.0)
        spicules += np.exp(-((across / 1.3) ** 2)) * (along > 0) * np.clip(1 - along / reach, 0, 1)
    drawn: Floats = mass.strength * (core + 0.7 * np.clip(spicules, 0, 1) * (1 - core))
    return drawn


def expose(rng: np.random.Generator, picture: Floats, place: Hospital) -> Floats:
    """What the hospital's detector makes of a brightness in [0, 1]: blur, noise, contrast curve."""
    seen = gaussian_filter(picture, place.blur / place.spacing)
    noise = rng.standard_normal(picture.shape, dtype=np.float32) * (0.4 + seen)
    curve: Floats = (
        np.clip(seen * rng.uniform(0.88, 1.1) + place.noise * noise, 0, 1) ** place.gamma
    )
    return curve


def write_phantom(out: Path, *, patients: int, site: int, seed: int) -> Data:
    """Write `out/images/PATIENT/SERIES/IMAGE.dcm` and `out/labels.csv`.

    The table has a row a breast: patient, laterality (L, R), label, breast_density (a … d). A few
    patients lack a view, or were operated on and have one breast.

    Returns:
        Where the data lie, as a site's configuration says it.
    """
    place = hospital(site)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "labels.csv").open("w", newline="", encoding="utf-8") as table:
        rows = csv.writer(table)
        rows.writerow(("patient", "laterality", "label", "breast_density"))
        for number in range(patients):
            rng = np.random.default_rng([seed, site, number])
            identifier = f"PHM{site:02d}-{number:05d}"
            person = draw_person(
                rng, identifier, age=place.age, spread=10, youngest=34, female=0.99
            )
            source = ("mammography", seed, site, number)
            study = draw_study(rng, person, place.equipment, source, "MAMMOGRAPHY")
            breasts, side = draw_breasts(rng, place, person.age)
            if rng.random() < 0.04:
                del breasts["R" if side == "L" else "L"]
            views: list[tuple[str, View]] = [(b, v) for b in breasts for v in _VIEWS]
            if rng.random() < 0.1:
                del views[int(rng.integers(len(views)))]
            for laterality, breast in breasts.items():
                label = LABELS[laterality == side]
                rows.writerow((identifier, laterality, label, DENSITIES[breast.density]))
            folder = out / "images" / f"P{number:05d}"
            for image, (laterality, view) in enumerate(views, start=1):
                picture = render(rng, breasts[laterality], view, spacing=place.spacing)
                _write_view(rng, study, place, picture, laterality, view, image, folder)
    return Data(root=out / "images", layout="dicom", labels=out / "labels.csv")


def _write_view(
    rng: np.random.Generator,
    study: Study,
    place: Hospital,
    picture: Floats,
    laterality: str,
    view: View,
    image: int,
    folder: Path,
) -> None:
    top = 2**place.bits - 1
    seen = expose(rng, picture, place)
    if laterality == "R":  # the chest wall lies on the other side
        seen = seen[:, ::-1]
    low, high = rng.uniform(0.01, 0.06) * top, rng.uniform(0.85, 0.98) * top
    stored = (low + seen * (high - low)).round()
    _mark(stored, laterality + view, top, left=laterality == "R")
    shown = _dataset(study, place, laterality, view, series=image, processed=True)
    values = (top - stored if place.inverted else stored).astype(np.uint16)
    set_pixels(shown, values, bits=place.bits, monochrome=1 if place.inverted else 2)
    shown.PresentationLUTShape = "INVERSE" if place.inverted else "IDENTITY"
    shown.WindowCenter, shown.WindowWidth = int(np.median(values)), int(0.6 * top)
    save(shown, folder / f"SE{image:03d}" / "IM0001.dcm", compression=place.compression)
    if rng.random() < place.raw:
        raw = _dataset(study, place, laterality, view, series=50 + image, processed=False)
        # Counts of a detector fall with what the beam has passed.
        counts = 200 + 15000 * np.exp(-4 * seen)
        set_pixels(raw, counts.round().astype(np.uint16), bits=14, monochrome=1)
        raw.PresentationLUTShape = "INVERSE"
        save(raw, folder / f"SE{50 + image:03d}" / "IM0001.dcm")


def _mark(picture: Floats, word: str, top: int, *, left: bool) -> None:
    """Burn the letters of a view into the upper corner away from the chest wall."""
    dots = np.concatenate(
        [
            np.pad([[int(dot) for dot in line] for line in _LETTERS[letter]], ((0, 0), (0, 1)))
            for letter in word
        ],
        axis=1,
    )
    large = np.kron(dots, np.ones((2, 2), dtype=int))
    height, width = large.shape
    start = 4 if left else COLUMNS - 4 - width
    corner = picture[4 : 4 + height, start : start + width]
    corner[large > 0] = 0.97 * top


def _dataset(
    study: Study, place: Hospital, laterality: str, view: View, *, series: int, processed: bool
) -> Dataset:
    """The modules of a digital mammogram, PS3.3 A.26 and C.8.11, but its pixels."""
    sop_class = (
        DigitalMammographyXRayImageStorageForPresentation
        if processed
        else DigitalMammographyXRayImageStorageForProcessing
    )
    result = header(
        study,
        sop_class,
        modality="MG",
        series=series,
        description=f"{laterality} {view}" + ("" if processed else " RAW"),
    )
    result.PresentationIntentType = "FOR PRESENTATION" if processed else "FOR PROCESSING"
    result.ImageType = ["DERIVED" if processed else "ORIGINAL", "PRIMARY"]
    result.BodyPartExamined, result.OrganExposed = "BREAST", "BREAST"
    result.AnatomicRegionSequence = [code("76752008", "SCT", "Breast")]
    result.ImageLaterality, result.ViewPosition = laterality, view
    result.ViewCodeSequence = [code(*_VIEWS[view])]
    result.ViewCodeSequence[0].ViewModifierCodeSequence = []
    result.PatientOrientation = _ORIENTATIONS[laterality, view]
    result.PositionerType = "MAMMOGRAPHIC"
    result.PositionerPrimaryAngle = 0 if view == "CC" else (45 if laterality == "L" else -45)
    result.BreastImplantPresent, result.PartialView = "NO", "NO"
    result.BurnedInAnnotation = "NO"  # letters of the view name nobody
    result.KVP, result.BodyPartThickness, result.CompressionForce = 29, 58, 110
    result.EntranceDoseInmGy, result.OrganDose = "5.4", "0.0123"
    result.AnodeTargetMaterial, result.FilterMaterial = "TUNGSTEN", "RHODIUM"
    result.ImagerPixelSpacing = [place.spacing, place.spacing]
    result.DetectorType, result.FieldOfViewHorizontalFlip = "DIRECT", "NO"
    result.FieldOfViewOrigin, result.FieldOfViewRotation = [0, 0], 0
    result.PixelIntensityRelationship = "LOG" if processed else "LIN"
    result.PixelIntensityRelationshipSign = 1 if processed else -1
    result.RescaleIntercept, result.RescaleSlope, result.RescaleType = 0, 1, "US"
    result.LossyImageCompression = "00"
    result.AcquisitionContextSequence = []
    return result
