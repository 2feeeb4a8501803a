"""A round of a real deployment: in the open, under masks, encrypted; five hospitals.

    python benchmarks/secure_round.py [--hospitals 5] [--parameters 25000000] [--rounds 4] [--turns 2]
                                      [--variants plain int16 masks ckks] [--ckks-rounds 3]
                                      [--ckks-turns 1] [--json FILE] [--keep]

`coordinator start` and a `hospital start` each, on loopback, with TLS, SuperNode authentication, a
SQLite database and process isolation. Then `coordinator run` of one variant after the other, and that
as often as there are turns, so that a busy hour of the machine falls on all of them. One optimiser step
a round.

- *plain* sends float32 both ways; *int16* quantises up and sends differences down; *masks* and *ckks* do
  so too, and sum in secret.
- A round lasts from its start to the next one's, the last to its checkpoint: training and saving count.
  The first of a run, which makes the keys, evaluates and sends the whole model, stands by itself.
- *ratio*: medians over all turns. Steps are those of the run's metrics. Bytes are of one hospital.
- *processor*: seconds of all processes in a role together, in a round; the run's start is in it too.
- Memory is the largest resident set of any one process in a role during this variant's runs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import shutil
import signal
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

import _consilium
import _phases
from _processes import BenchmarkFailed
from rich.console import Console
from rich.table import Table

from server_app.state import RunFolder

VARIANTS = {
    "plain": ["codec=none"],
    "int16": ["codec=int16"],
    "masks": ["secure_aggregation=masks"],
    "ckks": ["secure_aggregation=ckks"],
}
_NAMES = ("east", "hill", "lake", "north", "south", "town", "vale", "west", "wood", "york")
_CALLS_SHOWN = 25
_DEADLINE = 1800  # seconds of a round; encrypted ones are slow on few cores


@dataclass
class Variant:
    """What was measured of one, over all turns.

    Attributes:
        first: seconds of each run's first round. rounds: of the others.
        steps: seconds of each round but the first, by step.
        down, up: largest bytes of a hospital in a round; first and later ones.
        peaks: bytes; processor: seconds a round; by role.
        phases, calls: of each run, as `_phases` has them.
    """

    first: list[float] = field(default_factory=list)
    rounds: list[float] = field(default_factory=list)
    first_steps: list[dict[str, float]] = field(default_factory=list)
    steps: list[dict[str, float]] = field(default_factory=list)
    down: tuple[int, int] = (0, 0)
    up: tuple[int, int] = (0, 0)
    peaks: dict[str, int] = field(default_factory=dict)
    processor: dict[str, list[float]] = field(default_factory=dict)
    phases: list[dict[str, float]] = field(default_factory=list)
    calls: list[dict[str, _phases.Calls]] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    def add(self, result: RunFolder) -> None:
        """A run's rounds."""
        rows = [row for row in result.metrics() if row["kind"] == "round"]
        starts = [_consilium.seconds_of(row["started"]) for row in rows]
        saved = (result.path / "model.safetensors").stat().st_mtime
        seconds = [end - start for start, end in itertools.pairwise([*starts, saved])]
        self.first.append(seconds[0])
        self.rounds += seconds[1:]
        self.first_steps.append(rows[0].get("steps", {}))
        self.steps += [row.get("steps", {}) for row in rows[1:]]
        traffic = [_consilium.traffic(row) for row in rows]
        self.down, self.up = (
            (way[0], max(way[1:])) for way in zip(*traffic, strict=True)
        )  # fmt: skip


