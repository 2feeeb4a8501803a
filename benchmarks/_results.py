"""Results of heterogeneity.py: kept in a file as they come, and shown as a table in Markdown."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Quality:
    """One evaluation. Each hospital's headline metric, the worst group's, and the widest gap."""

    hospitals: dict[str, float]
    mean: float
    worst_group: float | None
    group: str | None
    gap: float | None

    @property
    def worst_hospital(self) -> float:
        return min(self.hospitals.values())


@dataclass(frozen=True)
class Result:
    """One training.

    Attributes:
        key: what the result depends on.
        course: the mean by round.
        bytes_up: of one hospital's updates.
    """

    key: str
    setting: str
    strategy: str
    seed: int
    rounds: int
    quality: Quality
    course: dict[int, float]
    bytes_up: float
    seconds: float


def read(path: Path | None) -> dict[str, Result]:
    if path is None or not path.exists():
        return {}
    return {row["key"]: _result(row) for row in json.loads(path.read_text())}


def _result(row: dict[str, Any]) -> Result:
    course = {int(number): value for number, value in row["course"].items()}
    return Result(**{**row, "course": course, "quality": Quality(**row["quality"])})


def write(path: Path | None, known: dict[str, Result]) -> None:
    if path is not None:
        path.write_text(json.dumps([asdict(result) for result in known.values()], indent=1))


def show(setting: str, rows: Mapping[str, Sequence[Result]], short: Mapping[str, str]) -> None:
    """Medians over seeds, with the least and the largest after them.

    What follows × is the median of ratios of one seed: of the worst hospital to pooled training's worst,
    of the gap to that of the strategy called fedavg.

    Args:
        rows: by strategy; the one of pooled training is there.
        short: for overrides in strategies' names, what to print in their place.
    """
    first = rows["pooled"]
    print(
        f"\n`{setting}`, {first[0].rounds} rounds, seeds {' '.join(str(r.seed) for r in first)}:\n"
    )
    print("| strategy | mean | worst hospital | worst group | gap | rounds | MB up |")
    print("|---|---|---|---|---|---|---|")
    pooled = {result.seed: result.quality for result in rows["pooled"]}
    averaged = {result.seed: result.quality for result in rows.get("fedavg", ())}
    for strategy, results in rows.items():
        found = [result.quality for result in results]
        reached = [_reached(result, 0.95 * pooled[result.seed].mean) for result in results]
        rounds = [number for number in reached if number is not None]
        name = strategy
        for overrides, word in short.items():
            name = name.replace(overrides, word)
        cells = [
            f"`{name}`",
            _spread([one.mean for one in found]),
            _spread([one.worst_hospital for one in found])
            + _times([(r.quality.worst_hospital, pooled[r.seed].worst_hospital) for r in results]),
            _spread([one.worst_group for one in found]),
            _spread([one.gap for one in found])
            + _times(
                [(r.quality.gap, averaged[r.seed].gap) for r in results if r.seed in averaged]
            ),
            f"{statistics.median(rounds):g}" if len(rounds) == len(reached) else "—",
            f"{statistics.median(result.bytes_up for result in results) / 1e6:.1f}",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


def _reached(result: Result, level: float) -> int | None:
    """The first round whose mean is at least this."""
    return min((number for number, mean in result.course.items() if mean >= level), default=None)


def _times(pairs: Sequence[tuple[float | None, float | None]]) -> str:
    """The median of their ratios."""
    ratios = [one / other for one, other in pairs if one is not None and other]
    return f" ×{statistics.median(ratios):.2f}" if ratios else ""


def _spread(values: Sequence[float | None]) -> str:
    """Median (least to largest)."""
    known = [value for value in values if value is not None]
    if not known:
        return "—"
    middle = f"{statistics.median(known):.3f}"
    return middle if len(known) == 1 else f"{middle} ({min(known):.3f} to {max(known):.3f})"
