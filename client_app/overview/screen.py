"""The overview on a terminal, and the table of what was set aside as a file."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from client_app.imaging.set_aside import SetAside
from client_app.overview.tally import Tally
from client_app.private_file import printable, write_private


def show(tally: Tally, console: Console) -> None:
    """Counts, images by kind and modality, and what was set aside. Shows a path for each reason."""
    console.print(
        f"{tally.files:,} files: {tally.read:,} read now, {tally.not_read:,} needed no reading",
        highlight=False,
    )
    console.print(
        f"{tally.images:,} images of {tally.patients:,} patients in {tally.studies:,} studies "
        f"and {tally.series_count:,} series; {tally.set_aside_count:,} set aside",
        highlight=False,
    )
    _show_counts(
        {
            "images by kind": tally.kinds,
            "by modality": tally.modalities,
            "masks by kind": tally.masks,
        },
        console,
    )
    if not tally.set_aside:
        return
    table = Table(title="set aside", box=SIMPLE, title_justify="left")
    table.add_column("number", justify="right")
    for heading in ("reason", "found", "such as", "what would mend it"):
        table.add_column(heading, overflow="fold")
    for reason, left in tally.set_aside.items():
        table.add_row(
            f"{left.count:,}",
            str(reason),
            escape(printable(left.example.detail)),
            escape(printable(below(left.example.path, left.root))),
            reason.remedy,
        )
    console.print(table)


def _show_counts(groups: Mapping[str, Mapping[str, int]], console: Console) -> None:
    groups = {heading: counts for heading, counts in groups.items() if counts}
    if not groups:
        return
    table = Table(box=SIMPLE)
    for heading in groups:
        table.add_column(heading)
    cells = (
        "\n".join(f"{count:>7,}  {escape(printable(word))}" for word, count in counts.items())
        for counts in groups.values()
    )
    table.add_row(*cells)
    console.print(table)


def below(path: Path, root: Path) -> Path:
    """The path as seen from its root, where it lies below it."""
    return path.relative_to(root) if path.is_relative_to(root) else path


def write_rejected(path: Path, set_aside: Iterable[SetAside]) -> int:
    """One row for each file set aside: its path, reason, detail, remedy; how many.

    Paths are escaped as on the screen, so that bytes that are no text come through, and a cell that
    a spreadsheet would take for a formula gets an apostrophe before it.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(("path", "reason", "detail", "remedy"))
    number = 0
    for item in set_aside:
        row = (item.path, item.reason, item.detail, item.reason.remedy)
        writer.writerow([_cell(printable(value)) for value in row])
        number += 1
    write_private(path, text.getvalue().encode())
    return number


def _cell(text: str) -> str:
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
