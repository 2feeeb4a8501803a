"""What a terminal shows of a federation and of a run under way."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from federation.schema import Experiment
from server_app.state import RunFolder

_ROWS = 12  # newest rounds shown while a run is live


class RoundsTable:
    """A live table of rounds; on a terminal it redraws, elsewhere it prints a line a round."""

    def __init__(self, folder: RunFolder, console: Console) -> None:
        self.console = console
        self.headline: str = folder.record()["task"]["headline"]
        experiment = folder.experiment()
        rounds, self.private = experiment.rounds, experiment.privacy is not None
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        self.bar = self.progress.add_task("rounds", total=rounds)
        self.live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self.printed = 0

    def __enter__(self) -> RoundsTable:
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.live:
            self.live.stop()

    def show(self, folder: RunFolder) -> None:
        rows = folder.metrics()
        if self.live:
            self.progress.update(self.bar, completed=folder.status()["round"])
            newest = [row for row in rows if row["kind"] == "round"][-_ROWS:]
            self.live.update(Group(self.table(rows, newest), self.progress), refresh=True)
        else:
            for row in rows[self.printed :]:
                self.console.print(self._line(row), soft_wrap=True, highlight=False, markup=False)
            self.printed = len(rows)

    def table(self, rows: list[dict[str, Any]], newest: list[dict[str, Any]]) -> Table:
        """One line a round: the evaluation is of the model that the round made."""
        evaluations = {row["round"]: row for row in rows if row["kind"] == "evaluation"}
        table = Table(box=None, header_style="bold")
        for title in (
            "round",
            "seconds",
            "MB",
            "ε spent" if self.private else "loss",
            self.headline,
            "worst hospital",
            "left out",
        ):
            table.add_column(title, justify="right" if title != "left out" else "left")
        for row in newest:
            values = round_values(row, evaluations.get(row["round"]), self.headline)
            table.add_row(*values)
        return table

    def _line(self, row: dict[str, Any]) -> str:
        if row["kind"] == "round":
            number, seconds, megabytes, told, *_, left = round_values(row, None, self.headline)
            what = "ε spent" if self.private else "loss"
            text = f"round {number}: {seconds} s, {megabytes} MB, {what} {told or 'not known'}"
            return f"{text}, left out: {left}" if left else text
        value, low = evaluation_values(row, self.headline)
        if not value:
            return f"  after round {row['round']}: {self.headline} not known"
        return f"  after round {row['round']}: {self.headline} {value}, worst {low}"


def round_values(
    row: dict[str, Any], evaluation: dict[str, Any] | None, headline: str
) -> tuple[str, ...]:
    """A round's cells: number, seconds, MB both ways, mean loss, headline, worst, left out.

    In place of the loss, which a private run does not have, what the run has cost the patients of the
    hospital where it cost most.
    """
    hospitals = row["hospitals"]
    moved = sum(h["bytes_down"] + h["bytes_up"] for h in hospitals.values()) / 1e6
    losses = [h["loss"] for h in hospitals.values() if "loss" in h and h["status"] == "ok"]
    left = ", ".join(f"{n} ({h['reason']})" for n, h in hospitals.items() if h["status"] != "ok")
    value, low = evaluation_values(evaluation, headline)
    told = f"{sum(losses) / len(losses):.3f}" if losses else ""
    spent = [h["spent"]["run_epsilon"] for h in hospitals.values() if "spent" in h]
    told = f"{max(spent):.2f}" if spent else told
    return str(row["round"]), f"{row['seconds']:.1f}", f"{moved:.1f}", told, value, low, left


def evaluation_values(row: dict[str, Any] | None, headline: str) -> tuple[str, str]:
    """The headline metric over all hospitals, and where it is lowest."""
    if row is None or headline not in row["overall"]:
        return "", ""
    low = row["worst"].get(headline)
    return f"{row['overall'][headline]:.3f}", f"{low['value']:.3f} {low['hospital']}" if low else ""


def cost_lines(experiment: Experiment) -> list[str]:
    """What a private run will cost each patient, for whoever starts it; nothing for other runs."""
    privacy = experiment.privacy
    if privacy is None:
        return []
    from federation.privacy import accounting

    steps = experiment.training.local_steps
    cost = accounting.epsilon(accounting.of_run(experiment), privacy.delta)
    lines = [
        f"privacy: the run costs each patient ε = {cost:.2f} at δ = {privacy.delta:g}, "
        "if no round has to be trained anew",
        f"  σ = {privacy.noise_multiplier:g}, q = {privacy.sampling_rate:g}, "
        f"{steps * experiment.rounds} steps ({experiment.rounds} rounds of {steps})",
    ]
    if privacy.metrics == "noisy":
        lines.append(
            f"  and noisy metrics, {accounting.evaluations(experiment)} times, "
            f"σ = {privacy.metrics_noise_multiplier:g} patients"
        )
    return lines


def hospitals_table(names: list[str], states: dict[str, str] | None) -> Table:
    """`states` is None when the SuperLink does not answer."""
    table = Table(title="hospitals", box=None, title_justify="left", header_style="bold")
    table.add_column("name")
    table.add_column("status")
    for name in sorted(names):
        state = (
            "not known: the SuperLink is down" if states is None else states.get(name, "not let in")
        )
        table.add_row(name, state)
    return table


def runs_table(runs: Path) -> Table:
    table = Table(title="runs", box=None, title_justify="left", header_style="bold")
    for title in ("name", "state", "round", "note"):
        table.add_column(title)
    for path in sorted(runs.glob("*/status.json")):
        status = json.loads(path.read_text())
        state = status["state"]
        if state == "running" and not RunFolder(path.parent).is_conducted():
            state = "waiting or broken off"
        table.add_row(
            path.parent.name,
            state,
            f"{status['round']}/{status['rounds']}",
            escape(status["message"] or ""),
        )
    return table
