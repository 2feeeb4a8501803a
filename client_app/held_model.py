"""The global model that this hospital holds, so that next time only what changed need come.

One file a run in the state folder, replaced by each model that comes; nothing in it is the hospital's.
What it holds is believed only while its SHA-256 is right: losing it costs a whole model on the wire.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from client_app.policy import Refused
from federation import wire
from federation.codec import down
from federation.messages import Arrays, Reason, Request, Shape

_KEPT = 3  # runs whose models are held
_DIGEST, _STAMP = 32, 8


@dataclass(frozen=True)
class HeldModel:
    """The file of one run."""

    path: Path

    @classmethod
    def of(cls, state: Path, run: str) -> HeldModel:
        return cls(state / "models" / hashlib.sha256(run.encode()).hexdigest()[:32])

    def whole(self, request: Request, blob: bytes, shape: Shape) -> tuple[Arrays, bytes]:
        """The model of a request and how `wire.pack` writes it, whichever way it came; held from now on.

        Raises:
            Refused: it came as a difference to a model that is not held (any more).
            WireError: the difference is none, or what came is no model of this shape.
        """
        if request.base is not None:
            held = self._read(request.base)
            if held is None:
                raise Refused(Reason.NO_MODEL)
            arrays = down.apply(wire.unpack(held, shape), blob)
            shape.check(arrays)
            blob = wire.pack(arrays)
        else:
            arrays = wire.unpack(blob, shape)
        self._write(request.round - 1, blob)
        return arrays, blob

    def _read(self, round_: int) -> bytes | None:
        try:
            with self.path.open("rb") as file:
                digest, stamp, blob = file.read(_DIGEST), file.read(_STAMP), file.read()
        except OSError:
            return None
        found = hashlib.sha256(stamp)
        found.update(blob)
        return blob if found.digest() == digest and stamp == _stamp(round_) else None

    def _write(self, round_: int, blob: bytes) -> None:
        """Replace the file; not synced, since a crash costs no more than a whole model."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        digest = hashlib.sha256(_stamp(round_))
        digest.update(blob)
        handle, draft = tempfile.mkstemp(dir=self.path.parent, prefix=".draft-")
        with os.fdopen(handle, "wb") as file:
            for part in (digest.digest(), _stamp(round_), blob):
                file.write(part)
        Path(draft).replace(self.path)
        files = sorted(self.path.parent.glob("[0-9a-f]*"), key=lambda f: f.stat().st_mtime_ns)
        for old in files[:-_KEPT]:
            old.unlink(missing_ok=True)


def _stamp(round_: int) -> bytes:
    return round_.to_bytes(_STAMP, "little")
