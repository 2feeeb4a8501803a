"""Operations metrics for Prometheus, made from what is on the disk at the moment of the scrape.

ClientApps and ServerApps live for one message or one run, so nobody is there to be asked: the process
that supervises them reads their files. It only reads, holds no lock, and what one file has wrong costs
the metrics of that file and no others (`consilium_metrics_failed`).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any, Literal

from cryptography import x509
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from federation.schema import ConfigError

Part = Callable[[], Iterable[Metric]]
ByLabels = dict[tuple[str, ...], float]

_LARGEST_LINE = 2 << 20  # bytes; longer ones are passed over
_AT_ONCE = 64 << 20  # bytes of one file that are read in one scrape; the rest in the next


class Described:
    """A metric's name, kind, help and labels: one row of the tables in the pages."""

    def __init__(
        self, kind: Literal["counter", "gauge", "summary"], name: str, help: str, *labels: str
    ) -> None:
        self.kind, self.name, self.help, self.labels = kind, f"consilium_{name}", help, labels

    @property
    def shown(self) -> str:
        """The name as Prometheus has it."""
        return f"{self.name}_total" if self.kind == "counter" else self.name

    def of(self, values: float | ByLabels | None) -> Metric:
        """A gauge or counter with one value, or with a value by labels; None: it is not known now."""
        kind = CounterMetricFamily if self.kind == "counter" else GaugeMetricFamily
        metric = kind(self.name, self.help, labels=self.labels)
        if values is None:
            return metric
        if not isinstance(values, dict):
            values = {(): values}
        for labels, value in values.items():
            metric.add_metric(labels, value)
        return metric

    def summed(self, values: Mapping[tuple[str, ...], tuple[int, float]]) -> Metric:
        """A summary: how many there were, and their sum, by labels."""
        metric = SummaryMetricFamily(self.name, self.help, labels=self.labels)
        for labels, (count, total) in values.items():
            metric.add_metric(labels, count, total)
        return metric


FAILED = Described("gauge", "metrics_failed", "1 where this part could not be read now.", "part")
DISK_FREE = Described("gauge", "disk_free_bytes", "Free space where the folder is.")
CERTIFICATE = Described(
    "gauge", "certificate_left_days", "Days until it expires; negative after that.", "certificate"
)


class Parts(Collector):
    """A collector of parts that cannot spoil each other."""

    def __init__(self, parts: Mapping[str, Part]) -> None:
        self._parts = parts
        self._one_at_a_time = Lock()  # parts remember how far they have read

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering it would else read all files, before they need be there."""
        return []

    def collect(self) -> Iterator[Metric]:
        failed: ByLabels = {}
        with self._one_at_a_time:
            for name, part in self._parts.items():
                try:
                    found = list(part())
                except Exception:  # whatever is odd about one file: the others are to be seen
                    failed[name,] = 1
                    continue
                failed[name,] = 0
                yield from found
        yield FAILED.of(failed)


def serve(parts: Mapping[str, Part], address: str, port: int) -> None:
    """Serve `/metrics` from a thread of this process, until it ends.

    Raises:
        ConfigError: the port is taken, or the address is not this machine's.
    """
    registry = CollectorRegistry()
    registry.register(Parts(parts))
    try:
        start_http_server(port, address, registry)
    except OSError as error:
        raise ConfigError(
            f"metrics cannot be served on {address}:{port}: {error.strerror}; "
            "choose another port, or an address of this machine"
        ) from None


class Lines:
    """The lines of a growing JSON-lines file, each given once; a file that was replaced from its start.

    `fresh` is called when the file is another than before, or shorter: what was counted is void then.
    """

    def __init__(self, path: Path, fresh: Callable[[], None]) -> None:
        self._path, self._fresh = path, fresh
        self._inode, self._offset = 0, 0

    def new(self) -> Iterator[dict[str, Any]]:
        """Objects on the whole lines that have come since; what is no object is passed over."""
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            self._restart(0)
            return
        with file:
            found = self._path.stat()
            if found.st_ino != self._inode or found.st_size < self._offset:
                self._restart(found.st_ino)
            file.seek(self._offset)
            end = self._offset + _AT_ONCE
            while self._offset < end and (line := file.readline(_LARGEST_LINE)):
                if not line.endswith(b"\n") and len(line) < _LARGEST_LINE:
                    return  # it is being written
                self._offset += len(line)
                try:
                    content = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(content, dict):
                    yield content

    def _restart(self, inode: int) -> None:
        self._inode, self._offset = inode, 0
        self._fresh()


def rows(path: Path, query: str) -> list[Any]:
    """What a SQLite file answers, opened for reading alone; no rows where there is no file.

    With a write-ahead log a reader keeps nobody from writing.

    Raises:
        sqlite3.Error: it is damaged, or something else.
    """
    if not path.exists():
        return []
    address = f"{path.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(address, uri=True, timeout=1.0)) as database:
        return database.execute(query).fetchall()


def days_left(certificate: Path) -> float:
    """Days until it expires; negative after that. Raises OSError, ValueError: it is none."""
    expires = x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
    return (expires - datetime.now(UTC)).total_seconds() / 86_400


def seconds_of(time: str) -> float:
    """An ISO 8601 time as seconds since 1970."""
    return datetime.fromisoformat(time).timestamp()
