"""`coordinator compare`: runs side by side, on a terminal, as JSON or as CSV."""

from __future__ import annotations

import csv
import fnmatch
import io
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from federation.schema import ConfigError
from server_app.home import HOME_VARIABLE, Home

if TYPE_CHECKING:
    from server_app.compare import Comparison, Figure, Row
    from server_app.state import RunFolder

_TITLES = {
    "worst_hospital": "worst hospital",
    "worst_group": "worst group",
    "gap": "gap",
    "left_out": "left-out hospital",
    "rounds_to_95": "rounds to 95 %",
    "bytes_up": "MB up",
    "bytes_down": "MB down",
    "epsilon": "ε",
    "seconds": "seconds",
}
_NOTHING = "—"
_LEAST_WIDTH = 200  # columns, where what is printed is not a terminal


def compare(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN…", help="Runs, globs ('demo-*'), or sweeps.")
    ],
    metric: Annotated[str | None, typer.Option(help="Instead of the task's headline.")] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(help="KEY,…: a row for each of their values, the mean over the rest."),
    ] = None,
    over: Annotated[
        list[str] | None, typer.Option(help="KEY,…: what a row's runs may differ in; seed.")
    ] = None,
    each: Annotated[bool, typer.Option("--each", help="A row for each run.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="All figures as JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="All figures as CSV.")] = False,
    home: Annotated[
        Path, typer.Option("--home", envvar=HOME_VARIABLE, help="The coordinator's folder.")
    ] = Path("coordinator"),
) -> None:
    """What differs between runs, and what came of them: the mean, the worst hospital and group, costs.

    Example: coordinator compare demo-20261124-0930-3f 'mammography-*' --by strategy
    """
    from server_app.compare import compare as made

    if sum((bool(by), bool(over), each)) > 1:
        raise ConfigError("--by, --over and --each exclude each other: choose one")
    if as_json and as_csv:
        raise ConfigError("--json and --csv exclude each other: choose one")
    folders = find(Home(home), runs)
    averaged = () if each else _keys(over) or ("seed",)
    compared = made(folders, metric=metric, by=_keys(by), over=averaged)
    if as_json:
        sys.stdout.write(json.dumps(asdict(compared), indent=1) + "\n")
    elif as_csv:
        sys.stdout.write(csv_text(compared))
    else:
        show(compared, Console())


def find(home: Home, asked: Sequence[str]) -> list[RunFolder]:
    """The runs of these names, globs and sweeps, each once.

    Raises:
        ConfigError: a word that is none of them, or a sweep none of whose runs has begun.
    """
    from server_app import sweep
    from server_app.state import RunFolder

    home.federation()
    known = sorted(path.parent.name for path in home.runs.glob("[!.]*/run.json"))
    sweeps = sweep.names(home)
    found: dict[str, None] = {}
    for word in asked:
        if word in known:
            names = [word]
        elif word in sweeps:
            names = [one.run for one in sweep.read(home, word).runs if one.run in known]
            if not names:
                raise ConfigError(f"no run of sweep {word!r} has begun")
        else:
            names = fnmatch.filter(known, word)
        if not names:
            raise ConfigError(f"there is no run or sweep {word!r}; coordinator status lists them")
        found |= dict.fromkeys(names)
    return [RunFolder(home.runs / name) for name in found]


def show(compared: Comparison, console: Console) -> None:
    """Print the table; what no run has is no column."""
    if not console.is_terminal:
        console = Console(file=console.file, width=max(console.width, _LEAST_WIDTH))
    several = any(len(row.runs) > 1 for row in compared.rows)
    present = [name for name in _TITLES if any(name in row.figures for row in compared.rows)]
    table = Table(box=None, header_style="bold")
    table.add_column("runs" if several else "run", overflow="fold")
    for key in (*compared.keys, "state", "rounds"):
        table.add_column(key)
    table.add_column(compared.metric, justify="right")
    for name in present:
        table.add_column(_TITLES[name], justify="right")
    for row in compared.rows:
        table.add_row(
            row.runs[0] if len(row.runs) == 1 else f"{len(row.runs)} runs",
            *(_value(row.differs[key]) for key in compared.keys),
            _state(row),
            f"{row.done}/{row.rounds}",
            *(_cell(name, row.figures.get(name), len(row.runs)) for name in ("overall", *present)),
        )
    console.print(table)
    notes = [f"task {compared.task}"]
    if several:
        over = ", ".join(compared.over) or "equal runs"
        notes.append(f"mean ± standard deviation over {over}")
    console.print("; ".join(notes), style="dim", highlight=False)


def csv_text(compared: Comparison) -> str:
    """A line a row, the same columns whatever is known; empty where nothing is."""
    from server_app.compare import FIGURES

    parts = ("mean", "deviation", "n", "low", "high", "names", "metric")
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    titles = [name if part == "mean" else f"{name}_{part}" for name in FIGURES for part in parts]
    first = ("runs", "states", "done", "rounds", "task", "headline")
    writer.writerow([*first, *compared.keys, *titles])
    for row in compared.rows:
        cells: list[Any] = [" ".join(row.runs), " ".join(row.states), row.done, row.rounds]
        cells += [compared.task, compared.metric, *(row.differs[key] for key in compared.keys)]
        for name in FIGURES:
            told = asdict(row.figures[name]) if name in row.figures else {}
            told["names"] = " ".join(told.get("names", ()))
            cells += [told.get(part) for part in parts]
        writer.writerow(cells)
    return file.getvalue()


def _keys(words: Sequence[str] | None) -> tuple[str, ...]:
    """`--by a --by b` and `--by a,b` are the same."""
    return tuple(key for word in words or () for key in word.split(","))


def _state(row: Row) -> str:
    counted = Counter(row.states)
    if len(counted) == 1:
        return row.states[0]
    return ", ".join(f"{count} {state}" for state, count in counted.items())


def _cell(name: str, figure: Figure | None, runs: int) -> str:
    if figure is None:
        return _NOTHING
    scale, digits = {
        "bytes_up": (1e-6, 1),
        "bytes_down": (1e-6, 1),
        "seconds": (1, 0),
        "epsilon": (1, 2),
        "rounds_to_95": (1, 0 if figure.n == 1 else 1),
    }.get(name, (1, 3))
    text = f"{figure.mean * scale:.{digits}f}"
    if figure.deviation is not None:
        text += f" ± {figure.deviation * scale:.{digits}f}"
    elif figure.low is not None and figure.high is not None:
        text += f" ({figure.low:.{digits}f} to {figure.high:.{digits}f})"
    if figure.n < runs:
        text += f" [{figure.n} of {runs}]"
    return " ".join((text, *figure.names))


def _value(value: object) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
