"""Planes of one series to volumes: pure geometry (DICOM PS3.3 C.7.6.2), in any order of files.

Positions and orientations decide; SliceThickness, SliceLocation and InstanceNumber do not.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client_app.imaging.header import Affine, Header, Plane
from client_app.imaging.set_aside import Reason

Member = tuple[int, int]
"""Position of a plane's header in the series, and the number of its frame or tile there."""

Places = NDArray[np.float64]

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_MOST_ORIENTATIONS = 256
# Planning views: several orientations that cross at more than this, each of few slices.
_CROSSING = math.cos(math.radians(30))
_FEW = 15
_STEEPEST_TILT = 45.0  # degrees; gantries tilt by 30 at most
_THICKNESS_OF_ONE = 1.0  # mm


@dataclass(frozen=True)
class Stack:
    """One volume.

    Attributes:
        planes: ordered along the normal (rows × columns, right-handed), so that projections ascend.
        shape: (columns, rows, slices).
        affine: voxel (column, row, slice) to RAS+ in mm, sheared if the gantry was tilted.
        words: what tells it from other volumes of its series, see `header.Plane.stack`.
        note: what was found and could be handled.
    """

    planes: tuple[Member, ...]
    shape: tuple[int, int, int]
    affine: Affine
    words: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Rejected:
    """Planes that make no volume."""

    planes: tuple[Member, ...]
    reason: Reason
    detail: str = ""


@dataclass(frozen=True)
class _Planes:
    """Planes of equal size, parallel and of equal spacing and words.

    Attributes:
        members, planes, order: in one and the same order.
        at: positions (n, 3), mm LPS.
        shape: (rows, columns).
    """

    members: list[Member]
    planes: list[Plane]
    at: Places
    shape: tuple[int, int]

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, picked: Sequence[int] | NDArray[np.intp]) -> _Planes:
        chosen = [int(number) for number in picked]
        return _Planes(
            [self.members[number] for number in chosen],
            [self.planes[number] for number in chosen],
            self.at[chosen],
            self.shape,
        )

    @property
    def axes(self) -> tuple[Places, Places, Places]:
        """Unit vectors along a row, down a column, and along the normal, of the first plane."""
        row, column = np.reshape(self.planes[0].orientation, (2, 3))
        normal = np.cross(row, column)
        return row, column, normal / np.linalg.norm(normal)

    def rejected(self, reason: Reason, detail: str) -> Rejected:
        return _rejected([self], reason, detail)


@dataclass(frozen=True)
class Tolerances:
    """Attributes:
    parallel: largest difference of direction cosines, and of pixel spacings relative to themselves,
        within one volume.
    same_place: mm along the normal within which two planes are at one place.
    spacing: how far a slice may lie from where even spacing puts it, relative to the spacing …
    least: … or in mm, whichever is larger.
    """

    parallel: float = 1e-3
    same_place: float = 0.01
    spacing: float = 0.01
    least: float = 0.05


def group(
    headers: Sequence[Header], tolerances: Tolerances = Tolerances()
) -> tuple[list[Stack], list[Rejected]]:
    """The volumes of one series, in the order in which they were acquired, and what makes none.

    Every plane of every header is in exactly one stack or rejection. The result does not depend on
    the order of the headers, but for the numbers that name them. O(n log n) for n planes.

    A repeat of a place makes a further volume where every place has equally many; their `order` says
    which is which. Where they have not, planes are told apart by the first number of `order` (the
    temporal position), or the second (the acquisition), if that resolves all repeats.

    A lone slice has no spacing; its volume is taken to be 1 mm thick, and says so.
    """
    stacks: list[Stack] = []
    rejected: list[Rejected] = []
    starts: list[tuple[tuple[float, ...], tuple[str, ...], Member]] = []
    geometries = list(_geometries(headers, tolerances))
    several = len(geometries)
    if _is_localiser(geometries):
        detail = f"{several} orientations of at most {_FEW} slices"
        return [], [_rejected(geometries, Reason.LOCALISER, detail)]
    lone = [planes for planes in geometries if len(planes) == 1 and several > 1]
    if lone:
        detail = (
            f"{len(lone):,} of {several:,} sizes, orientations or pixel spacings have one slice"
        )
        rejected.append(_rejected(lone, Reason.SLICES_DIFFER, detail))
    for planes in geometries:
        if len(planes) == 1 and several > 1:
            continue
        for same in _by_words(planes):
            for made in _volumes(same, tolerances):
                if isinstance(made, Rejected):
                    rejected.append(made)
                    continue
                stacks.append(made[0])
                starts.append((made[1], made[0].words, made[0].planes[0]))
    ordered = sorted(range(len(stacks)), key=lambda number: starts[number])
    return [stacks[number] for number in ordered], sorted(rejected, key=lambda one: one.planes)


