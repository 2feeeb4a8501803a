"""A page as a test looks at it."""

from __future__ import annotations

import re
from html.parser import HTMLParser


class Page(HTMLParser):
    """Elements with their attributes, the ids, the text, and the values of `<data>`."""

    VOID = frozenset({"meta", "br", "path", "use", "image", "rect", "circle"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def numbers(self) -> list[float]:
        return [float(a["value"] or "nan") for tag, a in self.elements if tag == "data"]


def row(html: str, table: str, head: str) -> list[str]:
    """The cells, as HTML, of the row of `table` (its label) whose first cell begins with `head`."""
    body = html.split(f'aria-label="{table}"')[1].split("</table>")[0]
    found = [r for r in re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL) if f">{head}" in r]
    assert len(found) == 1, (table, head, len(found))
    return re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", found[0], re.DOTALL)


def values(cells: list[str]) -> list[float]:
    """What the `<data>` elements of cells hold, in order."""
    return [float(v) for cell in cells for v in re.findall(r'<data value="([^"]*)"', cell)]


def text(html: str) -> str:
    """The page's text with single spaces."""
    return " ".join(Page(html).text.split())