def main() -> None:
    arguments = _arguments()
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background job ignores SIGINT
        signal.signal(number, _interrupt)
    console = Console()
    folder = Path(tempfile.mkdtemp(prefix="secure_round_"))
    try:
        done = _measure(folder, arguments, console)
    finally:
        if arguments.keep:
            print(f"kept: {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    _print({name: variant for name, variant in done.items() if variant.rounds}, arguments, console)


def _measure(folder: Path, arguments: argparse.Namespace, console: Console) -> dict[str, Variant]:
    done = {name: Variant() for name in arguments.variants}
    traces = folder / "traces"
    order = [
        (turn, name)
        for turn in range(arguments.turns)
        for name in arguments.variants
        if name != "ckks" or turn < arguments.ckks_turns
    ]
    with _consilium.federation(folder, _NAMES[: arguments.hospitals], traces) as real:
        for number, (turn, name) in enumerate(order):
            variant = done[name]
            rounds = arguments.ckks_rounds if name == "ckks" else arguments.rounds
            real.processes.count_anew()
            result = real.run(
                f"{name}-{turn}",
                [
                    *_consilium.overrides(arguments.parameters, rounds),
                    *VARIANTS[name],
                    f"participation.least={arguments.hospitals}",
                    f"participation.deadline={_DEADLINE}",
                ],
                seconds=rounds * _DEADLINE,
            )
            for role, seconds in real.processes.seconds.items():
                variant.processor.setdefault(role, []).append(seconds / rounds)
            for role, peak in real.processes.peaks.items():
                variant.peaks[role] = max(variant.peaks.get(role, 0), peak)
            variant.add(result)
            variant.phases.append(_phases.breakdown(traces, number))
            variant.calls.append(_phases.calls(traces, number))
            _write(done, arguments)
            seconds = ", ".join(f"{s:.2f}" for s in variant.rounds[1 - rounds :])
            console.print(f"turn {turn + 1}, {name}: {variant.first[-1]:.2f}; {seconds} s")
    return done


def _print(done: dict[str, Variant], arguments: argparse.Namespace, console: Console) -> None:
    title = f"{arguments.hospitals} hospitals, {arguments.parameters:,} parameters"
    table = _table(title, done)
    _row(table, "seconds a round, median", [f"{v.median:.2f}" for v in done.values()])
    spread = [f"{min(v.rounds):.2f} to {max(v.rounds):.2f}" for v in done.values()]
    _row(table, "from, to", spread)
    for base in ("plain", "int16"):
        if base in done:
            ratios = [f"{v.median / done[base].median:.2f}" for v in done.values()]
            _row(table, f"ratio to {base}", ratios)
    _row(table, "the first round", [f"{statistics.median(v.first):.2f}" for v in done.values()])
    for step in ("setup", "work", "sign", "open"):
        cells = []
        for variant in done.values():
            rows = variant.first_steps if step == "setup" else variant.steps
            taken = [row[step] for row in rows if step in row]
            cells.append(f"{statistics.median(taken):.2f}" if taken else "")
        _row(table, f"step: {step}" + (" (first round)" if step == "setup" else ""), cells)
    for at, which in enumerate((", first round", "")):
        for way in ("down", "up"):
            cells = [f"{getattr(v, way)[at] / 1e6:.1f}" for v in done.values()]
            _row(table, f"MB {way}{which}", cells)
    for role in _roles(done):
        cells = [f"{v.peaks.get(role, 0) / 1e6:.0f}" for v in done.values()]
        _row(table, f"peak MB, {role}", cells)
    for role in _roles(done):
        cells = [f"{statistics.median(v.processor.get(role, [0])):.1f}" for v in done.values()]
        _row(table, f"processor, {role}", cells)
    console.print(table)
    _print_phases(done, console)
    for name, variant in done.items():
        _print_calls(name, variant, console)


def _print_phases(done: dict[str, Variant], console: Console) -> None:
    table = _table("phases of a round after the first, seconds, the slowest hospital's", done)
    names = dict.fromkeys(phase for v in done.values() for p in v.phases for phase in p)
    for phase in sorted(names, key=_place):
        cells = []
        for variant in done.values():
            taken = [p[phase] for p in variant.phases if phase in p]
            cells.append(f"{statistics.median(taken):.2f}" if taken else "")
        _row(table, phase, cells)
    console.print(table)


def _place(phase: str) -> tuple[int, int]:
    """In the order of time; the coordinator's last one after the letters."""
    letter, _, bare = phase.partition(": ")
    if letter not in _phases.LETTERS:
        letter, bare = "", phase
    last = bare == _phases.PHASES[-1]
    order = ("", *_phases.LETTERS)
    return len(order) if last else order.index(letter), _phases.PHASES.index(bare)


def _print_calls(name: str, variant: Variant, console: Console) -> None:
    table = Table(title=f"{name}: functions in a round, all processes together")
    for title in ("", "calls", "seconds", "processor"):
        table.add_column(title, justify="left" if not title else "right")
    last = variant.calls[-1]
    for event in sorted(last, key=lambda e: -last[e].seconds)[:_CALLS_SHOWN]:
        one = last[event]
        table.add_row(event, f"{one.number:.1f}", f"{one.seconds:.2f}", f"{one.processor:.2f}")
    console.print(table)


def _table(title: str, done: dict[str, Variant]) -> Table:
    table = Table(title=title)
    table.add_column("")
    for name in done:
        table.add_column(name, justify="right")
    return table


def _row(table: Table, label: str, cells: list[str]) -> None:
    table.add_row(label, *cells)


def _roles(done: dict[str, Variant]) -> list[str]:
    return sorted({role for variant in done.values() for role in variant.peaks})


def _write(done: dict[str, Variant], arguments: argparse.Namespace) -> None:
    """What there is so far, where it is wanted: a run may fail, and hours with it."""
    if arguments.json is None:
        return
    content = {
        "machine": {"cores": os.cpu_count(), "system": platform.platform()},
        "hospitals": arguments.hospitals,
        "parameters": arguments.parameters,
        "variants": {name: asdict(variant) for name, variant in done.items()},
    }
    arguments.json.write_text(json.dumps(content, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--hospitals", type=int, default=5, help=f"3 to {len(_NAMES)}")
    parser.add_argument("--parameters", type=int, default=25_000_000)
    parser.add_argument("--rounds", type=int, default=4, help="of a run, at least 3")
    parser.add_argument("--ckks-rounds", type=int, default=3)
    parser.add_argument("--ckks-turns", type=int, default=1)
    parser.add_argument("--turns", type=int, default=2, help="runs of each variant")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--keep", action="store_true", help="keep the temporary folder, with logs")
    arguments = parser.parse_args()
    if not 3 <= arguments.hospitals <= len(_NAMES):
        parser.error(f"--hospitals must be 3 to {len(_NAMES)}")
    if min(arguments.rounds, arguments.ckks_rounds) < 3:
        parser.error("a run must have at least 3 rounds")
    return arguments


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    try:
        main()
    except BenchmarkFailed as failure:
        raise SystemExit(f"secure_round: {failure}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
