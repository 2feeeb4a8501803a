"""The budget on a terminal: a sentence, a bar, a plot, a table by run, and what the words mean."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from client_app.budget.figures import ADJACENCY, UNIT, Figures, Present
from client_app.ledger import MOST_REMAINING
from client_app.private_file import printable
from federation.privacy.accounting import Mechanism

_HEIGHT = 8  # lines of the plot
_WIDTH = 60  # most columns of bar and plot
_EIGHTHS = " ▁▂▃▄▅▆▇█"


def show(figures: Figures, console: Console) -> None:
    width = max(10, min(_WIDTH, console.width - 16))
    budget = figures.budget
    lines = [
        f"Budget of {figures.hospital}'s patients (declared: {figures.patients:,}), for all time: "
        f"ε = {budget.epsilon:g} at δ = {budget.delta:g}",
        f"spent ε = {figures.epsilon:.4g}, left {figures.left:.4g}",
        f"{bar(figures.epsilon / budget.epsilon, width)} {_percent(figures.epsilon, budget.epsilon)}",
    ]
    if budget.most_epsilon_a_run is not None:
        lines.append(f"one run alone may spend ε = {budget.most_epsilon_a_run:g}")
    if figures.present is None:
        lines.append("Nothing was charged yet.")
    else:
        lines.append(_outlook(figures.present))
        lines += ["", *plot(figures.curve, budget.epsilon, width), ""]
    _say(console, lines)
    if figures.runs:
        console.print(_runs(figures))
    _say(console, _definitions(figures))


def bar(part: float, width: int) -> str:
    """A filled share of a line; anything above nothing shows."""
    filled = min(width, round(part * width))
    if part > 0:
        filled = max(1, filled)
    return "█" * filled + "░" * (width - filled)


def plot(curve: Sequence[float], top: float, width: int) -> list[str]:
    """ε of the ledger over its charges, in columns of blocks, up to the budget `top`.

    A column stands for several charges where there are more than columns, and shows the last of them.
    """
    columns = min(width, len(curve))
    top = max(top, *curve)
    shown = [curve[(column + 1) * len(curve) // columns - 1] for column in range(columns)]
    heights = [max(1, round(value / top * _HEIGHT * 8)) for value in shown]
    labels = {_HEIGHT - 1: f"ε {top:.3g}", _HEIGHT // 2 - 1: f"{top / 2:.3g}"}
    lines = []
    for row in reversed(range(_HEIGHT)):
        cells = "".join(_EIGHTHS[min(8, max(0, height - 8 * row))] for height in heights)
        lines.append(f"{labels.get(row, ''):>9} │{cells}".rstrip())
    lines.append(f"{'0':>9} └" + "─" * columns)
    last = f"charge {len(curve):,}"
    lines.append(" " * 11 + (last if columns < len(last) + 3 else "1" + last.rjust(columns - 1)))
    return lines


def _outlook(present: Present) -> str:
    more = "or more" if present.remaining >= MOST_REMAINING else "more"
    return (
        f"The present experiment (run {printable(present.run)}, charged last for round "
        f"{present.round:,}): {present.remaining:,} {more} rounds like that one fit into the budget"
    )


def _runs(figures: Figures) -> Table:
    table = Table(title="by run", box=SIMPLE, title_justify="left")
    table.add_column("run", overflow="fold")
    for heading in ("charges", "rounds", "σ", "q", "steps", "ε alone", "share"):
        table.add_column(heading, justify="right")
    table.add_column("last")
    for cost in figures.runs:
        table.add_row(
            escape(printable(cost.run)),
            f"{cost.charges:,}",
            f"{cost.rounds:,}",
            *_columns(cost.mechanisms),
            f"{cost.epsilon:.4g}",
            f"{cost.share:.0%}",
            cost.last[:10],
        )
    return table


def _columns(mechanisms: Sequence[Mechanism]) -> tuple[str, str, str]:
    return (
        "\n".join(f"{m.noise_multiplier:g}" for m in mechanisms),
        "\n".join(f"{m.sampling_rate:g}" for m in mechanisms),
        "\n".join(f"{m.steps:,}" for m in mechanisms),
    )


def _definitions(figures: Figures) -> list[str]:
    lines = [
        f"unit        {UNIT}",
        f"adjacency   {ADJACENCY}",
        f"δ           {figures.budget.delta:g}: what ε says may fail with about this chance",
        f"accountant  {figures.accountant}",
        "σ, q        noise over the most that one patient adds; each patient's chance to be in a step",
        "share       of the runs' own ε, which add up to more than they cost together",
        f"ledger      {figures.charges:,} charges, head {figures.head}",
    ]
    if not figures.same_terms:
        lines.append(
            "plot        some charges were written down at another δ or by another accountant"
        )
    return lines


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %"


def _say(console: Console, lines: Sequence[str]) -> None:
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
