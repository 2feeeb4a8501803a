"""What a reader learns from the header of one file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Header:
    """Attributes:
    shape: of the pixel or voxel array as the file orders it: (rows, columns), or (x, y, z, …).
    affine: voxel to world (mm), 4×4; none for a radiograph.
    patient_id: the raw identifier, replaced by its pseudonym before anything is stored; none for
        a mask, whose patient is its image's.
    instance_uid: names this one image wherever it is copied to, if the format has such a name.
    """

    shape: tuple[int, ...]
    affine: tuple[tuple[float, ...], ...] | None = None
    patient_id: str | None = field(default=None, repr=False)
    instance_uid: str | None = field(default=None, repr=False)
    attributes: Mapping[str, str] = field(default_factory=dict)
