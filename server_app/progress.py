"""What a terminal shows of a federation and of a run under way."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from federation.schema import Experiment
from server_app import described
from server_app.state import RunFolder

if TYPE_CHECKING:  # they import numpy and PyTorch, which a look at a run does not need
    from federation.codec.chain import Chain
    from federation.secure_aggregation.scheme import Sum

_ROWS = 12  # newest rounds shown while a run is live


class RoundsTable:
    """A live table of rounds; on a terminal it redraws, elsewhere it prints a line a round."""

    def __init__(self, folder: RunFolder, console: Console) -> None:
        self.console = console
        self.headline: str = folder.record()["task"]["headline"]
        experiment = folder.experiment()
        rounds, self.private = experiment.rounds, experiment.privacy is not None
        self.in_secret = experiment.secure_aggregation is not None
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
            "in the sum" if self.in_secret else "worst hospital",
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
        text = f"  after round {row['round']}: {self.headline} {value or 'not known'}"
        if "summed_over" in row:
            over, patients = row["summed_over"], row["held_out_patients"]
            text += f", of {len(over)} hospitals together"
            text += f" ({patients} patients)" if patients else ""
            left = _left_out(row)
            text += _worst_group(row)
            return f"{text}, left out: {left}" if left else text
        return (f"{text}, worst {low}" if value else text) + _worst_group(row)


def round_values(
    row: dict[str, Any], evaluation: dict[str, Any] | None, headline: str
) -> tuple[str, ...]:
    """A round's cells: number, seconds, MB both ways, mean loss, headline, worst, left out.

    In place of the loss, which a private run does not have, what the run has cost the patients of the
    hospital where it cost most. In place of the worst hospital, which nobody knows of a run under masks,
    how many are in the round's sum.
    """
    hospitals = row["hospitals"]
    moved = sum(h["bytes_down"] + h["bytes_up"] for h in hospitals.values()) / 1e6
    losses = [h["loss"] for h in hospitals.values() if "loss" in h and h["status"] == "ok"]
    value, low = evaluation_values(evaluation, headline)
    told = f"{sum(losses) / len(losses):.3f}" if losses else ""
    if "summed" in row:
        loss, low = row["summed"].get("loss"), str(len(row["summed"]["hospitals"]))
        told = "" if loss is None else f"{loss:.3f}"
    spent = [h["spent"]["run_epsilon"] for h in hospitals.values() if "spent" in h]
    told = f"{max(spent):.2f}" if spent else told
    seconds = f"{row['seconds']:.1f}"
    return str(row["round"]), seconds, f"{moved:.1f}", told, value, low, _left_out(row)


def _worst_group(row: dict[str, Any]) -> str:
    """The group of patients that the model is worst for, where hospitals counted."""
    worst = (row.get("fairness") or {}).get("worst_group")
    if worst is None:
        return ""
    return f", worst group {worst['group']}: {worst['metric']} {worst['value']:.3f}"


def _left_out(row: dict[str, Any]) -> str:
    """Who is not in a round or an evaluation, and why."""
    hospitals = row["hospitals"]
    return ", ".join(f"{n} ({h['reason']})" for n, h in hospitals.items() if h["status"] != "ok")


def evaluation_values(row: dict[str, Any] | None, headline: str) -> tuple[str, str]:
    """The headline metric over all hospitals, and where it is lowest."""
    if row is None or headline not in row["overall"]:
        return "", ""
    low = row["worst"].get(headline)
    return f"{row['overall'][headline]:.3f}", f"{low['value']:.3f} {low['hospital']}" if low else ""


def plan_lines(experiment: Experiment, hospitals: int) -> list[str]:
    """What the coordinator will be able to read, and how updates travel, for whoever starts a run.

    Args:
        hospitals: that the run asks.
    """
    content = experiment.model_dump(mode="json")
    codec, secure = content["codec"] or {}, content["secure_aggregation"] or {}
    lines = [f"the coordinator will be able to read {described.readable(secure, hospitals)}"]
    in_secret = {"masks": ["masked"], "ckks": ["encrypted"]}
    last = in_secret[secure["name"]] if secure else ["zstd"] if codec else []
    stages = (*described.chain(codec), *last)
    lines.append(
        f"updates go up as {' → '.join(stages) or 'float32'}: {_size(experiment, hospitals)}"
    )
    if secure.get("name") == "ckks":
        lines.append("models do not go down: hospitals hold them, and get the encrypted sum")
    elif codec:
        lines.append(f"models go down as {described.down(codec)}")
    return lines


def _size(experiment: Experiment, hospitals: int) -> str:
    whole, first, then, bits = update_bytes(experiment, hospitals)
    if experiment.codec is None:
        return f"{whole / 1e6:.2f} MB a hospital and round"
    secure = experiment.secure_aggregation
    start, later = (f"{size / 1e6:.2f} MB, {size / whole:.0%} of float32" for size in (first, then))
    told = f"{later}, a hospital and round" + (f" (the first: {start})" if start != later else "")
    if secure is not None:
        return f"{told}; {bits} bits a value, with room for the sum of {hospitals}"
    return f"at most {told}"


def update_bytes(experiment: Experiment, hospitals: int) -> tuple[int, int, int, int]:
    """Bytes of a hospital's update as it is, in the first round and in later ones, and bits of a value.

    In secret they are these, keys and figures aside; else at most these, since zstd follows.
    """
    from federation import models, tasks
    from federation.codec import chain, packing
    from federation.secure_aggregation.ciphertexts import Packing
    from federation.secure_aggregation.stream import headroom

    task = tasks.of_experiment(experiment)
    network = models.build(experiment.model, task, seed=experiment.seed)
    whole = sum(array.nbytes for array in models.arrays_of(network).values())
    if experiment.codec is None:
        return whole, whole, whole, 32
    codec = chain.build(experiment.codec, network, seed=experiment.seed)
    if experiment.secure_aggregation is None:
        first, then = (codec.largest_blob(round=number) for number in (1, 2))
        return whole, first, then, codec.bits(round=2)
    if experiment.secure_aggregation.name == "ckks":
        sums = [_encrypted(codec, number, hospitals) for number in (1, 2)]
        first, then = (Packing.of(one).blob_bytes(1) for one in sums)
        return whole, first, then, sums[1].width
    widths = [headroom(codec.bits(round=number), hospitals) for number in (1, 2)]
    first, then = (
        packing.packed_length(codec.length(round=number), width)
        for number, width in zip((1, 2), widths, strict=True)
    )
    return whole, first, then, widths[1]


def _encrypted(codec: Chain, round_: int, hospitals: int) -> Sum:
    """A sum of updates of so many hospitals, whatever their names."""
    from federation.secure_aggregation.scheme import Sum

    names = tuple(f"{number:04}" for number in range(max(hospitals, 2)))
    size, bits = codec.length(round=round_), codec.bits(round=round_)
    return Sum("", round_, "update", names, 2, "", size, bits)


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
    if experiment.counted is not None:
        lines.append(
            f"  and noisy counts by group, {accounting.evaluations(experiment)} times, "
            f"σ = {experiment.counted.noise_multiplier:g} patients"
        )
    return lines
