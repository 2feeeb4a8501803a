"""Which folders `hospital index` looks at, and their indexes brought up to date."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from client_app.imaging.index import Index, update
from client_app.imaging.pseudonym import keyed_hash, open_key
from client_app.overview import screen
from client_app.overview.tally import Tally, tally
from client_app.private_file import write_private
from client_app.site import Data, Site
from federation.schema import ConfigError


@dataclass(frozen=True)
class Root:
    """A folder with images, and the folder where its index lies."""

    data: Data
    state: Path

    @property
    def path(self) -> Path:
        return self.data.root


def of_site(site: Site) -> list[Root]:
    return [Root(site.data, site.state)]


def of_folders(folders: Sequence[Path], state: Path) -> list[Root]:
    """Any folders, read as they look; each has an index of its own below `state`.

    Raises:
        ConfigError: there is no such folder.
    """
    key = open_key(state)
    roots = []
    for folder in dict.fromkeys(folder.resolve() for folder in folders):
        if not folder.is_dir():
            raise ConfigError(f"there is no folder {folder}")
        name = keyed_hash(key, "root", str(folder))[:8].hex()
        roots.append(Root(Data(root=folder), state / "roots" / name))
    return roots


def look(
    roots: Sequence[Root],
    key: bytes,
    *,
    report: Path | None = None,
    rejected: Path | None = None,
    thumbnails: int = 0,
    console: Console,
) -> Tally:
    """Bring the index of each root up to date, count what it holds, and write what is asked for.

    Args:
        console: where the progress is shown.

    Raises:
        ConfigError: a root cannot be used, or a file cannot be written or would lie among the images.
    """
    for wanted in (report, rejected):
        if wanted is not None and any(wanted.resolve().is_relative_to(r.path) for r in roots):
            raise ConfigError(f"{wanted} would lie among the images; choose another place")
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    )  # fmt: skip
    with ExitStack() as stack:
        bars = stack.enter_context(Progress(*columns, console=console, transient=True))
        opened: list[tuple[Path, Index]] = []
        for number, root in enumerate(roots, start=1):
            which = f" ({number} of {len(roots)} folders)" if len(roots) > 1 else ""
            bar = bars.add_task(f"reading headers{which}", total=None)
            told = partial(_tell, bars, bar)
            index = update(root.data, state=root.state, key=key, progress=told)
            opened.append((root.path, stack.enter_context(index)))
            bars.update(bar, total=max(index.read, 1), completed=max(index.read, 1))
        found = tally(opened, examples=thumbnails if report else 0)
        if rejected is not None:
            rows = (item for _, index in opened for item in index.set_aside())
            screen.write_rejected(rejected, rows)
        if report is not None:
            from client_app.overview import page  # PyTorch and matplotlib: seconds

            bar = bars.add_task("drawing pictures", total=len(found.examples))
            write_private(report, page.render(found, progress=partial(_tell, bars, bar)).encode())
    return found


def _tell(bars: Progress, bar: TaskID, done: int, total: int) -> None:
    bars.update(bar, completed=done, total=total)
