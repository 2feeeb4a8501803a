"""What the coordinator keeps of a run whose model only hospitals hold; it can decrypt none of it.

keys.json    the run's public context, hospitals' signed adverts, and the key sealed to each
sums/R.bin   the encrypted sum of round R with the signatures on who is in it; kept for hospitals
             that miss rounds
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from server_app.state import RunFolder, write_atomically


@dataclass
class KeyRing:
    """Who has the run's key, and how it came there.

    Attributes:
        public: the run's public context; empty before a hospital made the key.
        adverts: by hospital, as it signed it. boxes: by hospital, sealed by whom, and the sealed key.
    """

    path: Path
    public: bytes = b""
    adverts: dict[str, bytes] = field(default_factory=dict)
    boxes: dict[str, tuple[str, bytes]] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: RunFolder) -> KeyRing:
        path = folder.path / "keys.json"
        if not path.exists():
            return cls(path)
        content = json.loads(path.read_text())
        return cls(
            path,
            base64.b64decode(content["public"]),
            {name: base64.b64decode(advert) for name, advert in content["adverts"].items()},
            {name: (by, base64.b64decode(box)) for name, (by, box) in content["boxes"].items()},
        )

    def forget(self, hospitals: Iterable[str]) -> None:
        """Keys that they lost: each is to be sealed another box."""
        self.boxes = {name: box for name, box in self.boxes.items() if name not in set(hospitals)}
        self.save()

    def save(self) -> None:
        content = {
            "public": base64.b64encode(self.public).decode(),
            "adverts": {n: base64.b64encode(a).decode() for n, a in sorted(self.adverts.items())},
            "boxes": {
                name: [by, base64.b64encode(box).decode()]
                for name, (by, box) in sorted(self.boxes.items())
            },
        }
        write_atomically(self.path, json.dumps(content).encode())


@dataclass(frozen=True)
class SealedSum:
    """One round's.

    Attributes:
        training: whether updates are in it, or figures alone.
        adverts: the letter with all hospitals' adverts as it was then: their weights.
        survivors: whose work is in it.
        left_out: reasons of those whose work is not.
        letter: what they signed, and their signatures; empty before.
    """

    round: int
    training: bool
    adverts: bytes
    survivors: tuple[str, ...]
    left_out: dict[str, str]
    figures: bytes
    update: bytes
    letter: bytes = b""

    def save(self, folder: RunFolder) -> None:
        """Have it on the disk."""
        head = asdict(self)
        parts = [head.pop(key) for key in _PARTS]
        for key, part in zip(_PARTS, parts, strict=True):
            head[key] = len(part)
        content = json.dumps(head).encode() + b"\n" + b"".join(parts)
        path = _path(folder, self.round)
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, hashlib.sha256(content).digest() + content)

    @classmethod
    def load(cls, folder: RunFolder, round_: int, *, training: bool) -> SealedSum | None:
        """None: there is none of this kind, or it is damaged."""
        try:
            stored = _path(folder, round_).read_bytes()
        except FileNotFoundError:
            return None
        digest, content = stored[:32], stored[32:]
        if hashlib.sha256(content).digest() != digest:
            return None
        line, _, rest = content.partition(b"\n")
        head = json.loads(line)
        if head["training"] is not training:
            return None
        at = 0
        for key in _PARTS:
            size = head[key]
            head[key], at = rest[at : at + size], at + size
        return cls(**head | {"survivors": tuple(head["survivors"])})


_PARTS = ("adverts", "figures", "update", "letter")


def _path(folder: RunFolder, round_: int) -> Path:
    return folder.path / "sums" / f"{round_}.bin"
