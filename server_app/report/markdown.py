"""Text as Markdown that is only text: whatever a run names, no markup, link or HTML comes of it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def text(value: object) -> str:
    """One line of plain text, safe in a paragraph and in a table's cell."""
    shown = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in str(value))
    shown = re.sub(r"[\\`*_{}\[\]#|!~$@:+]", r"\\\g<0>", " ".join(shown.split()))
    shown = re.sub(r"(?i)\bwww\.", r"www\\.", shown)
    return re.sub(r"[&<>]", lambda found: _HTML[found.group()], shown)


def code(value: object) -> str:
    """A hash, a name or a setting as code; what could end it early, as text."""
    return f"`{value}`" if re.fullmatch(r"[\w./=:+@-]+", str(value)) else text(value)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table (GitHub Flavored Markdown, 4.10) of cells that are safe already; numbers to the right."""
    lines = [columns, ["---"] + ["---:"] * (len(columns) - 1), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def listing(facts: Iterable[tuple[str, str | None]]) -> str:
    """A list of what is known."""
    return "\n".join(f"- **{name}**: {value}" for name, value in facts if value)
