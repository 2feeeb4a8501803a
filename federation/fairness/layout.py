"""The cells of a vector of counts: closed, public, and the same for every hospital of an experiment.

A group is the words of no attribute (`all`), of one, or of two; of each attribute every word of its list
has a cell, and so have `unknown` (nothing said, or nothing that we know) and `withheld` (said, but not
told: `suppression`). A table is all groups of the same attributes; every case is in one group of each
table. A case's measure is

- classification: a row by true label (0, 1) and a bin of score, for each channel. Two classes have one
  channel, the second class's; more have one a class, that class against all others.
- segmentation: one row with a bin of Dice, for each structure.

The last bins hold what has no measure, see `Layout.extra`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from federation.schema import AGES, ConfigError, Experiment, Fairness

if TYPE_CHECKING:  # the report names groups without torch
    from federation.tasks import Task

UNKNOWN = "unknown"
WITHHELD = "withheld"
OTHER = "other"
ALL = "all"

_LISTS: dict[str, tuple[str, ...]] = {
    "sex": ("female", "male"),
    "field_strength": ("0.5t", "1t", "1.5t", "3t", "7t"),
    "view": ("cc", "mlo", "ml", "lm", "pa", "ap", "lateral", OTHER),
    "breast_density": ("a", "b", "c", "d"),
}
_MOST_CELLS = 1 << 18  # 2 MB a hospital and round: what a letter of a secure sum may hold
_MOST_CASES = 1 << 40  # in a cell, of all hospitals: sums of them do not overflow
_FURTHEST = 8.0  # log odds, see `score_edges`
_UNDEFINED, _UNANSWERED = "undefined", "unanswered"


@dataclass(frozen=True)
class Group:
    """`words` by attribute; none for all cases."""

    words: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        return " & ".join(f"{attribute}={word}" for attribute, word in self.words) or ALL

    @property
    def attributes(self) -> tuple[str, ...]:
        return tuple(attribute for attribute, _ in self.words)

    @property
    def known(self) -> bool:
        """Whether it is a group of people or scanners, not of what is unknown or withheld."""
        return not any(word in (UNKNOWN, WITHHELD) for _, word in self.words)


@dataclass(frozen=True)
class Table:
    """All groups of some attributes: cells `first` … `first + size - 1` of the axis of groups.

    Attributes:
        columns: positions of its attributes in `Layout.attributes`.
        shape: how many words each has.
    """

    columns: tuple[int, ...]
    first: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """What each integer of a vector counts.

    Attributes:
        words: the list of each attribute, `unknown` and `withheld` last.
        channels: positive class, or structure, by position.
        edges: ascending, one more than bins: probabilities, or Dice.
    """

    options: Fairness
    attributes: tuple[str, ...]
    words: tuple[tuple[str, ...], ...]
    kind: str
    channels: tuple[str, ...]
    edges: NDArray[np.float64] = field(repr=False, compare=False)

    @classmethod
    def of(cls, options: Fairness, task: Task) -> Layout:
        """An experiment's.

        Raises:
            ConfigError: it has too many cells.
        """
        if task.kind == "classification":
            channels = task.classes[1:] if len(task.classes) == 2 else task.classes
            edges = score_edges(options.score_bins)
        else:
            channels = task.classes[1:]
            edges = np.arange(options.dice_bins + 1) / options.dice_bins
        layout = cls(
            options=options,
            attributes=options.attributes,
            words=words_of(options),
            kind=task.kind,
            channels=channels,
            edges=edges,
        )
        if layout.size > _MOST_CELLS:
            raise ConfigError(
                f"fairness: {layout.size:,} counts a hospital are more than {_MOST_CELLS:,}: name "
                "fewer attributes or manufacturers, set pairs=false or take fewer bins"
            )
        return layout

    @classmethod
    def of_experiment(cls, experiment: Experiment, task: Task) -> Layout | None:
        """Of the counts that leave hospitals; None where none do. Raises as `of`."""
        return None if experiment.counted is None else cls.of(experiment.counted, task)

    @property
    def bins(self) -> int:
        return len(self.edges) - 1

    @property
    def extra(self) -> tuple[str, ...]:
        """What the bins after the last one hold.

        `unanswered`: the model's answer is not finite. `undefined`: neither the answer nor, as the
        task sees it, the truth holds the structure, so there is no Dice.
        """
        return (_UNANSWERED,) if self.kind == "classification" else (_UNDEFINED, _UNANSWERED)

    @property
    def rows(self) -> int:
        return 2 if self.kind == "classification" else 1

    @cached_property
    def tables(self) -> tuple[Table, ...]:
        """`all`, by one attribute each, by pairs of them."""
        most = 2 if self.options.pairs else 1
        tables: list[Table] = []
        first = 0
        for count in range(most + 1):
            for columns in combinations(range(len(self.attributes)), count):
                table = Table(columns, first, tuple(len(self.words[c]) for c in columns))
                tables.append(table)
                first += table.size
        return tuple(tables)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        return tuple(
            Group(
                tuple(
                    (self.attributes[c], self.words[c][w])
                    for c, w in zip(t.columns, at, strict=True)
                )
            )
            for t in self.tables
            for at in np.ndindex(t.shape)
        )

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Groups, channels, rows, bins with the extra ones."""
        groups = sum(table.size for table in self.tables)
        return groups, len(self.channels), self.rows, self.bins + len(self.extra)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def adds_up(self, vector: NDArray[np.int64]) -> bool:
        """Whether cases could have been counted so, without noise.

        No count is negative, each table divides the same cases, and so does each channel.
        """
        if vector.shape != (self.size,) or (vector < 0).any() or (vector > _MOST_CASES).any():
            return False
        counts = vector.reshape(self.shape)
        every = counts[0]
        tables = (counts[t.first : t.first + t.size].sum(axis=0) for t in self.tables)
        return all((table == every).all() for table in tables) and (
            len(set(every.sum(axis=(1, 2)).tolist())) <= 1
        )

    def word(self, attribute: str, said: object) -> int:
        """Position of a word in its attribute's list; what is on no list has no other place to show."""
        words = self.words[self.attributes.index(attribute)]
        if attribute == "age_band":
            said = _coarser(said, self.options.age_cuts)
        if not isinstance(said, str) or said in ("", UNKNOWN, WITHHELD):
            return words.index(UNKNOWN)
        if said in words:
            return words.index(said)
        return words.index(OTHER if attribute == "manufacturer" else UNKNOWN)


