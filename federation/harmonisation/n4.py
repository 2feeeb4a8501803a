"""The receive coil's uneven brightness taken out of MR volumes: N4 (Tustison et al. 2010).

doi:10.1109/TMI.2010.2046908, by SimpleITK. The field is fitted on a shrunken volume with few iterations,
which finds what is smooth, and is divided out of the whole one, before the task cuts and scales it.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Iterator
from typing import Any

import numpy as np
from monai.data import MetaTensor
from numpy.typing import NDArray
from pydantic import Field

from federation.schema import Closed, ConfigError
from federation.tasks import Task
from federation.tasks._foreground import foreground
from federation.tasks._volumes import require_finite, voxel_size

# Voxels that shrinking leaves along each axis, if there were so many: B-splines need some.
_LEAST_EDGE = 16


class Options(Closed):
    """`shrink`: voxels that become one along each axis; `levels`: grids, each twice as fine."""

    shrink: int = Field(default=4, ge=1, le=16)
    levels: int = Field(default=3, ge=1, le=5)
    iterations: int = Field(default=20, ge=1, le=200, description="of each level, at most")
    threshold: float = Field(default=1e-3, gt=0, le=0.1, description="change below which it ends")


def check(options: Options, task: Task) -> None:
    if task.spatial_dims != 3 or task.selection.modalities != {"MR"}:
        raise ConfigError(
            f"harmonisation=n4 mends the coils of MR volumes; task {task.name} does not read these "
            "alone: leave it out"
        )
    if importlib.util.find_spec("SimpleITK") is None:
        raise ConfigError("harmonisation=n4 needs SimpleITK: pip install 'consilium[n4]'")


def correct(image: MetaTensor, *, options: Options) -> MetaTensor:
    """The volume (channels, *spatial) over its field, whose mean in the patient is 1.

    Raises:
        ValueError: no patient stands out, or values that are not finite.
    """
    require_finite(image)
    spacing = voxel_size(image).tolist()
    corrected: MetaTensor = image.clone().float()
    for number in range(len(image)):
        voxels = np.asarray(image[number], dtype=np.float32)
        flat = voxels / field(voxels, spacing, options)
        corrected[number] = MetaTensor(flat).as_tensor()
    return corrected


def field(
    voxels: NDArray[np.float32], spacing: list[float], options: Options
) -> NDArray[np.float32]:
    """The factor on each voxel, float32, of geometric mean 1 in the patient.

    Args:
        spacing: mm between voxels along each axis.

    Raises:
        ValueError: no patient stands out.
    """
    sitk: Any = importlib.import_module("SimpleITK")
    patient = foreground(voxels)
    # Logarithms are taken; magnitudes are no less than 0, other scales are moved up.
    positive = voxels - min(0.0, float(voxels.min()))
    volume, mask = (
        sitk.GetImageFromArray(np.ascontiguousarray(array.T))  # SimpleITK's first axis is the last
        for array in (positive, patient.astype(np.uint8))
    )
    for one in (volume, mask):
        one.SetSpacing(spacing)
    factors = [max(1, min(options.shrink, size // _LEAST_EDGE)) for size in voxels.shape]
    with _one_thread(sitk):
        fitting = sitk.N4BiasFieldCorrectionImageFilter()
        fitting.SetMaximumNumberOfIterations([options.iterations] * options.levels)
        fitting.SetConvergenceThreshold(options.threshold)
        fitting.Execute(sitk.Shrink(volume, factors), sitk.Shrink(mask, factors))
        logarithm = sitk.GetArrayFromImage(fitting.GetLogBiasFieldAsImage(volume)).T
    factor: NDArray[np.float32] = np.exp(logarithm - logarithm[patient].mean()).astype(np.float32)
    return factor


@contextlib.contextmanager
def _one_thread(sitk: Any) -> Iterator[None]:
    """On several threads sums end in other bits. What N4 is made of takes the process's number."""
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)
