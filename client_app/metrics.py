"""What `hospital start` tells Prometheus, for this hospital's own eyes: nothing of it is sent anywhere.

No label holds anything of a patient, an image, a path or a run: reasons, kinds and parts from closed
lists, and the number of a GPU.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prometheus_client.metrics_core import Metric

from client_app.ledger import file_of
from client_app.site import Site
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
    rows,
    seconds_of,
)

REQUESTS = Described("counter", "requests", "Requests of the coordinator that were looked at.")
ANSWERS = Described(
    "counter",
    "answers",
    "Answers that left; letter: a step of a secure sum; repeat: the same as before.",
    "kind",
)
REFUSALS = Described("counter", "refusals", "Requests that were refused.", "reason")
STARTS = Described("counter", "starts", "Times that hospital start was run.")
RECEIVED = Described("counter", "received_bytes", "Models and differences that came, packed.")
SENT = Described("counter", "sent_bytes", "Updates that left, packed.")
LAST_REQUEST = Described("gauge", "last_request_timestamp_seconds", "When one last came.")
LAST_ANSWER = Described("gauge", "last_answer_timestamp_seconds", "When one last left.")
LAST_BACKUP = Described("gauge", "last_backup_timestamp_seconds", "When the last was made.")
CHARGES = Described("gauge", "ledger_charges", "Charges in the ledger.")
SPENT = Described("gauge", "epsilon_spent", "ε of all charges, at the last charge's δ.")
LEFT = Described("gauge", "epsilon_left", "ε of the budget that is left.")
FILES = Described("gauge", "indexed_files", "Image files by what became of them.", "state")
GPU_USED = Described("gauge", "gpu_memory_used_bytes", "By all processes on it.", "gpu")
GPU_TOTAL = Described("gauge", "gpu_memory_bytes", "Memory that the GPU has.", "gpu")

ALL = (
    REQUESTS, ANSWERS, REFUSALS, STARTS, RECEIVED, SENT, LAST_REQUEST, LAST_ANSWER, LAST_BACKUP,
    CHARGES, SPENT, LEFT, FILES, CERTIFICATE, GPU_USED, GPU_TOTAL, DISK_FREE, FAILED,
)  # fmt: skip

_REASONS = frozenset(reason.value for reason in Reason)
_ANSWERS = ("answer", "letter", "repeat")
_PATIENCE = 5.0  # seconds for nvidia-smi


def parts(site: Site) -> Mapping[str, Part]:
    """What is told, by part; one that fails leaves the others."""
    audit, index = _Audit(site.state / "audit.jsonl"), _Index(site.state / "index.sqlite")
    return {
        "audit": audit.metrics,
        "ledger": lambda: _ledger(site),
        "index": index.metrics,
        "certificate": lambda: [CERTIFICATE.of({("authority",): days_left(site.kit / "ca.crt")})],
        "gpu": _gpus,
        "disk": lambda: [DISK_FREE.of(shutil.disk_usage(site.state).free)],
    }


class _Audit:
    """Counts over the audit log, of which each scrape reads what is new.

    The log's chain is not verified here: `hospital audit verify` does that.
    """

    def __init__(self, path: Path) -> None:
        self._lines = Lines(path, self._forget)
        self._forget()

    def _forget(self) -> None:
        self._events: Counter[str] = Counter()
        self._refusals: Counter[tuple[str, ...]] = Counter()
        self._received = self._sent = 0
        self._last: dict[str, float] = {}

    def metrics(self) -> Iterator[Metric]:
        for entry in self._lines.new():
            self._count(entry)
        yield REQUESTS.of(self._events["request"])
        yield ANSWERS.of({(kind,): self._events[kind] for kind in _ANSWERS})
        yield REFUSALS.of(dict(self._refusals))
        yield STARTS.of(self._events["started"])
        yield RECEIVED.of(self._received)
        yield SENT.of(self._sent)
        for metric, what in (
            (LAST_REQUEST, "request"), (LAST_ANSWER, "sent"), (LAST_BACKUP, "backup")
        ):  # fmt: skip
            yield metric.of(self._last.get(what))

    def _count(self, entry: dict[str, Any]) -> None:
        event, fields = str(entry.get("event")), entry.get("fields")
        if not isinstance(fields, dict):
            return
        self._events[event] += 1
        size = fields.get("bytes")
        if event == "request":
            self._received += size if isinstance(size, int) else 0
        elif event in _ANSWERS:
            self._sent += size if isinstance(size, int) else 0
        elif event == "refusal":
            reason = fields.get("reason")
            self._refusals[reason if reason in _REASONS else "other",] += 1
        what = "sent" if event in (*_ANSWERS, "refusal") else event
        if what in ("request", "sent", "backup"):
            self._last[what] = seconds_of(str(entry.get("time")))


def _ledger(site: Site) -> Iterator[Metric]:
    """What the newest row says; the ledger's own code verifies the chain."""
    if site.privacy is None:
        return
    newest = "SELECT position, content FROM charges ORDER BY position DESC LIMIT 1"
    for charges, content in rows(file_of(site, site.privacy), newest):
        spent = float(json.loads(content)["epsilon"]) if charges else 0.0
        yield CHARGES.of(charges)
        yield SPENT.of(spent)
        yield LEFT.of(max(site.privacy.epsilon - spent, 0.0))


class _Index:
    """How many files there are; counted anew only where the index has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: list[tuple[int, int]] = []
        self._counts: ByLabels = {}

    def metrics(self) -> Iterator[Metric]:
        files = (self._path, self._path.with_name(self._path.name + "-wal"))
        stamps = [file.stat() for file in files if file.exists()]
        seen = [(stamp.st_mtime_ns, stamp.st_size) for stamp in stamps]
        if seen != self._seen:
            query = "SELECT count(*), count(*) FILTER (WHERE reason != '') FROM files"
            counted = rows(self._path, query)
            self._counts = {}
            for found, aside in counted:
                self._counts = {("readable",): found - aside, ("set_aside",): aside}
            self._seen = seen
        yield FILES.of(self._counts)


def _gpus() -> Iterator[Metric]:
    """Of all GPUs that this machine's driver shows; none where there is no driver.

    Asked of the driver's own program: PyTorch would take a few hundred MB of the GPU to answer.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return
    command = [
        program,
        "--query-gpu=index,memory.used,memory.total",
        "--format=csv,noheader,nounits",
    ]
    answer = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=_PATIENCE,
        check=True,
        stdin=subprocess.DEVNULL,
    ).stdout
    used: ByLabels = {}
    total: ByLabels = {}
    for line in answer.splitlines():
        gpu, *mib = (int(word) for word in line.split(","))
        used[str(gpu),], total[str(gpu),] = (number * float(1 << 20) for number in mib)
    yield GPU_USED.of(used)
    yield GPU_TOTAL.of(total)
