"""CSV as hospitals export it: comma, semicolon or tab; UTF-8 or Windows-1252; BOM or not."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from federation.schema import ConfigError

_DELIMITERS = ",;\t"


def read_table(
    path: Path, *, where: str, columns: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows as (line number, column → text without surrounding spaces); absent optional ones empty.

    Errors quote nothing of the table: a table without a header line starts with a patient.

    Args:
        where: the configuration's key, for errors.

    Raises:
        ConfigError: no such file, a column is missing, or a row has not as many cells as the first.
    """
    needed = ",".join(columns)
    try:
        text = _decode(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read ({type(error).__name__})") from None
    first = text.split("\n", 1)[0]
    delimiter = max(_DELIMITERS, key=first.count)
    try:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        names = [name.strip().lower() for name in next(rows, [])]
        missing = [column for column in columns if column not in names]
        if missing or len(set(names)) < len(names):
            raise ConfigError(
                f"{where}: the first line must name the columns {needed}, each once; "
                f"not found: {', '.join(missing) or 'none'}"
            )
        for cells in rows:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(names):
                raise ConfigError(
                    f"{where}: line {rows.line_num} has {len(cells)} cells where the first line "
                    f"has {len(names)}"
                )
            row = dict.fromkeys(optional, "")
            row |= {name: cell.strip() for name, cell in zip(names, cells, strict=True)}
            yield rows.line_num, row
    except csv.Error:
        raise ConfigError(f"{where}: is not a table in CSV") from None


def _decode(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", "replace")
