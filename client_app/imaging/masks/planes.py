"""Planes of a mask file onto the voxels of an image that has a grid of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client_app.imaging.masks.source import Slice
from client_app.imaging.set_aside import Reason, Unfit

_SAME_VOXEL = 0.05
"""Voxels: planes this near to the image's own are the image's own."""
_TIE = 1e-4
"""Voxels: a centre on the border of two voxels belongs to the one of the higher index."""

_Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Stack:
    """The places that a file has frames for.

    Attributes:
        places: parallel, in the file's order.
        classes: for each place those of its pixels, (columns, rows).
        thickness: mm along the normal that a frame speaks for.
    """

    places: list[Slice]
    classes: list[_Pixels]
    thickness: float


def _normal(place: Slice) -> NDArray[np.float64]:
    along_row, down_column = np.reshape(place.orientation, (2, 3))
    normal = np.cross(along_row, down_column)
    length = float(np.linalg.norm(normal))
    if not 0.9 < length < 1.1:
        raise Unfit(Reason.NO_GEOMETRY, "its orientation is no pair of perpendicular directions")
    return np.asarray(normal / length, dtype=np.float64)


def distances_along_normal(places: Sequence[Slice]) -> NDArray[np.float64]:
    """Of each place along the normal, in mm."""
    return np.array([place.position for place in places]) @ _normal(places[0])


def lay(stack: Stack, mask: _Pixels, to_image: NDArray[np.floating]) -> bool:
    """Put the planes into the slices that they are, if each of them is one."""
    columns, rows, count = mask.shape
    corners = np.array([(0, 0), (columns - 1, 0), (0, rows - 1)], dtype=np.float64)
    slice_of = []
    for place, classes in zip(stack.places, stack.classes, strict=True):
        voxels = _apply(to_image, place.world(corners))
        number = int(np.rint(np.clip(voxels[0, 2], -1, count)))
        expected = np.column_stack([corners, np.full(3, number)])
        inside = 0 <= number < count
        if classes.shape != (columns, rows):
            return False
        if inside and np.abs(voxels - expected).max() > _SAME_VOXEL:
            return False
        slice_of.append(number if inside else -1)
    used = [number for number in slice_of if number >= 0]
    if not used or len(set(used)) < len(used):
        return False
    for number, classes in zip(slice_of, stack.classes, strict=True):
        if number >= 0:
            mask[:, :, number] = classes
    return True


def resample(stack: Stack, mask: _Pixels, to_world: NDArray[np.floating]) -> bool:
    """Give each voxel of the image the class of the pixel and plane that its centre lies in.

    A centre lies in the nearest plane that is at most half a thickness away along the normal.
    Says whether any does.
    """
    columns, rows, count = mask.shape
    order = np.argsort(distances_along_normal(stack.places))
    distances = distances_along_normal(stack.places)[order]
    middles = (distances[1:] + distances[:-1]) / 2
    normal, tie = _normal(stack.places[0]), _TIE * stack.thickness
    between_rows, between_columns = stack.places[0].spacing
    along_row, down_column = np.reshape(stack.places[0].orientation, (2, 3))
    in_plane = np.stack([along_row / between_columns, down_column / between_rows], axis=1)
    grid = np.stack(np.meshgrid(np.arange(columns), np.arange(rows), indexing="ij"), axis=-1)
    meets = False
    for number in range(count):
        voxels = np.concatenate([grid, np.full((columns, rows, 1), number)], axis=-1)
        points = _apply(to_world, voxels.reshape(-1, 3).astype(np.float64))
        away = points @ normal
        nearest = np.searchsorted(middles, away + tie, side="right")
        near = np.abs(away - distances[nearest]) <= stack.thickness / 2 + tie
        values = np.zeros(columns * rows, dtype=np.uint8)
        for plane in np.unique(nearest[near]):
            place, classes = stack.places[order[plane]], stack.classes[order[plane]]
            here = np.flatnonzero(near & (nearest == plane))
            pixels = np.floor((points[here] - place.position) @ in_plane + 0.5 + _TIE)
            inside = np.all((pixels >= 0) & (pixels < classes.shape), axis=1)
            column, row = pixels[inside].astype(np.int64).T
            values[here[inside]] = classes[column, row]
            meets |= bool(inside.any())
        mask[:, :, number] = values.reshape(columns, rows)
    return meets


def has_centre_inside(
    stack: Stack, shape: tuple[int, int, int], to_image: NDArray[np.floating]
) -> bool:
    """Whether a pixel's centre lies in the image: thin planes can lie between its slices' centres."""
    for place, classes in zip(stack.places, stack.classes, strict=True):
        pixels = np.argwhere(np.ones(classes.shape, dtype=bool)).astype(np.float64)
        voxels = _apply(to_image, place.world(pixels))
        if np.any(np.all((voxels >= -0.5) & (voxels < np.array(shape) - 0.5), axis=1)):
            return True
    return False


def _apply(affine: NDArray[np.floating], points: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(points @ affine[:3, :3].T + affine[:3, 3], dtype=np.float64)
