"""Answers that were sent, kept for the case that they did not arrive.

A private answer cannot be made twice for one charge: the second has other noise, and two are more than
one. So the same request gets the same bytes again, for nothing.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from flwr.app import RecordDict

from client_app.private_file import write_private
from federation import wire
from federation.messages import Request
from federation.schema import ConfigError

_KEPT = 4  # the newest: a coordinator asks again for the round that it has not finished


def digest(request: Request, experiment_sha256: str, model: bytes) -> str:
    """SHA-256 of all that decides what an answer may hold; what was lodged does not."""
    content = asdict(replace(request, lodged=None)) | {
        "experiment": experiment_sha256,
        "model": hashlib.sha256(model).hexdigest(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Answers:
    """One file an answer, named by its request's digest, in a folder of the hospital's state."""

    folder: Path

    def keep(self, request: str, records: RecordDict) -> None:
        """Have the answer on the disk before it leaves.

        Raises:
            ConfigError: the folder cannot be written to.
        """
        write_private(self.folder / request, wire.records_to_bytes(records))
        files = sorted(self.folder.glob("[0-9a-f]*"), key=lambda file: file.stat().st_mtime_ns)
        for old in files[:-_KEPT]:
            old.unlink(missing_ok=True)

    def find(self, request: str) -> RecordDict | None:
        """The answer that this request got, if it is still here and whole."""
        try:
            return wire.records_from_bytes((self.folder / request).read_bytes())
        except (OSError, ValueError, ConfigError):
            return None