def _geometries(headers: Sequence[Header], tolerances: Tolerances) -> Iterator[_Planes]:
    """Planes of equal shape whose orientation and pixel spacing are the same."""
    by_shape: dict[tuple[int, int], list[tuple[Member, Plane]]] = defaultdict(list)
    for position, header in enumerate(headers):
        rows, columns = header.shape
        for plane in header.planes:
            by_shape[rows, columns].append(((position, plane.number), plane))
    for shape, found in sorted(by_shape.items()):
        found.sort(key=lambda pair: (pair[1].order, pair[1].position, pair[1].stack, pair[0]))
        members, planes = [pair[0] for pair in found], [pair[1] for pair in found]
        at = np.array([plane.position for plane in planes], dtype=np.float64)
        whole = _Planes(members, planes, at, shape)
        # Logarithms make differences of spacings relative.
        features = np.array([[*plane.orientation, *plane.spacing] for plane in planes])
        features[:, 6:] = np.log(features[:, 6:])
        for picked in _clusters(features, tolerances.parallel):
            yield whole[picked]


def _clusters(features: Places, tolerance: float) -> Iterator[NDArray[np.intp]]:
    """Rows that differ by no more than the tolerance from the first of them, one after another."""
    different, back = np.unique(features, axis=0, return_inverse=True)
    back = back.reshape(-1)
    labels = np.full(len(different), -1)
    for label in range(_MOST_ORIENTATIONS):
        left = np.flatnonzero(labels < 0)
        if not left.size:
            break
        near = np.abs(different[left] - different[left[0]]).max(axis=1) <= tolerance
        labels[left[near]] = label
    # Beyond so many none is a volume: each of the rest is left alone.
    rest = np.flatnonzero(labels < 0)
    labels[rest] = _MOST_ORIENTATIONS + np.arange(rest.size)
    of_row = labels[back]
    ordered = np.argsort(of_row, kind="stable")
    ends = np.flatnonzero(np.diff(of_row[ordered])) + 1
    yield from np.split(ordered, ends)


def _rejected(planes: Sequence[_Planes], reason: Reason, detail: str) -> Rejected:
    members = sorted(member for some in planes for member in some.members)
    return Rejected(tuple(members), reason, detail)


def _is_localiser(geometries: Sequence[_Planes]) -> bool:
    """Several orientations that cross, and few slices of each."""
    if len(geometries) < 2 or max(map(len, geometries)) > _FEW:
        return False
    normals = np.array([planes.axes[2] for planes in geometries])
    return bool((np.abs(normals @ normals[0]) < _CROSSING).any())


def _by_words(planes: _Planes) -> Iterator[_Planes]:
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, plane in enumerate(planes.planes):
        groups[plane.stack].append(number)
    for _, picked in sorted(groups.items()):
        yield planes[picked]


Made = tuple[Stack, tuple[float, ...]] | Rejected


