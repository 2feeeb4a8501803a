"""What a round costs beyond training, in our federation and in stock Flower, side by side.

    python benchmarks/round_overhead.py [--rounds 8] [--parameters 25000000] [--only tiny|large]
                                        [--json FILE]

Two hospitals on loopback; TLS, SuperNode authentication, a SQLite database, process isolation with
SuperExec secrets; Flower's own FedAvg with a ClientApp that only adds a constant (which favours it)
against `coordinator run` on phantom radiographs, one optimiser step a round. A round lasts from its
start to the next one's, so saving the model counts; the slowest hospital's training does not.
Memory is the largest resident set of any one process in a role.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _consilium
import _flower
import _phases
from _federation import Measured
from _processes import BenchmarkFailed
from rich.console import Console
from rich.table import Table

from federation import models, tasks

_TINY = 30_000  # parameters
_ROLES = (
    "SuperLink",
    "SuperExec (coordinator)",
    "ServerApp",
    "SuperNode",
    "SuperExec (hospital)",
    "ClientApp",
)


@dataclass(frozen=True)
class Comparison:
    name: str
    ours: Measured
    stock: Measured | None
    phases: dict[str, float]
    spans: dict[str, tuple[int, float]]


def main() -> None:
    arguments = _arguments()
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background job ignores SIGINT
        signal.signal(number, _interrupt)
    console = Console()
    sizes = {"tiny": _TINY, "large": arguments.parameters}
    done = []
    for name, parameters in sizes.items():
        if arguments.only in (None, name):
            console.print(f"measuring the {name} model: {arguments.rounds} rounds of each system …")
            done.append(_compare(name, parameters, arguments))
            _print(done[-1], console)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(_record(done), indent=1) + "\n")
        console.print(f"written: {arguments.json}")


def _compare(name: str, parameters: int, arguments: argparse.Namespace) -> Comparison:
    folder = Path(tempfile.mkdtemp(prefix="round_overhead_"))
    try:
        # one round more than is asked for: the first and the last are not counted
        rounds = arguments.rounds + 1
        traces = folder / "traces"
        ours = _consilium.measure(folder / "ours", parameters, rounds, traces)
        stock = None
        if not arguments.ours_alone:
            stock = _flower.measure(folder / "stock", _shapes(parameters, rounds), rounds)
        return Comparison(name, ours, stock, _phases.breakdown(traces), _phases.spans(traces))
    finally:
        if arguments.keep:
            print(f"kept: {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _shapes(parameters: int, rounds: int) -> list[tuple[int, ...]]:
    """Shapes of our model's arrays, which stock Flower exchanges too."""
    experiment = _consilium.experiment(parameters, rounds)
    network = models.build(experiment.model, tasks.of_experiment(experiment), seed=experiment.seed)
    return [array.shape for array in models.arrays_of(network).values()]


def _print(comparison: Comparison, console: Console) -> None:
    ours, stock = comparison.ours, comparison.stock
    table = Table(title=f"{comparison.name}: {ours.parameters:,} float32 parameters")
    for title in ("", "Consilium", "Flower", "ratio"):
        table.add_column(title, justify="left" if not title else "right")
    rows = [
        _row("seconds a round beyond training", ours.seconds, stock.seconds if stock else None),
        _row("MB down, a round and hospital", ours.bytes_down / 1e6,
             stock.bytes_down / 1e6 if stock else None),
        _row("MB up, a round and hospital", ours.bytes_up / 1e6,
             stock.bytes_up / 1e6 if stock else None),
    ]  # fmt: skip
    for role in _ROLES:
        theirs = stock.peaks.get(role, 0) / 1e6 if stock else None
        rows.append(_row(f"peak MB, {role}", ours.peaks.get(role, 0) / 1e6, theirs, digits=0))
    for row in rows:
        table.add_row(*row)
    console.print(table)
    phases = Table(title=f"{comparison.name}: where a round of ours goes")
    phases.add_column("phase")
    phases.add_column("seconds", justify="right")
    for phase, seconds in comparison.phases.items():
        phases.add_row(phase, f"{seconds:.3f}")
    phases.add_row("together", f"{sum(comparison.phases.values()):.3f}")
    console.print(phases)


def _row(label: str, ours: float, stock: float | None, *, digits: int = 2) -> tuple[str, ...]:
    other = f"{stock:.{digits}f}" if stock is not None else ""
    ratio = f"{ours / stock:.2f}" if stock else ""
    return label, f"{ours:.{digits}f}", other, ratio


def _record(done: list[Comparison]) -> dict[str, Any]:
    return {
        "machine": {"cores": os.cpu_count(), "system": platform.platform()},
        "comparisons": [
            {
                "name": c.name,
                "consilium": c.ours.as_json(),
                "flower": c.stock.as_json() if c.stock else None,
                "phases": c.phases,
                "calls": {name: {"n": n, "median": s} for name, (n, s) in c.spans.items()},
            }
            for c in done
        ],
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--rounds", type=int, default=8, help="at least 3; the first is not counted"
    )
    parser.add_argument("--parameters", type=int, default=25_000_000, help="of the large model")
    parser.add_argument("--only", choices=("tiny", "large"))
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--ours-alone", action="store_true", help="leave stock Flower out")
    parser.add_argument("--keep", action="store_true", help="keep the temporary folder, with logs")
    arguments = parser.parse_args()
    if arguments.rounds < 3:
        parser.error("--rounds must be at least 3")
    return arguments


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    try:
        main()
    except BenchmarkFailed as failure:
        raise SystemExit(f"round_overhead: {failure}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
