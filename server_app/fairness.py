"""What hospitals' counts by group say of a model: the part `fairness` of a row of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from logging import WARNING
from typing import Any

import numpy as np
from flwr.common.logger import log
from numpy.typing import NDArray

from federation.fairness import measures, table
from federation.fairness.counts import noise
from federation.fairness.layout import WITHHELD, Layout
from federation.fairness.table import FairnessTable
from federation.figures import Summed
from federation.schema import Experiment
from federation.tasks import Task

Ints = NDArray[np.int64]

_DIGITS = 6


@dataclass(frozen=True)
class Counted:
    """How the counts of a run are read.

    Attributes:
        seed: of the bootstrap, with the round: a run that is repeated has the same rows.
        noise: standard deviation of the noise in each of a hospital's counts; 0: they are exact.
    """

    layout: Layout
    seed: int
    noise: float = 0.0

    @classmethod
    def of(cls, experiment: Experiment, task: Task) -> Counted | None:
        """An experiment's; None where no counts leave hospitals."""
        layout = Layout.of_experiment(experiment, task)
        if layout is None:
            return None
        return cls(
            layout, experiment.seed, noise(layout) if experiment.privacy is not None else 0.0
        )

    def of_each(self, counts: Mapping[str, Ints], round_: int) -> dict[str, Any] | None:
        """The groups of all hospitals together, and each hospital's cases in all.

        Args:
            counts: by hospital. None comes of none.
        """
        if not counts:
            return None
        total = np.sum(list(counts.values()), axis=0)
        row = self._row(total, len(counts), round_)
        row["hospitals"] = {name: self._overall(own, round_) for name, own in counts.items()}
        return row

    def of_sum(self, summed: Summed, round_: int) -> dict[str, Any] | None:
        """The groups of all hospitals together.

        None where nobody was evaluated, or where a hospital gave what no cases are counted as: in a
        sum, nobody can say which.
        """
        counts = summed.counts
        if counts is None or not counts.any():
            return None
        if self.noise == 0 and not self.layout.adds_up(counts):
            log(WARNING, "round %d: the sum of counts by group is none of cases: left out", round_)
            return None
        return self._row(counts, len(summed.hospitals), round_)

    def _row(self, counts: Ints, hospitals: int, round_: int) -> dict[str, Any]:
        found = self._table(counts, self.layout, hospitals, round_)
        return {
            "rows": [_plain(asdict(row)) for row in found.rows],
            "gaps": [_plain(asdict(gap)) for gap in found.gaps],
            "withheld": found.withheld,
            "worst_group": self._worst_group(found),
            "hospitals": {},
        }

    def _table(self, counts: Ints, layout: Layout, hospitals: int, round_: int) -> FairnessTable:
        noise = self.noise * math.sqrt(hospitals)
        seed = int(np.random.SeedSequence([self.seed, round_]).generate_state(1)[0])
        found = table.of_counts(counts, layout, seed=seed, noise=noise)
        if noise == 0:
            return found
        # where there is noise nothing is withheld: what those cells hold is noise alone
        rows = tuple(row for row in found.rows if f"={WITHHELD}" not in row.group)
        return replace(found, rows=rows, withheld={})

    def _overall(self, counts: Ints, round_: int) -> dict[str, Any]:
        """A hospital's cases of all groups together, which are the first cells, and what it withheld."""
        alone = replace(self.layout, attributes=(), words=())
        found = self._table(counts[: alone.size], alone, 1, round_)
        return {
            "rows": [_plain(asdict(row)) for row in found.rows],
            "withheld": self._withheld(counts),
        }

    def _withheld(self, counts: Ints) -> dict[str, int]:
        """Of a hospital's cases, by attribute those whose word it withheld."""
        if self.noise > 0:
            return {}  # under privacy nothing is
        histograms = counts.reshape(self.layout.shape)[:, 0].astype(np.float64)
        cases = measures.cases(histograms, self.layout).sum(axis=-1)
        held = zip(self.layout.groups, cases.tolist(), strict=True)
        return {
            group.attributes[0]: int(number)
            for group, number in held
            if len(group.words) == 1 and group.words[0][1] == WITHHELD and number > 0
        }

    def _worst_group(self, found: FairnessTable) -> dict[str, Any] | None:
        """Lowest by the first metric of the layout, of all channels."""
        metric = measures.metrics(self.layout)[0].name
        least = self.layout.options.least_cases
        by_channel = (found.worst(metric, channel, least) for channel in self.layout.channels)
        rows = [row for row in by_channel if row is not None]
        if not rows:
            return None
        row = min(rows, key=lambda one: one.metrics[metric].value)
        one = row.metrics[metric]
        told = {"value": one.value, "low": one.low, "high": one.high}
        rounded = {name: round(number, _DIGITS) for name, number in told.items()}
        return {"group": row.group, "channel": row.channel, "metric": metric, **rounded}


def _plain(content: Any) -> Any:
    """As JSON holds it."""
    if isinstance(content, dict):
        return {key: _plain(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_plain(value) for value in content]
    return round(content, _DIGITS) if isinstance(content, float) else content
