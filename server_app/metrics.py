"""What `coordinator start` tells Prometheus: of the runs that were last at work, and of the federation.

The name of a run is a label; nobody's name is, of a hospital or a person.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prometheus_client.metrics_core import Metric

from federation.messages import Reason
from federation.metrics import (
    CERTIFICATE,
    DISK_FREE,
    FAILED,
    ByLabels,
    Described,
    Lines,
    Part,
    days_left,
    seconds_of,
)
from federation.processes import listens
from server_app.control import Control
from server_app.home import Home

UP = Described("gauge", "superlink_up", "1 while the SuperLink answers.")
HOSPITALS = Described(
    "gauge", "hospitals", "On the roster, by what the SuperLink says of them.", "status"
)
STATE = Described("gauge", "run_state", "1 for the state that the run is in.", "run", "state")
ROUND = Described("gauge", "run_round", "Rounds that are done.", "run")
ROUNDS = Described("gauge", "run_rounds", "Rounds that the experiment has.", "run")
UPDATED = Described("gauge", "run_updated_timestamp_seconds", "Its last sign of life.", "run")
DURATION = Described("summary", "round_duration_seconds", "How long rounds took.", "run")
LEFT_OUT = Described(
    "counter", "run_left_out", "Hospitals' answers that left a round, by why.", "run", "reason"
)
SENT = Described("counter", "run_sent_bytes", "Models and differences sent, packed.", "run")
RECEIVED = Described("counter", "run_received_bytes", "Updates that came, packed.", "run")

ALL = (
    UP, HOSPITALS, STATE, ROUND, ROUNDS, UPDATED, DURATION, LEFT_OUT, SENT, RECEIVED,
    CERTIFICATE, DISK_FREE, FAILED,
)  # fmt: skip

_NEWEST = 20  # runs that are told of, by their last sign of life
_STATES = ("running", "completed", "failed")
_STATUSES = ("online", "offline", "registered", "not_let_in", "other")
_REASONS = frozenset(reason.value for reason in Reason)


def parts(home: Home) -> Mapping[str, Part]:
    """What is told, by part; one that fails leaves the others."""
    runs = _Runs(home.runs)
    return {
        "superlink": lambda: _superlink(home),
        "runs": runs.metrics,
        "certificate": lambda: [
            CERTIFICATE.of(
                {
                    ("server",): days_left(home.server_certificate),
                    ("authority",): days_left(home.ca_certificate),
                }
            )
        ],
        "disk": lambda: [DISK_FREE.of(shutil.disk_usage(home.path).free)],
    }


def _superlink(home: Home) -> Iterator[Metric]:
    federation = home.federation()
    if not listens(federation.listen, federation.port):
        yield UP.of(0)
        return
    members = home.roster().members
    with Control(home) as control:
        said = control.hospitals(members)
    counts: Counter[str] = Counter(said.get(member.name, "not_let_in") for member in members)
    known: ByLabels = {(status,): float(counts.pop(status, 0)) for status in _STATUSES[:-1]}
    yield UP.of(1)
    yield HOSPITALS.of(known | {("other",): sum(counts.values())})


class _Runs:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._followed: dict[str, _Run] = {}

    def metrics(self) -> Iterator[Metric]:
        self._follow()
        durations: dict[tuple[str, ...], tuple[int, float]] = {}
        found: dict[Described, ByLabels] = {
            metric: {} for metric in (STATE, ROUND, ROUNDS, UPDATED, LEFT_OUT, SENT, RECEIVED)
        }
        for name, run in self._followed.items():
            if (status := run.look()) is None:
                continue
            for word in _STATES:
                found[STATE][name, word] = float(status["state"] == word)
            found[ROUND][name,] = status["round"]
            found[ROUNDS][name,] = status["rounds"]
            found[UPDATED][name,] = seconds_of(status["updated"])
            found[SENT][name,], found[RECEIVED][name,] = run.sent, run.received
            found[LEFT_OUT] |= {(name, reason): n for reason, n in run.left_out.items()}
            durations[name,] = (run.rounds, run.seconds)
        yield DURATION.summed(durations)
        for metric, values in found.items():
            yield metric.of(values)

    def _follow(self) -> None:
        """Keep to the newest runs; what was read of them is not read again."""
        found = [(_changed(path), path.parent) for path in self._folder.glob("*/status.json")]
        newest = [path for _, path in sorted(found, reverse=True)[:_NEWEST]]
        self._followed = {path.name: self._followed.get(path.name) or _Run(path) for path in newest}


class _Run:
    """Sums over a run's `metrics.jsonl`, which starts anew where rounds are done again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lines = Lines(folder / "metrics.jsonl", self._forget)
        self._forget()

    def _forget(self) -> None:
        self.rounds, self.seconds, self.sent, self.received = 0, 0.0, 0, 0
        self.left_out: Counter[str] = Counter()

    def look(self) -> dict[str, Any] | None:
        """Read what is new; the run's status, or None where it cannot be read."""
        try:
            for row in self._lines.new():
                if row.get("kind") == "round":
                    self._add(row)
            status = json.loads((self._folder / "status.json").read_text())
            status["state"], seconds_of(status["updated"])
            return {**status, "round": int(status["round"]), "rounds": int(status["rounds"])}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def _add(self, row: dict[str, Any]) -> None:
        self.rounds += 1
        self.seconds += float(row["seconds"])
        for hospital in row["hospitals"].values():
            self.sent += int(hospital.get("bytes_down", 0))
            self.received += int(hospital.get("bytes_up", 0))
            if hospital.get("status") != "ok":
                reason = hospital.get("reason")
                self.left_out[reason if reason in _REASONS else "other"] += 1


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
