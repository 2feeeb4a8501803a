"""Polygons in one slice to voxels and back.

Coordinates are (column, row) in pixels; the centre of a pixel has whole numbers, its edges halves.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from client_app.imaging.set_aside import Reason, Unfit

Points = NDArray[np.float64]

ON_CONTOUR = 0.01
"""Pixels: a centre this near to a contour lies on it. Contours are written with rounded millimetres."""

INSET = 0.02
"""Pixels by which `outlines` stay inside the pixels' outer edges, so that a reader that rounds points
to whole pixels (rt-utils, OpenCV) rounds to the region's own and not to its neighbours."""

_CROSSINGS_AT_ONCE = 2**20
_MOST_CROSSINGS = 2**26

_RIGHT, _DOWN, _LEFT, _UP = range(4)
_STEPS = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)])
# On a screen, whose rows count downwards, the right hand of one who walks right points down.
_RIGHT_HANDS = np.roll(_STEPS, -1, axis=0)


def filled(contours: Sequence[Points], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels whose centres lie inside or on closed polygons, each (points, 2), as (columns, rows).

    Inside is where a line to the outside crosses contours an odd number of times, all of them taken
    together: a polygon in a polygon is a hole, and a keyhole's channel, walked to and fro, is none.
    A centre on a contour belongs to the region whether the contour bounds it from outside or from
    within. Software that draws contours through the middles of the region's outermost pixels
    (OpenCV's `findContours`, hence rt-utils) so keeps these pixels.

    Raises:
        Unfit: more crossings of rows than a drawing can have.
    """
    columns, rows = shape
    turns = np.zeros((rows, columns + 1), dtype=np.int64)  # where a row goes in or out
    on = np.zeros((rows, columns), dtype=bool)
    along = np.zeros((rows, columns + 1), dtype=np.int64)  # +1 and -1 around contours along a row
    polygons = [_snapped(contour) for contour in contours]
    starts = np.concatenate([np.empty((0, 2)), *polygons])
    ends = np.concatenate([np.empty((0, 2)), *(np.roll(p, -1, axis=0) for p in polygons)])
    _mark_along_rows(along, starts, ends)
    low, high = np.minimum(starts[:, 1], ends[:, 1]), np.maximum(starts[:, 1], ends[:, 1])
    first = np.ceil(np.clip(low, 0, rows)).astype(np.int64)
    last = np.floor(np.clip(high, -1, rows - 1)).astype(np.int64)
    counts = np.where(low < high, np.maximum(last - first + 1, 0), 0)
    totals = np.cumsum(counts)
    crossings = int(totals[-1]) if totals.size else 0
    if crossings > _MOST_CROSSINGS:
        raise Unfit(Reason.TOO_LARGE, "its contours cross the image's rows too often")
    batches = np.searchsorted(totals, np.arange(0, crossings, _CROSSINGS_AT_ONCE), side="right")
    for part in np.split(np.arange(len(starts)), np.unique(batches)):
        edge = np.repeat(part, counts[part])
        offsets = np.cumsum(counts[part]) - counts[part]
        row = np.arange(edge.size) - np.repeat(offsets, counts[part]) + first[edge]
        (x0, y0), (x1, y1) = starts[edge].T, ends[edge].T
        x = x0 + (row - y0) / (y1 - y0) * (x1 - x0)
        half_open = row < high[edge]  # a corner is the beginning of one edge only
        column = np.ceil(np.clip(x, 0, columns)).astype(np.int64)
        np.add.at(turns, (row[half_open], column[half_open]), 1)
        nearest = np.rint(np.clip(x, -1, columns))
        touched = (np.abs(x - nearest) <= ON_CONTOUR) & (nearest >= 0) & (nearest < columns)
        on[row[touched], nearest[touched].astype(np.int64)] = True
    inside: NDArray[np.bool_] = np.cumsum(turns, axis=1)[:, :columns] % 2 == 1
    on |= np.cumsum(along, axis=1)[:, :columns] > 0
    return (inside | on).T


def _snapped(points: Points) -> Points:
    whole = np.rint(points)
    return np.where(np.abs(points - whole) <= ON_CONTOUR, whole, points)


def _mark_along_rows(along: NDArray[np.int64], starts: Points, ends: Points) -> None:
    """Edges that run along a row of centres; of a polygon of one point, this point."""
    rows, columns = along.shape[0], along.shape[1] - 1
    y = starts[:, 1]
    flat = (y == ends[:, 1]) & (y == np.rint(y)) & (y >= 0) & (y < rows)
    row = y[flat].astype(np.int64)
    left = np.minimum(starts[flat, 0], ends[flat, 0])
    right = np.maximum(starts[flat, 0], ends[flat, 0])
    first = np.ceil(np.clip(left, 0, columns)).astype(np.int64)
    behind = np.floor(np.clip(right, -1, columns - 1)).astype(np.int64) + 1
    some = first < behind
    np.add.at(along, (row[some], first[some]), 1)
    np.add.at(along, (row[some], behind[some]), -1)


def outlines(region: NDArray[np.bool_]) -> list[Points]:
    """Closed polygons (points, 2) around the pixels of `region` (columns, rows).

    They run along the pixels' edges, `INSET` from them.

    Pixels that touch at a corner only get a polygon each. A hole is joined to the outline around it
    by a channel of no width, through the region's own pixels: the keyhole of DICOM PS3.3 C.8.8.6.3,
    which readers understand that take the contours of a slice one by one.
    """
    columns, rows = region.shape
    framed = np.zeros((columns + 2, rows + 2), dtype=bool)
    framed[1:-1, 1:-1] = region
    edges = _Edges(framed)
    following = edges.following()
    bridge = _bridges(framed, edges, following)

    polygons = []
    seen = np.zeros(len(following), dtype=bool)
    for beginning in range(len(following)):
        points: list[tuple[float, float]] = []
        edge = beginning
        while not seen[edge]:
            seen[edge] = True
            points.append(edges.corner(edge))
            if edge in bridge:
                points += [edges.middle(edge), edges.middle(bridge[edge])]
                edge = bridge[edge]
            edge = int(following[edge])
        if points:
            polygons.append(_without_needless(np.array(points)))
    return polygons


class _Edges:
    """Sides of pixels between region and not region, each walked with the region at the right hand.

    Corner (i, j) lies up and left of the framed pixel (i, j), hence at (i - 1.5, j - 1.5) pixels.
    """

    def __init__(self, framed: NDArray[np.bool_]) -> None:
        sides = []
        for direction, (to_start, hand) in enumerate(
            zip(((0, 0), (1, 0), (1, 1), (0, 1)), _RIGHT_HANDS, strict=True)
        ):
            outside = np.roll(framed, hand, axis=(0, 1))  # of each pixel the one at the left hand
            pixels = np.argwhere(framed & ~outside)
            starts = pixels + np.array(to_start)
            sides.append(np.column_stack([starts, np.full(len(starts), direction)]))
        self._sides = np.concatenate(sides)
        self.number = {(int(x), int(y), int(d)): n for n, (x, y, d) in enumerate(self._sides)}
        self._before = np.zeros(len(self._sides), dtype=np.int64)

    def following(self) -> NDArray[np.int64]:
        """The next edge of each: at a corner where pixels only touch, the one of the same pixel."""
        result = np.zeros(len(self._sides), dtype=np.int64)
        ends = self._sides[:, :2] + _STEPS[self._sides[:, 2]]
        for number, (x, y) in enumerate(ends.tolist()):
            direction = self.direction(number)
            result[number] = next(
                self.number[x, y, turned]
                for turned in ((direction + 1) % 4, direction, (direction + 3) % 4)
                if (x, y, turned) in self.number
            )
        self._before[result] = np.arange(len(result))
        return result

    def direction(self, edge: int) -> int:
        return int(self._sides[edge, 2])

    def start(self, edge: int) -> tuple[int, int]:
        return int(self._sides[edge, 0]), int(self._sides[edge, 1])

    def corner(self, edge: int) -> tuple[float, float]:
        """Where it starts, in pixels, drawn into the region."""
        inwards = {self.direction(edge), self.direction(int(self._before[edge]))}
        dx, dy = sum(_RIGHT_HANDS[direction] for direction in inwards)
        x, y = self.start(edge)
        return x - 1.5 + INSET * float(dx), y - 1.5 + INSET * float(dy)

    def middle(self, edge: int) -> tuple[float, float]:
        """Of an upright edge, where it passes the centres of a row."""
        x, y = self.start(edge)
        up = self.direction(edge) == _UP
        return x - 1.5 + (INSET if up else -INSET), float(y - 2 if up else y - 1)


def _bridges(
    framed: NDArray[np.bool_], edges: _Edges, following: NDArray[np.int64]
) -> dict[int, int]:
    """For each hole an upright edge of it and the first edge that lies left of it, both ways.

    That edge belongs to a polygon that begins further left, so that all holes are joined at last.
    """
    result: dict[int, int] = {}
    seen = np.zeros(len(following), dtype=bool)
    for beginning in range(len(following)):
        loop = []
        edge = beginning
        while not seen[edge]:
            seen[edge] = True
            loop.append(edge)
            edge = int(following[edge])
        if not loop:
            continue
        leftmost = min(
            loop, key=lambda edge: (edges.start(edge)[0], edges.direction(edge) != _DOWN)
        )
        if edges.direction(leftmost) != _DOWN:
            continue  # the region lies right of its left side: no hole
        x, row = edges.start(leftmost)
        column = x - 1
        while framed[column, row]:
            column -= 1
        other = edges.number[column + 1, row + 1, _UP]
        result[leftmost], result[other] = other, leftmost
    return result


def _without_needless(points: Points) -> Points:
    """Leave out points in the middle of a straight run."""
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    bends = np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]) > 1e-9
    back = (before * after).sum(axis=1) < 0  # a channel that ends where it began
    kept: Points = points[bends | back]
    return kept
