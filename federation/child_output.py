"""What a child process writes to its output, read line by line, and what of it a log may keep.

Flower's processes write text for people, and a library or an interpreter that ends may write anything.
A line is kept as a record of ours, if that is what it is; or as the template of a message that stands
in the installed code; a traceback as types and places. Of other lines only their number is kept.

This is against accidents. Code that a hospital approved and that wants to tell something could put it
into the name of a function; who reads the code before approving it is who keeps it from that.
"""

from __future__ import annotations

import builtins
import contextlib
import logging
import re
import threading
from collections.abc import Iterator
from typing import IO

from federation import journal

_LONGEST = 1 << 14  # bytes of a line that are looked at
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_FLOWER = re.compile(r"(DEBUG|INFO|WARNING|ERROR|CRITICAL)\s*(?:[\d :,.TZ-]*):?\s+(.*)")
_FRAME = re.compile(r'\s+File "(?:.*/)?([A-Za-z_]\w*)\.py", line (\d+), in ([\w<>]+)')
_TYPE = re.compile(r"((?:[A-Za-z_]\w*\.)*[A-Z]\w*)(?::.*)?")
_ENDINGS = ("Error", "Exception", "Exit", "Interrupt", "Warning", "Timeout")


class Reader:
    """Turns one process's lines into records."""

    def __init__(self, process: str) -> None:
        self._process = process
        self._withheld = 0
        self._places: list[str] | None = None  # of the traceback that is being read

    def feed(self, text: str) -> Iterator[str]:
        """The records that this line completes."""
        text = _COLOURS.sub("", text.rstrip("\r\n"))
        if not text.strip():
            return
        if self._places is not None:
            if text[0].isspace():
                self._add_place(text)
                return
            yield from self._end_of_traceback(text)
            return
        if text.startswith("Traceback (most recent call last)"):
            self._places = []
            return
        if (record := journal.accepted(text, self._process)) or (record := self._known(text)):
            yield from self._told()
            yield record
            return
        self._withheld += 1
        if (
            self._withheld == 1
        ):  # at once, since nothing may follow it; the rest when something does
            yield self._record("warning", journal.WITHHELD, lines=1)

    def end(self) -> Iterator[str]:
        """What is left when the output ends."""
        if self._places is not None:
            yield from self._end_of_traceback("")
        yield from self._told()

    def _told(self) -> Iterator[str]:
        if self._withheld > 1:
            yield self._record("warning", journal.WITHHELD, lines=self._withheld - 1)
        self._withheld = 0

    def _known(self, text: str) -> str | None:
        said = _FLOWER.fullmatch(text)
        level, message = said.groups() if said else ("info", text)
        fitting = [words for words, form in journal.vocabulary().items() if form.fullmatch(message)]
        if not fitting:
            return None
        return self._record(level, max(fitting, key=len), logger="flwr")

    def _add_place(self, text: str) -> None:
        found = _FRAME.match(text)
        if found and self._places is not None:
            module, number, function = found.groups()
            self._places.append(f"{module}:{function}:{number}")

    def _end_of_traceback(self, text: str) -> Iterator[str]:
        places, self._places = (self._places or [])[-30:], None
        found = _TYPE.fullmatch(text)
        name = found.group(1).rpartition(".")[2] if found else ""
        known = isinstance(getattr(builtins, name, None), type) or name.endswith(_ENDINGS)
        yield from self._told()
        yield self._record("error", "error", error=[*([name] if known else []), *places])

    def _record(self, level: str, event: str, logger: str = "output", **fields: object) -> str:
        return journal.line(level, logger, event, {"process": self._process, **fields})


def follow(output: IO[bytes], process: str, sink: logging.Handler) -> None:
    """Read a process's output to its end, from a thread of its own, so that it never waits for us."""
    threading.Thread(target=_read, args=(output, process, sink), daemon=True).start()


def _read(output: IO[bytes], process: str, sink: logging.Handler) -> None:
    reader = Reader(process)
    with output:
        for line in iter(lambda: output.readline(_LONGEST), b""):
            with contextlib.suppress(Exception):  # a line may be lost; a full pipe would halt all
                _write(sink, reader.feed(line.decode("utf-8", "replace")))
        _write(sink, reader.end())


def _write(sink: logging.Handler, records: Iterator[str]) -> None:
    for record in records:
        sink.handle(logging.makeLogRecord({"msg": record, "levelno": logging.INFO}))
