"""Where the seconds of a round go, from what the probe in `_probe` noted."""

from __future__ import annotations

import itertools
import json
import statistics
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]

PHASES = (
    "coordinator: choose, ask who is there, pack",
    "coordinator: push; SuperNode hears of it",
    "SuperNode: fetch the message",
    "SuperExec: take the task",
    "SuperExec: fork the ClientApp",
    "ClientApp: fetch the message",
    "ClientApp: unpack and import the bundle",
    "ClientApp: work but training",
    "ClientApp: training",
    "ClientApp: answer to the SuperNode",
    "SuperNode: see the answer",
    "SuperNode: answer to the SuperLink",
    "coordinator: fetch the answers",
    "coordinator: average, step, save",
)
LETTERS = ("sign", "open")  # the exchanges of a secure sum after the work, each in its own words


@dataclass(frozen=True)
class Calls:
    """Of one function in a round: how many, and seconds of all together, of the clock and the processor.

    A process has several threads; the processor's seconds are those of all of them.
    """

    number: float
    seconds: float
    processor: float


def breakdown(folder: Path, run: int = 0) -> dict[str, float]:
    """Median seconds of each phase over the rounds after the first, on the slowest hospital's path.

    A phase lasts from the latest of all earlier marks to its own, so that phases that overlap are
    not counted twice and all together make the round. Those of a letter have its name in front.

    Args:
        run: which of the runs that the folder tells of, in order of time.
    """
    by_event = _by_event(folder)
    table: dict[str, list[float]] = defaultdict(list)
    for began, ended in _rounds(by_event, run)[1:]:
        pushes = [row["began"] for row in by_event["push"] if began <= row["began"] < ended]
        latest, ends = began, [*pushes[1:], ended]
        for letter, push, end in zip(("", *LETTERS), pushes, ends, strict=False):
            marks = max(_paths(by_event, push, end), key=lambda path: path[-1])
            for phase, mark in zip(PHASES[:-1], marks, strict=True):
                table[f"{letter}: {phase}" if letter else phase].append(max(0.0, mark - latest))
                latest = max(latest, mark)
        table[PHASES[-1]].append(ended - latest)
    return {phase: statistics.median(seconds) for phase, seconds in table.items()}


def spans(folder: Path) -> dict[str, tuple[int, float]]:
    """Calls and median seconds of each function that was noted, for a closer look."""
    durations: dict[str, list[float]] = defaultdict(list)
    for event, rows in _by_event(folder).items():
        durations[event] = [row["ended"] - row["began"] for row in rows]
    return {event: (len(v), statistics.median(v)) for event, v in sorted(durations.items())}


def calls(folder: Path, run: int) -> dict[str, Calls]:
    """What each function takes in a round, at all hospitals together; the mean of all but the first.

    Functions call each other, so nothing adds up.
    """
    by_event = _by_event(folder)
    rounds = _rounds(by_event, run)[1:]
    result = {}
    for event, rows in sorted(by_event.items()):
        inside = [r for r in rows for began, ended in rounds if began <= r["began"] < ended]
        if inside and "used" in inside[0]:
            count = len(rounds)
            result[event] = Calls(
                len(inside) / count,
                sum(row["ended"] - row["began"] for row in inside) / count,
                sum(row["used"] for row in inside) / count,
            )
    return result


def _by_event(folder: Path) -> dict[str, list[Row]]:
    by_event: dict[str, list[Row]] = defaultdict(list)
    for path in folder.glob("*.jsonl"):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            by_event[row["event"]].append(row)
    for rows in by_event.values():
        rows.sort(key=lambda row: row["began"])
    return by_event


def _rounds(by_event: Mapping[str, list[Row]], run: int) -> list[tuple[float, float]]:
    """From when to when each round of a run was; not the last, whose saving was not seen."""
    starts: dict[int, list[float]] = defaultdict(list)
    for row in by_event["server_app.rounds.Conductor.round"]:
        starts[row["pid"]].append(row["began"])  # a run has a process of its own
    in_time = sorted(starts.values())
    return list(itertools.pairwise(in_time[run]))


def _paths(by_event: Mapping[str, list[Row]], push: float, end: float) -> list[list[float]]:
    """The marks of each hospital in one exchange."""
    result = []
    for store in by_event["store"]:
        if not push <= store["began"] < end:
            continue
        node = store["node"]
        fetched = next(
            row for row in by_event["input"] if row["node"] == node and push <= row["ended"] < end
        )
        process = fetched["pid"]
        born = _only(by_event["born"], pid=process)
        launch = max(
            row["began"]
            for row in by_event["launch"]
            if row["pid"] == born["parent"] and row["began"] <= born["began"]
        )
        call = _only(by_event["call"], pid=process)
        trained = [r for r in by_event["client_app.training.loop.train"] if r["pid"] == process]
        seconds = sum(row["ended"] - row["began"] for row in trained)
        answer = _only(by_event["answer"], pid=process)
        send = next(
            row for row in by_event["send"] if row["node"] == node and push <= row["began"] < end
        )
        collect = next(
            row
            for row in by_event["collect"]
            if push <= row["began"] and any(r["node"] == node for r in row["replies"])
        )
        result.append([
            push, store["began"], store["ended"], launch, born["began"],
            fetched["ended"], call["began"], call["ended"] - seconds, call["ended"],
            answer["ended"], send["began"], send["ended"], collect["ended"],
        ])  # fmt: skip
    return result


def _only(rows: list[Row], **tags: object) -> Row:
    return next(row for row in rows if all(row.get(k) == v for k, v in tags.items()))
