"""A sum under masks that nobody has opened yet, kept so that a crash of the coordinator costs no work.

    sum.bin in the run's folder: one line of JSON, then the summed integers, with a SHA-256 over both
    opening.bin  the same file, from when the first hospital may have opened it

The hospitals answer each step to one letter alone. So what they are asked to sign is fixed before the
first is asked, and asked again in the same words after a crash. A hospital opens a round once; so a sum
that one may have opened is kept, since no other of its round can be. Without masks taken off, and they
come off the sum of at least `least` hospitals alone, the file says nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from federation.messages import Reason, Request
from federation.secure_aggregation.masks import Occasion
from server_app.state import RunFolder, sync_folder, write_atomically

_CLOSED, _OPENING = "sum.bin", "opening.bin"


@dataclass(frozen=True)
class Unopened:
    """All that is needed to open a sum.

    Attributes:
        training: whether updates are in it, or figures alone.
        adverts, next_adverts: letters with the keys of this sum, and of the next.
        sharers: whose masks are in it. survivors: whose work is.
        left_out: why, by hospital whose work is not.
        update: uint32, masked integers mod 2^bits; figures: uint64, mod 2^64.
    """

    occasion: Occasion
    training: bool
    adverts: bytes
    sharers: tuple[str, ...]
    survivors: tuple[str, ...]
    left_out: Mapping[str, Reason]
    next_adverts: bytes
    bits: int
    update: NDArray[np.uint32]
    figures: NDArray[np.uint64]

    def save(self, folder: RunFolder) -> None:
        """Have it on the disk, in place of the last."""
        head = {
            "occasion": asdict(self.occasion),
            "training": self.training,
            "adverts": base64.b64encode(self.adverts).decode(),
            "sharers": self.sharers,
            "survivors": self.survivors,
            "left_out": dict(self.left_out),
            "next_adverts": base64.b64encode(self.next_adverts).decode(),
            "bits": self.bits,
            "update": len(self.update),
        }
        line = json.dumps(head).encode() + b"\n"
        parts = [line, self.update.tobytes(), self.figures.tobytes()]
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        write_atomically(folder.path / _CLOSED, b"".join([digest.digest(), *parts]))
        (folder.path / _OPENING).unlink(missing_ok=True)  # an earlier round's

    @staticmethod
    def opening(folder: RunFolder) -> None:
        """From now on it is kept."""
        if (folder.path / _CLOSED).exists():
            (folder.path / _CLOSED).replace(folder.path / _OPENING)
            sync_folder(folder.path)

    @staticmethod
    def drop(folder: RunFolder) -> None:
        """Forget it, if nobody can have opened it; the hospitals have to work for another sum."""
        (folder.path / _CLOSED).unlink(missing_ok=True)

    @classmethod
    def load(cls, folder: RunFolder, request: Request) -> Unopened | None:
        """The sum of this request, if it was made before a crash."""
        found = (cls._read(folder, name, request) for name in (_CLOSED, _OPENING))
        return next((one for one in found if one is not None), None)

    @classmethod
    def _read(cls, folder: RunFolder, name: str, request: Request) -> Unopened | None:
        try:
            stored = (folder.path / name).read_bytes()
        except FileNotFoundError:
            return None
        digest, content = stored[:32], stored[32:]
        if hashlib.sha256(content).digest() != digest:
            return None
        line, _, numbers = content.partition(b"\n")
        head = json.loads(line)
        occasion = Occasion(**head["occasion"])
        if occasion.round != request.round or head["training"] != request.train:
            return None
        length = head["update"]
        return cls(
            occasion=occasion,
            training=head["training"],
            adverts=base64.b64decode(head["adverts"]),
            sharers=tuple(head["sharers"]),
            survivors=tuple(head["survivors"]),
            left_out={name: Reason(why) for name, why in head["left_out"].items()},
            next_adverts=base64.b64decode(head["next_adverts"]),
            bits=head["bits"],
            update=np.frombuffer(numbers, np.uint32, length).copy(),
            figures=np.frombuffer(numbers, np.uint64, offset=4 * length).copy(),
        )
