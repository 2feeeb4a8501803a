"""Log records that may leave for a log server: one JSON object a line, closed fields, no free text.

    {"time": "2027-01-31T22:04:05.678Z", "level": "info", "logger": "consilium", "process": "superexec",
     "event": "answer", "run": "monday", "round": 3, "bytes": 70112}

What an exception or a library says may hold a file's name or a header's value. So a record has the words
that stand in the code that logs it, with … for each value, and of an error its types and places in the
code. Anything else becomes `withheld`, with how many lines it was. `errors.jsonl` and the audit log of a
hospital, which stay there, know more.
"""

from __future__ import annotations

import ast
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.util import find_spec
from logging.handlers import RotatingFileHandler
from pathlib import Path
from types import TracebackType
from typing import Any

from federation.messages import Reason

VARIABLE = "CONSILIUM_LOG"  # `stdout`: as in a container; else files that rotate
WITHHELD = "withheld"

_NAME = "consilium"
_LARGEST, _KEPT = 10 << 20, 5  # bytes of a log file, and how many older ones are kept
_MOST_PLACES = 40  # of an error
_PLACE = re.compile(r"[A-Za-z_][\w.]{0,80}(:[\w<>]{1,80}:\d{1,6})?")
_WORD = re.compile(r"[a-z][a-z_-]{0,40}")
_RUN = re.compile(r"[a-z0-9][a-z0-9._-]{0,80}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
_VALUE = re.compile(r"%(\(\w+\))?[-#0 +]*\d*(\.\d+)?[a-zA-Z]")
_LEAST_WORDS = 8  # letters that a template has to have besides its values
_REASONS = frozenset(reason.value for reason in Reason)
_EVENTS = frozenset(
    {
        *("started", "request", "charge", "answer", "letter", "repeat", "refusal", "code_refused"),
        *("identity", "roster", "backup", "restored", "torn", "error", "process_ended", WITHHELD),
        *("run_running", "run_completed", "run_failed"),
    }
)


def _is_int(value: object) -> bool:
    return type(value) is int and abs(value) < 2**63


def _matches(pattern: re.Pattern[str]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None


FIELDS: Mapping[str, Callable[[object], bool]] = {
    "process": _matches(_WORD),
    "run": _matches(_RUN),
    "round": _is_int,
    "reason": lambda value: isinstance(value, str) and value in _REASONS,
    "bytes": _is_int,
    "charges": _is_int,
    "exit": _is_int,
    "lines": _is_int,
    "error": lambda value: (
        isinstance(value, list) and len(value) <= _MOST_PLACES and all(map(_matches(_PLACE), value))
    ),
}


def told(event: str, **fields: object) -> dict[str, Any]:
    """What to hand to a logging call as `extra`; a field that is no such field is left out."""
    return {"consilium": {"event": event, **fields}}


def line(
    level: str, logger: str, event: str, fields: Mapping[str, object], time: float | None = None
) -> str:
    """A record; fields that are not as `FIELDS` has them are left out."""
    stamp = datetime.now(UTC) if time is None else datetime.fromtimestamp(time, UTC)
    head = {
        "time": stamp.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": level.lower(),
        "logger": logger,
        "event": event,
    }
    known = {name: value for name, value in fields.items() if name in FIELDS}
    return json.dumps(head | {name: v for name, v in known.items() if FIELDS[name](v)})


def accepted(text: str, process: str) -> str | None:
    """A line that another process of ours wrote, if nothing in it is beyond what it may be."""
    try:
        said = json.loads(text)
        time, level, logger, event = (said.pop(k) for k in ("time", "level", "logger", "event"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if not (_matches(_TIME)(time) and isinstance(level, str) and isinstance(event, str)):
        return None
    if level not in _LEVELS or logger != _NAME:
        return None
    if event not in _EVENTS and event not in vocabulary():
        return None
    return line(level, logger, event, {**said, "process": process}, seconds_of(time))


_LEVELS = frozenset({"debug", "info", "warning", "error", "critical"})


def seconds_of(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()


class Records(logging.Formatter):
    """Formats Python's log records so; values of a message are never put in."""

    def format(self, record: logging.LogRecord) -> str:
        ours = record.name.split(".")[0] == _NAME
        fields = dict(getattr(record, "consilium", {}))
        event = fields.pop("event", None)
        if event not in _EVENTS:
            event = template(record.msg) if ours and isinstance(record.msg, str) else WITHHELD
        if record.exc_info and record.exc_info[1] is not None:
            fields["error"] = describe(record.exc_info[1])[:_MOST_PLACES]
        name = _NAME if ours else "other"
        return line(record.levelname, name, event, fields, record.created)


def to_stdout() -> bool:
    """Whether records go to standard output, for a container's runtime to collect."""
    return os.environ.get(VARIABLE) == "stdout"


def sink(path: Path | None) -> logging.Handler:
    """Where records of one process go: standard output, or a file that rotates.

    A file and its older ones take 60 MiB at most.
    """
    if path is None or to_stdout():
        return logging.StreamHandler(sys.stdout)
    path.parent.mkdir(parents=True, exist_ok=True)
    return RotatingFileHandler(path, maxBytes=_LARGEST, backupCount=_KEPT, delay=True)


def keep(path: Path | None) -> None:
    """Have this process's own records go to `sink(path)`; on a terminal people see them as before."""
    _attach(sink(path), alone=path is None or to_stdout())


def to_supervisor() -> None:
    """Have this process's own records go to its standard error, where its supervisor reads them."""
    _attach(logging.StreamHandler(), alone=True)


def _attach(handler: logging.Handler, *, alone: bool) -> None:
    logger = logging.getLogger(_NAME)
    if any(isinstance(known.formatter, Records) for known in logger.handlers):
        return
    handler.setFormatter(Records())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = not alone


def describe(error: BaseException) -> list[str]:
    """An error's type and where it rose, and those of its cause; never its text."""
    lines = [type(error).__name__]
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        lines.append(f"{trace.tb_frame.f_globals.get('__name__')}:{code.co_name}:{trace.tb_lineno}")
        trace = trace.tb_next
    return lines + (describe(error.__cause__) if error.__cause__ is not None else [])


def template(message: str) -> str:
    """A message's first line with … for each value that would be put in."""
    return _VALUE.sub("…", message.replace("%%", "%").strip().split("\n")[0])


@cache
def vocabulary() -> Mapping[str, re.Pattern[str]]:
    """What Flower's and our own code can log: by template, what a line made of it looks like.

    Read from the installed code, so that it is of that version: the text of each call of `log`, as
    far as it stands there. What is no literal is a value.
    """
    found: dict[str, re.Pattern[str]] = {}
    for package in ("flwr", "federation", "server_app", "client_app"):
        spec = find_spec(package)
        for root in (spec.submodule_search_locations or ()) if spec else ():
            for file in sorted(Path(root).rglob("*.py")):
                found |= _logged(file)
    return found


def _logged(file: Path) -> dict[str, re.Pattern[str]]:
    source = file.read_text(encoding="utf-8", errors="replace")
    if "log" not in source:
        return {}
    try:
        calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    except (SyntaxError, RecursionError):
        return {}
    found = {}
    for call in calls:
        for message in _messages(call):
            words = template(message)
            if sum(letter.isalpha() for letter in words) >= _LEAST_WORDS:
                parts = map(re.escape, words.split("…"))
                found[words] = re.compile(".*".join(parts), re.DOTALL)
    return found


def _messages(call: ast.Call) -> Iterator[str]:
    """The literal text of `log(LEVEL, text, …)` or `log.warning(text, …)`."""
    match call.func:
        case ast.Name(id="log") | ast.Attribute(attr="log"):
            arguments = call.args[1:2]
        case ast.Attribute(value=ast.Name(id="log" | "logger"), attr=level) if level in _LEVELS:
            arguments = call.args[:1]
        case _:
            return
    for argument in arguments:
        match argument:
            case ast.Constant(value=str(text)):
                yield text
            case ast.JoinedStr(values=values):
                yield "".join(
                    str(part.value).replace("%", "%%") if isinstance(part, ast.Constant) else "%s"
                    for part in values
                )
