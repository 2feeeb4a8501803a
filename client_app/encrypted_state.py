"""What this hospital keeps of a run whose model only hospitals hold.

    encrypted/RUN/ring.json    mode 0600: the run's key, and the keys with which it came here
    encrypted/RUN/model.bin    the model after the newest round that was opened here, with what strategy
                               and codec remember; replaced as a whole

The coordinator has neither. Without ring.json the key is asked for again, without model.bin every round
is opened again from the first.
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


@dataclass(frozen=True)
class Ring:
    """Keys of one run.

    Attributes:
        private, advert: this hospital's, to be sent the run's key with.
        key, public: the run's, as `federation.secure_aggregation.ckks` writes them; empty before.
    """

    private: bytes = field(default=b"", repr=False)
    advert: bytes = b""
    key: bytes = field(default=b"", repr=False)
    public: bytes = b""


@dataclass(frozen=True)
class State:
    """Where the run is: what a coordinator's checkpoint is elsewhere.

    Attributes:
        round: after which the model is so; 0: untrained.
    """

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

    def ring(self) -> Ring:
        """The keys; empty ones before there are any. Raises Refused: damaged."""
        try:
            content = json.loads((self.folder / "ring.json").read_bytes())
            return Ring(**{key: base64.b64decode(value) for key, value in content.items()})
        except FileNotFoundError:
            return Ring()
        except (OSError, ValueError, TypeError) as error:
            raise Refused(Reason.NO_KEYS) from error

    def keep_ring(self, ring: Ring) -> None:
        content = {key: base64.b64encode(value).decode() for key, value in asdict(ring).items()}
        write_private(self.folder / "ring.json", json.dumps(content).encode())

    def state(self) -> State | None:
        """The newest; None where nothing was opened yet, or it is damaged."""
        try:
            with safetensors.safe_open(self.folder / "model.bin", framework="numpy") as file:
                metadata: dict[str, str] = file.metadata()
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, safetensors.SafetensorError):
            return None
        parts: dict[str, Any] = {part: {} for part in _PARTS}
        for name, array in arrays.items():
            part, _, own = name.partition("/")
            parts[part][own] = array
        return State(int(metadata["round"]), **parts)

    def keep_state(self, state: State) -> None:
        """Replace it, on the disk when this returns."""
        arrays = {
            f"{part}/{name}": array
            for part in _PARTS
            for name, array in getattr(state, part).items()
        }
        content = safetensors.numpy.save(arrays, {"round": str(state.round)})
        write_private(self.folder / "model.bin", content)
