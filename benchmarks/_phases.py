"""Where the seconds of a round go, from what the probe in `_probe` noted."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Mapping
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


def breakdown(folder: Path) -> dict[str, float]:
    """Median seconds of each phase over the rounds after the first, on the slowest hospital's path.

    A phase lasts from the latest of all earlier marks to its own, so that phases that overlap are
    not counted twice and all together make the round.
    """
    rows = [
        json.loads(line)
        for path in folder.glob("*.jsonl")
        for line in path.read_text().splitlines()
    ]
    by_event: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_event[row["event"]].append(row)
    rounds = sorted(by_event["server_app.rounds.Conductor.round"], key=lambda row: row["began"])
    starts = [row["began"] for row in rounds]
    table: dict[str, list[float]] = defaultdict(list)
    for number in range(2, len(starts)):  # the last has no next one
        paths = _paths(by_event, str(number))
        marks = max(paths, key=lambda path: path[-1])
        latest = starts[number - 1]
        for phase, mark in zip(PHASES, [*marks, starts[number]], strict=True):
            if mark is None:
                continue
            table[phase].append(max(0.0, mark - latest))
            latest = max(latest, mark)
    return {phase: statistics.median(table[phase]) for phase in PHASES if table[phase]}


def spans(folder: Path) -> dict[str, tuple[int, float]]:
    """Calls and median seconds of each function that was noted, for a closer look."""
    durations: dict[str, list[float]] = defaultdict(list)
    for path in folder.glob("*.jsonl"):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            durations[row["event"]].append(row["ended"] - row["began"])
    return {event: (len(v), statistics.median(v)) for event, v in sorted(durations.items())}


def _paths(by_event: Mapping[str, list[Row]], number: str) -> list[list[float]]:
    """The marks of each hospital in one round, but the last."""
    push = next(row for row in by_event["push"] if row["round"] == number)
    result = []
    for store in (row for row in by_event["store"] if row["round"] == number):
        node = store["node"]
        fetched = _only(by_event["input"], round=number, node=node)
        process = fetched["pid"]
        born = _only(by_event["born"], pid=process)
        launch = max(
            row["began"]
            for row in by_event["launch"]
            if row["pid"] == born["parent"] and row["began"] <= born["began"]
        )
        call = _only(by_event["call"], pid=process)
        training = _only(by_event["client_app.training.loop.train"], pid=process)
        seconds = training["ended"] - training["began"]
        answer = _only(by_event["answer"], pid=process)
        send = _only(by_event["send"], round=number, node=node)
        collect = next(
            row
            for row in by_event["collect"]
            if any(r["round"] == number and r["node"] == node for r in row["replies"])
        )
        result.append([
            push["began"], store["began"], store["ended"], launch, born["began"],
            fetched["ended"], call["began"], call["ended"] - seconds, call["ended"],
            answer["ended"], send["began"], send["ended"], collect["ended"],
        ])  # fmt: skip
    return result


def _only(rows: list[Row], **tags: object) -> Row:
    return next(row for row in rows if all(row.get(k) == v for k, v in tags.items()))
