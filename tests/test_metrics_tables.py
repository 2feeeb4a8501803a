"""The tables of metrics in the pages are those of the code."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import client_app.metrics
import server_app.metrics
from federation.metrics import Described

DOCS = Path(__file__).parents[1] / "docs"
MARK = "<!-- metrics -->\n"


def table(metrics: tuple[Described, ...]) -> str:
    rows = [
        f"| `{m.shown}` | {m.kind} | {', '.join(f'`{label}`' for label in m.labels)} | {m.help} |"
        for m in metrics
    ]
    return "\n".join(["| metric | kind | labels | what it is |", "|---|---|---|---|", *rows, ""])


@pytest.mark.parametrize(
    ("page", "metrics"),
    [("hospital-it.md", client_app.metrics.ALL), ("coordinator.md", server_app.metrics.ALL)],
)
def test_the_page_has_the_codes_table(page: str, metrics: tuple[Described, ...]) -> None:
    """CONSILIUM_WRITE_TABLES=1 writes it."""
    path = DOCS / page
    before, _, after = path.read_text().partition(MARK)
    assert after, "the mark is gone"
    if os.environ.get("CONSILIUM_WRITE_TABLES"):
        rest = after.lstrip("\n")
        rest = rest[rest.index("\n## ") + 1 :] if not rest.startswith("## ") else rest
        path.write_text(f"{before}{MARK}{table(metrics)}\n{rest}")
        after = path.read_text().partition(MARK)[2]
    assert after.startswith(table(metrics) + "\n")
