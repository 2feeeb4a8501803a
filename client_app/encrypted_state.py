"""What this hospital keeps of a run whose model only hospitals hold.

    encrypted/RUN/ring.json    mode 0600: the run's key, and the keys with which it came here
    encrypted/RUN/model.bin    the model after the newest round that was opened here, with what strategy
                               and codec remember; replaced as a whole

The coordinator has neither. Without ring.json another hospital seals the key anew for this one; without
model.bin, or with a damaged one, every round is opened again from the first. Both name the experiment
that the run began with here: a run's model is not to be had under the rules of another one.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.numpy

from client_app.policy import Refused
from client_app.private_file import write_private
from federation.messages import Arrays, Reason

_PARTS = ("model", "strategy", "codec")
_KEYS = ("private", "advert", "key", "public")
_DIGEST = 32  # bytes of SHA-256 before the model's


@dataclass(frozen=True)
class Ring:
    """Keys of one run.

    Attributes:
        experiment: its SHA-256, hexadecimal.
        private, advert: this hospital's, to be sent the run's key with.
        key, public: the run's, as `federation.secure_aggregation.ckks` writes them; empty before.
    """

    experiment: str
    private: bytes = field(default=b"", repr=False)
    advert: bytes = b""
    key: bytes = field(default=b"", repr=False)
    public: bytes = b""


@dataclass(frozen=True)
class State:
    """Where the run is: what a coordinator's checkpoint is elsewhere.

    Attributes:
        experiment: its SHA-256, hexadecimal.
        round: after which the model is so; 0: untrained.
    """

    experiment: str
    round: int
    model: Arrays
    strategy: Arrays = field(default_factory=dict)
    codec: Arrays = field(default_factory=dict)


@dataclass(frozen=True)
class EncryptedRun:
    """The folder of one run."""

    folder: Path

    @classmethod
    def of(cls, state: Path, run: str) -> EncryptedRun:
        return cls(state / "encrypted" / hashlib.sha256(run.encode()).hexdigest()[:32])

    def ring(self, experiment: str) -> Ring:
        """The keys; empty ones before there are any.

        Raises:
            Refused: of another experiment. Where they are damaged there are none, as if they were lost.
        """
        try:
            content = json.loads((self.folder / "ring.json").read_bytes())
            named = content.pop("experiment")
            keys = {name: base64.b64decode(value) for name, value in content.items()}
            ring = Ring(str(named), **keys)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return Ring(experiment)
        _require_same(ring.experiment, experiment)
        return ring

    def keep_ring(self, ring: Ring) -> None:
        content = asdict(ring)
        for name in _KEYS:
            content[name] = base64.b64encode(content[name]).decode()
        write_private(self.folder / "ring.json", json.dumps(content).encode())

    def state(self, experiment: str) -> State | None:
        """The newest; None where nothing was opened yet, or it is damaged.

        Raises:
            Refused: of another experiment.
        """
        try:
            stored = (self.folder / "model.bin").read_bytes()
            content = stored[_DIGEST:]
            if hashlib.sha256(content).digest() != stored[:_DIGEST]:
                return None
            size = int.from_bytes(content[:8], "little")
            metadata = json.loads(content[8 : 8 + size])["__metadata__"]
            arrays = safetensors.numpy.load(content)
            named, round_ = str(metadata["experiment"]), int(metadata["round"])
        except (OSError, safetensors.SafetensorError, ValueError, KeyError):
            return None
        _require_same(named, experiment)
        parts: dict[str, Any] = {part: {} for part in _PARTS}
        for name, array in arrays.items():
            part, _, own = name.partition("/")
            parts[part][own] = array
        return State(named, round_, **parts)

    def keep_state(self, state: State) -> None:
        """Replace it, on the disk when this returns."""
        arrays = {
            f"{part}/{name}": array
            for part in _PARTS
            for name, array in getattr(state, part).items()
        }
        metadata = {"round": str(state.round), "experiment": state.experiment}
        content = safetensors.numpy.save(arrays, metadata)
        write_private(self.folder / "model.bin", hashlib.sha256(content).digest() + content)

    def forget_state(self) -> None:
        """The model is not the others': the rounds are to be opened anew."""
        (self.folder / "model.bin").unlink(missing_ok=True)


def _require_same(named: str, experiment: str) -> None:
    if named != experiment:
        raise Refused(Reason.REFUSED_EXPERIMENT)
