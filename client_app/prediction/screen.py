"""`hospital predict` on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from client_app.imaging.set_aside import SetAside
from client_app.prediction import NOTICE
from client_app.prediction.model import Model, read_model
from client_app.prediction.predict import Answer, predict
from client_app.prediction.sources import find_sources
from client_app.private_file import printable
from client_app.site import Site
from client_app.training.device import pick_device

_MOST_ROWS = 40


def run(
    path: Path,
    series: Sequence[str],
    *,
    site: Site | None,
    out: Path,
    force: bool,
    device: str,
    console: Console,
    state: Path | None = None,
) -> None:
    """Read model and images, answer, write, and show what was said.

    Args:
        state: as `read_model` has it.

    Raises:
        ConfigError: see `read_model`, `find_sources` and `predict`.
    """
    model = read_model(path, pick_device(device), state=state)
    sources = find_sources(series, model.task, site)
    with Progress(console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task(f"predicting {model.task.name}", total=len(sources.images))
        answers, failed = predict(
            model,
            sources,
            out,
            force=force,
            progress=lambda done, total: bars.update(bar, completed=done, total=total),
        )
    _show(model, answers, failed, console)
    console.print(f"written: {out}", highlight=False, markup=False, soft_wrap=True)
    console.print(NOTICE, highlight=False, markup=False)


def _show(
    model: Model, answers: Sequence[Answer], failed: Sequence[SetAside], console: Console
) -> None:
    unit = "probability" if model.task.kind == "classification" else "ml"
    after = f" after round {model.round}" if model.round is not None else ""
    table = Table(
        title=f"{model.task.name}, run {escape(printable(model.run))}{after}, "
        f"model {model.sha256[:12]}"
        + (f" with this hospital's own {model.own[:12]}" if model.own is not None else ""),
        box=SIMPLE,
        title_justify="left",
    )
    table.add_column("image", overflow="fold")
    for name in answers[0].values:
        table.add_column(f"{name} ({unit})", justify="right")
    for answer in answers[:_MOST_ROWS]:
        keys = ("file", "sop_instance_uid", "series_instance_uid")
        name = next(answer.names[key] for key in keys if key in answer.names)
        values = (f"{value:.3f}" for value in answer.values.values())
        table.add_row(escape(printable(name)), *values)
    if len(answers) > _MOST_ROWS:
        table.add_row(f"… and {len(answers) - _MOST_ROWS} more")
    console.print(table)
    for answer in answers:
        for remark in answer.remarks:
            console.print(escape(remark), highlight=False)
    for item in failed[:_MOST_ROWS]:
        detail = f" ({item.detail})" if item.detail else ""
        console.print(
            f"not answered: {escape(printable(item.path))}: {item.reason}{escape(printable(detail))}; "
            f"{item.reason.remedy}",
            highlight=False,
            soft_wrap=True,
        )
    if len(failed) > _MOST_ROWS:
        console.print(
            f"… and {len(failed) - _MOST_ROWS} more, see predictions.json", highlight=False
        )
