"""What this hospital must remember of a secure sum between one message and the next.

    secure/RUN.json   mode 0600: the private keys and received shares of the sums under way, what was
                      answered in each, and the last round that was opened
    secure/RUN.lock   held while a message is answered

A ClientApp's process lives for one message. Every step of a sum is answered to one letter alone, and
that is on the disk before the answer leaves: the same letter gets the same answer, another is refused.
Two letters that come at once wait for each other, or both could be the first.

Kept are the newest round and the one before it, whose keys the newest may have come with; secrets of
older ones are deleted. Without the file there are no keys; whoever puts an older copy in its place
lets masks cover a second vector, and no file here can show that.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from client_app.policy import Refused
from client_app.private_file import write_private
from federation.messages import Phase, Reason


@dataclass(frozen=True)
class Session:
    """One sum: that of a round, or of another attempt at it.

    Attributes:
        secrets, advert: this hospital's keys, as `federation.secure_aggregation` writes them.
        cohort: the adverts of all that shared, once they are known; empty before.
        held: the shares that came from the others, sealed no more; empty before.
        answered: by phase the letter's SHA-256 and what was answered to it.
        masked: SHA-256 of the vectors that its masks cover; empty before.
        survivors: the list that was signed; None before.
        opened: the list that shares were given for; None before.
    """

    round: int
    attempt: int
    secrets: bytes
    advert: bytes
    cohort: bytes = b""
    held: bytes = b""
    answered: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    masked: str = ""
    survivors: tuple[str, ...] | None = None
    opened: tuple[str, ...] | None = None

    def reply(self, phase: Phase, letter: bytes, otherwise: Reason) -> bytes | None:
        """What was answered to this letter before; None where the phase was not answered yet.

        Raises:
            Refused: it was answered to another letter.
        """
        if phase not in self.answered:
            return None
        digest, reply = self.answered[phase]
        if digest != _sha256(letter):
            raise Refused(otherwise)
        return reply

    def answers(self, phase: Phase, letter: bytes, reply: bytes, **changes: Any) -> Session:
        """The session after answering a letter."""
        answered = {**self.answered, phase.value: (_sha256(letter), reply)}
        return replace(self, answered=answered, **changes)


@dataclass
class Sessions:
    """The file of one run.

    Attributes:
        opened: the last round whose sum this hospital helped to open; 0: none.
    """

    path: Path
    opened: int = 0
    sessions: dict[tuple[int, int], Session] = field(default_factory=dict)

    @classmethod
    @contextmanager
    def held(cls, state: Path, run: str) -> Iterator[Sessions]:
        """As they were left; any other process of this run waits until this one is done with them.

        Raises:
            Refused: the file is damaged: which masks were used is not known.
        """
        folder = state / "secure"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = folder / f"{hashlib.sha256(run.encode()).hexdigest()[:32]}.json"
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                yield cls._read(path)
            finally:  # processes forked meanwhile have the open file too
                fcntl.flock(lock, fcntl.LOCK_UN)

    @classmethod
    def _read(cls, path: Path) -> Sessions:
        try:
            content = json.loads(path.read_bytes())
            sessions = [_from_json(one) for one in content["sessions"]]
            return cls(path, int(content["opened"]), {(s.round, s.attempt): s for s in sessions})
        except FileNotFoundError:
            return cls(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Refused(Reason.NO_KEYS) from error

    def find(self, round_: int, attempt: int) -> Session:
        """Raises Refused: there is none, or the secrets of it were deleted."""
        try:
            return self.sessions[round_, attempt]
        except KeyError:
            raise Refused(Reason.NO_KEYS) from None

    def begin(self, session: Session) -> None:
        """Have a new session, and no other attempt at its round.

        Raises:
            Refused: the round was opened, this or a later attempt at it began before, or a round began
                that is not the next.
        """
        newest = max((round_ for round_, _ in self.sessions), default=0)
        later = [a for r, a in self.sessions if r == session.round and a >= session.attempt]
        if session.round <= self.opened or session.round < newest - 1 or later:
            raise Refused(Reason.REPLAYED)
        self.sessions = {k: one for k, one in self.sessions.items() if k[0] != session.round}
        self.keep(session)

    def keep(self, session: Session) -> None:
        """Have it on the disk."""
        self.sessions[session.round, session.attempt] = session
        oldest = max(self.opened, max(round_ for round_, _ in self.sessions) - 1)
        self.sessions = {k: one for k, one in self.sessions.items() if k[0] >= oldest}
        kept = [_to_json(one) for one in self.sessions.values()]
        content = {"opened": self.opened, "sessions": kept}
        write_private(self.path, json.dumps(content).encode())


def _sha256(letter: bytes) -> str:
    return hashlib.sha256(letter).hexdigest()


def _to_json(session: Session) -> dict[str, Any]:
    content = asdict(session)
    for key in ("secrets", "advert", "cohort", "held"):
        content[key] = base64.b64encode(content[key]).decode()
    content["answered"] = {
        phase: [digest, base64.b64encode(reply).decode()]
        for phase, (digest, reply) in session.answered.items()
    }
    return content


def _from_json(content: dict[str, Any]) -> Session:
    values = dict(content)
    for key in ("secrets", "advert", "cohort", "held"):
        values[key] = base64.b64decode(values[key], validate=True)
    values["answered"] = {
        phase: (digest, base64.b64decode(reply, validate=True))
        for phase, (digest, reply) in values["answered"].items()
    }
    for key in ("survivors", "opened"):
        values[key] = None if values[key] is None else tuple(values[key])
    return Session(**values)
