"""Matplotlib figures as inline SVG that takes its colours and its font from the page.

Matplotlib writes fixed colours. A figure here is drawn in placeholder colours, one for each role;
in the SVG text each is replaced by a CSS variable, so that one drawing serves a light page, a dark
page and paper. Text stays text: it can be read aloud, searched and copied.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Role → placeholder: colours that no one would draw in, exact in hexadecimal.
INK = "#0a0b01"
MUTED = "#0a0b02"
GRID = "#0a0b03"
WORST = "#0a0b04"
DOWN = "#0a0b05"
UP = "#0a0b06"
SERIES = tuple(f"#0a0b{16 + index:02x}" for index in range(6))

_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    WORST: "--worst",
    DOWN: "--bar-strong",
    UP: "--bar-soft",
    **{colour: f"--series-{index + 1}" for index, colour in enumerate(SERIES)},
}

_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.parse_math": False,  # a `$` in a name is a dollar
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "ytick.major.size": 0,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
    "legend.frameon": False,
    "legend.handlelength": 1.1,
    "legend.handleheight": 0.8,
    "path.simplify": False,
}


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib's settings for these figures, for building and for rendering."""
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # The browser draws the text; that our measuring font lacks a letter is no matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def inline_svg(figure: Figure, *, key: str, label: str) -> Markup:
    """The figure as an `<svg>` element for an HTML page.

    The same figure gives the same text. Nothing in it points outside the page.

    Args:
        key: unique on the page; it goes before every id within.
        label: what a screen reader says.
    """
    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": key}):
        FigureCanvasSVG(figure).print_svg(
            file, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    text = file.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text, flags=re.DOTALL)
    end = text.index(">")
    box = re.search(r'viewBox="[\d. ]*"', text[:end])
    # Only what stands within a tag is rewritten: a hospital may be called what it likes.
    body = re.sub(r"<[^>]*>", lambda tag: _themed(tag.group(), key), text[end + 1 :])
    opening = Markup('<svg role="img" aria-label="{}" {}>').format(
        label,
        Markup(box.group() if box else ""),  # noqa: S704 - digits, see the pattern
    )
    return opening + Markup(body)  # noqa: S704 - written by Matplotlib, which escapes text


def _themed(tag: str, key: str) -> str:
    tag = re.sub(r"#0a0b[0-9a-f]{2}", lambda found: f"var({_VARIABLES[found.group()]})", tag)
    tag = re.sub(r"font-family: [^;\"]*;?", "", tag)  # the page's font
    tag = re.sub(r"font: (bold |\d+ )?([\d.]+)px [^;\"]+", _font, tag)
    tag = re.sub(r' (?:xlink:)?href="#', f' href="#{key}-', tag)
    tag = re.sub(r' id="', f' id="{key}-', tag)
    return tag.replace("url(#", f"url(#{key}-")


def _font(found: re.Match[str]) -> str:
    weight = "font-weight: 600; " if found.group(1) in ("bold ", "700 ") else ""
    return f"{weight}font-size: {found.group(2)}px"
