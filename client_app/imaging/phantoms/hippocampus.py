"""Phantom T1 volumes as NIfTI: a bent, tapering body with a front and a back part to be labelled.

Shapes, sizes and the three scales of intensity follow what Task04 of the Medical Segmentation
Decathlon looks like; the anatomy does not.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from client_app.site import Data

Volume = NDArray[np.float32]
Mask = NDArray[np.uint8]

LAYOUTS = ("nifti",)
BACKGROUND, ANTERIOR, POSTERIOR = 0, 1, 2


@dataclass(frozen=True)
class Hospital:
    """What sets one hospital apart.

    Attributes:
        scale: the intensity that is drawn as 1; dtype: how voxels are stored.
        blur: standard deviation in voxels; noise: standard deviation as a share of `scale`.
        contrast: factor on the difference between grey and white matter.
        bias: how much the receive coil's sensitivity varies over the volume, as a share.
        age: mean in years; the old have smaller hippocampi.
    """

    manufacturer: str
    scale: float
    dtype: Literal["uint8", "int16", "float32"]
    blur: float
    noise: float
    contrast: float
    bias: float
    age: float


_HOSPITALS = (
    Hospital("SIEMENS", 220.0, "uint8", 0.6, 0.04, 1.0, 0.10, 45),
    Hospital("Philips Medical Systems", 2600.0, "int16", 0.7, 0.05, 0.9, 0.20, 60),
    Hospital("GE MEDICAL SYSTEMS", 9.0e5, "float32", 0.5, 0.06, 1.1, 0.15, 35),
    Hospital("Canon Medical Systems", 900.0, "int16", 0.8, 0.05, 0.8, 0.25, 68),
)
_SHAPE = (32, 40, 32)


def hospital(site: int) -> Hospital:
    """Four are drawn by hand; the others are relatives of these with other sequences."""
    kin = _HOSPITALS[site % len(_HOSPITALS)]
    if site < len(_HOSPITALS):
        return kin
    rng = np.random.default_rng(site)
    return replace(
        kin,
        scale=kin.scale * rng.uniform(0.6, 1.1),
        noise=kin.noise * rng.uniform(0.8, 1.3),
        contrast=kin.contrast * rng.uniform(0.85, 1.15),
        age=kin.age + rng.uniform(-8, 8),
    )


def render(
    rng: np.random.Generator, shape: tuple[int, int, int], *, size: float = 1.0
) -> tuple[Volume, Mask]:
    """Tissue (0 fluid … 1 white matter) and mask, axes left to right, back to front, up.

    Args:
        size: linear factor on the body, 1 for a young adult.
    """
    x, y, z = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in shape), indexing="ij")
    middle = (np.array(shape) - 1) / 2 + rng.normal(0, 1.0, size=3)
    half_length = 14.0 * size * rng.uniform(0.9, 1.1)
    # Along the body: 0 at the front end, 1 at the back end.
    along = (middle[1] + half_length - y) / (2 * half_length)
    within = np.clip(along, 0, 1)
    bend, lean = rng.normal(5.0, 1.0), rng.normal(3.0, 1.0)
    centre_x = middle[0] + bend * (within - 0.5) * rng.choice((-1, 1))
    centre_z = middle[2] + lean * (4 * (within - 0.5) ** 2 - 0.3)
    # A thick head, a thinner tail, rounded ends.
    ends = np.sqrt(np.clip(1 - (2 * along - 1) ** 4, 0, None))
    radius = size * rng.uniform(0.92, 1.08) * (6.2 - 2.6 * within) * ends
    distance = np.hypot((x - centre_x) / 1.15, (z - centre_z) / 0.85)
    body = distance < radius
    boundary = rng.normal(0.42, 0.03) + 0.02 * (z - centre_z) / 5
    mask = np.where(body, np.where(along < boundary, ANTERIOR, POSTERIOR), BACKGROUND)

    texture = gaussian_filter(rng.standard_normal(shape), 2.5)
    texture /= texture.std()
    tissue = np.select([texture < -0.9, texture < 0.1], [0.15, 0.6], 0.95)
    # A sheath of white matter and, on one side, fluid: without it grey would touch grey.
    sheath = (distance < radius + 1.5) & ~body & (ends > 0)
    tissue = np.where(sheath, np.where(z > centre_z + 1, 0.2, 0.95), tissue)
    tissue = np.where(body, 0.60 + 0.03 * texture, tissue)
    return tissue.astype(np.float32), mask.astype(np.uint8)


def expose(rng: np.random.Generator, tissue: Volume, place: Hospital) -> Volume:
    """Intensities as the hospital's scanner gives them: contrast, blur, coil, noise, scale."""
    seen = 0.6 + (tissue - 0.6) * place.contrast
    seen = gaussian_filter(seen, place.blur)
    coil = gaussian_filter(rng.standard_normal(tissue.shape), 12)
    seen = seen * (1 + place.bias * coil / np.abs(coil).max())
    # The magnitude of a signal with noise in both channels (Rice).
    noise = rng.normal(0, place.noise, size=(2, *tissue.shape))
    magnitude: Volume = np.hypot(seen + noise[0], noise[1]).astype(np.float32)
    return magnitude * np.float32(place.scale * rng.uniform(0.85, 1.1))


def write_phantom(out: Path, *, patients: int, site: int, seed: int) -> Data:
    """Write `images/` and `labels/` (…/NAME.nii.gz, 1 mm) and `patients.csv` below `out`.

    Every third patient or so has two volumes.

    Returns:
        Where the data lie, as a site's configuration says it.
    """
    place = hospital(site)
    for folder in ("images", "labels"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    with (out / "patients.csv").open("w", newline="", encoding="utf-8") as table:
        rows = csv.writer(table)
        rows.writerow(("file", "patient", "sex", "age", "manufacturer"))
        for number in range(patients):
            rng = np.random.default_rng([seed, site, number])
            age = int(np.clip(rng.normal(place.age, 14), 18, 95))
            sex = "female" if rng.random() < 0.5 else "male"
            size = float(rng.normal(1.03, 0.05) - 0.002 * max(0, age - 40))
            for volume in range(1 + int(rng.random() < 0.35)):
                name = f"phantom_{site:02d}_{number:04d}_{volume}.nii.gz"
                _write_volume(rng, out, name, place, size)
                person = f"PHH{site:02d}-{number:05d}"
                rows.writerow((name, person, sex, age, place.manufacturer))
    return Data(root=out, layout="nifti", patients=out / "patients.csv")


def _write_volume(
    rng: np.random.Generator, out: Path, name: str, place: Hospital, size: float
) -> None:
    width, depth, height = (int(n + rng.integers(-2, 3)) for n in _SHAPE)
    tissue, mask = render(rng, (width, depth, height), size=size)
    voxels = expose(rng, tissue, place)
    if place.dtype != "float32":
        voxels = np.clip(voxels, 0, np.iinfo(place.dtype).max).round()
    affine = np.eye(4)  # 1 mm, RAS+
    affine[:3, 3] = rng.uniform(-40, 40, size=3).round(1)
    for folder, array in (("images", voxels.astype(place.dtype)), ("labels", mask)):
        image = nibabel.Nifti1Image(array, affine)
        image.header.set_xyzt_units("mm")
        nibabel.save(image, out / folder / name)