def _volumes(planes: _Planes, tolerances: Tolerances) -> Iterator[Made]:
    """The volumes of parallel planes with equal words."""
    place = _places(planes, tolerances.same_place)
    repeats = np.bincount(place)
    if (repeats == repeats[0]).all():
        # `planes` is sorted by `order`, and a stable sort keeps that within each place.
        table = np.argsort(place, kind="stable").reshape(repeats.size, repeats[0])
        for picked in table.T:
            yield _volume(planes[picked], tolerances)
        return
    for depth in (1, 2):
        parts = _by_order(planes, depth)
        if len(parts) == repeats.max() and all(
            np.unique(place[part]).size == len(part) for part in parts
        ):
            for part in parts:
                yield _volume(planes[part], tolerances)
            return
    common = int(np.bincount(repeats).argmax())
    lacking = int((repeats.max() - repeats).sum())
    if common == repeats.max():  # most places have all: the others lack some
        detail = f"{lacking:,} of {repeats.size * repeats.max():,} in {repeats.max():,} volumes"
        yield planes.rejected(Reason.SLICES_MISSING, detail)
        return
    several = int((repeats > 1).sum())
    detail = f"{several:,} of {repeats.size:,} places have up to {repeats.max():,} slices"
    yield planes.rejected(Reason.SLICES_REPEATED, detail)


def _places(planes: _Planes, tolerance: float) -> NDArray[np.intp]:
    """For each plane, the number of its place along the normal, ascending."""
    along = planes.at @ planes.axes[2]
    ordered = np.argsort(along, kind="stable")
    place = np.empty(len(planes), dtype=np.intp)
    place[ordered] = np.concatenate([[0], np.cumsum(np.diff(along[ordered]) > tolerance)])
    return place


def _by_order(planes: _Planes, depth: int) -> list[list[int]]:
    parts: dict[tuple[float, ...], list[int]] = defaultdict(list)
    for number, plane in enumerate(planes.planes):
        parts[plane.order[:depth]].append(number)
    return [part for _, part in sorted(parts.items())]


def _volume(planes: _Planes, tolerances: Tolerances) -> Made:
    """A volume of planes at different places, if they are evenly spaced on a line."""
    row, column, normal = planes.axes
    along = planes.at @ normal
    planes = planes[np.argsort(along, kind="stable")]
    count, first = len(planes), planes.planes[0]
    earliest = min(plane.order for plane in planes.planes)
    step = normal * _THICKNESS_OF_ONE
    note = "one slice; its thickness is taken to be 1 mm"
    if count > 1:
        gaps = np.diff(np.sort(along))
        narrow = float(np.median(gaps[gaps <= 1.5 * gaps.min()]))
        allowed = max(tolerances.spacing * narrow, tolerances.least)
        times = np.round(gaps / narrow)
        if (np.abs(gaps - times * narrow) > allowed).any():
            detail = f"gaps of {gaps.min():.3f} to {gaps.max():.3f} mm"
            return planes.rejected(Reason.SPACING_VARIES, detail)
        if (times > 1).any():
            missing = int((times - 1).sum())
            return planes.rejected(
                Reason.SLICES_MISSING,
                f"{missing:,} of {count + missing:,}, in {int((times > 1).sum()):,} gaps",
            )
        step = (planes.at[-1] - planes.at[0]) / (count - 1)
        even = planes.at[0] + np.arange(count)[:, None] * step
        off = float(np.linalg.norm(planes.at - even, axis=1).max())
        if off > allowed:
            detail = f"a slice lies {off:.3f} mm off the even spacing of {narrow:.3f} mm"
            return planes.rejected(Reason.SPACING_VARIES, detail)
        sideways = step - (step @ normal) * normal
        tilt = math.degrees(math.atan2(float(np.linalg.norm(sideways)), float(step @ normal)))
        if tilt > _STEEPEST_TILT:
            return planes.rejected(
                Reason.SPACING_VARIES, f"slices shifted sideways, by {tilt:.0f}°"
            )
        tilted = float(np.linalg.norm(sideways)) * (count - 1) > allowed
        note = f"gantry tilted by {tilt:.1f}°" if tilted else ""
    affine = np.eye(4)
    affine[:3, 0] = row * first.spacing[1]  # PixelSpacing is between rows, then between columns
    affine[:3, 1] = column * first.spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = planes.at[0]
    affine = _LPS_TO_RAS @ affine + 0.0  # no negative zeros
    shape = (planes.shape[1], planes.shape[0], count)
    rows = tuple(tuple(map(float, values)) for values in affine)
    return Stack(tuple(planes.members), shape, rows, first.stack, note), earliest