def score_edges(bins: int) -> NDArray[np.float64]:
    """Probabilities (bins + 1,) between 0 and 1, symmetric about 1/2, which is one of them.

    They are equally spaced in t(p) = p / 2 + (log odds of p, cut at ±8) / 32 + 1/4. So a bin is at
    most 2 / bins wide, which bounds a calibration's error; and but for the first and last at most
    32 / bins wide in log odds, so that a model that is sure of itself still ranks cases finely.
    """
    wanted = np.arange(1, bins // 2) / bins
    low, high = np.full(wanted.shape, -800.0), np.zeros(wanted.shape)
    for _ in range(100):  # bisection on the log odds, below 0
        middle = (low + high) / 2
        scaled = 1 / (1 + np.exp(-middle)) / 2 + np.maximum(middle, -_FURTHEST) / 32 + 0.25
        low, high = np.where(scaled < wanted, middle, low), np.where(scaled < wanted, high, middle)
    below = 1 / (1 + np.exp(-high))
    return np.concatenate([[0.0], below, [0.5], 1 - below[::-1], [1.0]])


def words_of(options: Fairness) -> tuple[tuple[str, ...], ...]:
    """The list of each attribute, `unknown` and `withheld` last."""
    return tuple((*listed(name, options), UNKNOWN, WITHHELD) for name in options.attributes)


def listed(attribute: str, options: Fairness) -> tuple[str, ...]:
    """The words of an attribute that have a cell, but for `unknown` and `withheld`."""
    if attribute == "age_band":
        starts = (0, *options.age_cuts)
        ends = (*(f"-{cut - 1}" for cut in options.age_cuts), "+")
        return tuple(f"{start}{end}" for start, end in zip(starts, ends, strict=True))
    if attribute == "manufacturer":
        return (*options.manufacturers, OTHER)
    return _LISTS[attribute]


def _coarser(said: object, cuts: tuple[int, ...]) -> object:
    """The band of `cuts` that a hospital's band lies in."""
    starts = (0, *AGES)
    bands = [f"{a}-{b - 1}" for a, b in zip(starts, AGES, strict=False)] + [f"{AGES[-1]}+"]
    if said not in bands:
        return UNKNOWN
    start = starts[bands.index(str(said))]
    first = max(cut for cut in (0, *cuts) if cut <= start)
    later = [cut for cut in cuts if cut > start]
    return f"{first}-{later[0] - 1}" if later else f"{first}+"
