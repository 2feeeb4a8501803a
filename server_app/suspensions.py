"""Hospitals that runs do not ask for the time being, `suspended.json`.

A suspended hospital stays on the roster and stays connected: Flower never takes a key back that it once
put out (flwr 1.41), and a hospital that is put out of the roster needs new keys and everybody's
consent. So being suspended is the coordinator's own affair, and runs look here at each round's start.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from federation.schema import ConfigError
from server_app.state import now, write_atomically


@dataclass(frozen=True)
class Suspension:
    """Attributes:
    since: ISO 8601, UTC.
    reason: the coordinator's words, for the coordinator.
    """

    since: str
    reason: str


@dataclass(frozen=True)
class Suspensions:
    """The file; absent while nobody is suspended. Several processes may use it at once."""

    path: Path

    def all(self) -> dict[str, Suspension]:
        """By hospital. Raises ConfigError: the file is damaged."""
        try:
            content = json.loads(self.path.read_bytes())
            return {name: Suspension(**told) for name, told in content.items()}
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError, AttributeError):
            raise ConfigError(
                f"{self.path} is damaged: nobody can tell who is suspended. Bring it back from a "
                "backup, or delete it and suspend anew whom it is to name"
            ) from None

    def add(self, name: str, reason: str) -> None:
        """Raises ConfigError: it is suspended already, or the file is damaged."""
        with self._changing() as suspended:
            if (told := suspended.get(name)) is not None:
                raise ConfigError(f"{name} is suspended already, since {told.since}")
            suspended[name] = Suspension(now(), reason)

    def lift(self, name: str) -> None:
        """Raises ConfigError: it is not suspended, or the file is damaged."""
        with self._changing() as suspended:
            if suspended.pop(name, None) is None:
                raise ConfigError(f"{name} is not suspended")

    def forget(self, name: str) -> None:
        """Of a hospital that was put out."""
        if name in self.all():
            self.lift(name)

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Suspension]]:
        with self.path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            suspended = self.all()
            yield suspended
            content = {name: asdict(told) for name, told in sorted(suspended.items())}
            write_atomically(self.path, json.dumps(content, indent=1).encode() + b"\n")
