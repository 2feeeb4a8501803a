"""One exchange with the hospitals over Flower's Grid: send a request, collect the answers.

Flower's own `send_and_receive` sleeps three seconds between looks and never tells a crash from a
refusal. Here the pause is a tenth of the time waited so far, a hospital that crashed or vanished is
asked again while the deadline allows, and whatever is wrong with an answer has a name.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import httpx
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from federation import wire
from federation.messages import Answer, Expected, Lodged, Reason, Request, WireError
from federation.pace import Pace
from federation.roster import Roster
from federation.schema import Participation

_TRANSPORT_FAILURES: Mapping[int, Reason] = {
    ErrorCode.NODE_UNAVAILABLE: Reason.UNAVAILABLE,
    ErrorCode.MESSAGE_UNAVAILABLE: Reason.UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE: Reason.UNAVAILABLE,
}


GRACE = 20.0  # seconds, for the slower ones where an exchange needs not all


class TooFewHospitals(RuntimeError):
    """Fewer good answers than the experiment needs; the run cannot go on."""


@dataclass
class Outcome:
    """What came of asking one hospital in one exchange."""

    hospital: str
    answer: Answer | None = None
    reason: Reason | None = None
    attempts: int = 0
    seconds: float = 0.0
    bytes_down: int = 0
    bytes_up: int = 0

    @property
    def is_good(self) -> bool:
        return self.answer is not None and self.reason is None


@dataclass(frozen=True)
class Parcel:
    """What one hospital is sent.

    Attributes:
        instead: sent to a hospital that has lost the model to which the blob is a difference.
    """

    request: Request
    blob: bytes
    instead: Parcel | None = None

    def lodging(self, lodged: Lodged | None) -> Parcel:
        """The same, telling the hospital how far its ledger is known to be."""
        return Parcel(
            replace(self.request, lodged=lodged),
            self.blob,
            None if self.instead is None else self.instead.lodging(lodged),
        )

    @property
    def size(self) -> int:
        return len(self.blob) + len(self.request.letter) + len(self.request.scales)


@dataclass
class Exchange:
    """Asks hospitals over the Grid."""

    grid: Grid
    roster: Roster
    participation: Participation
    _names: dict[bytes, str] = field(init=False)

    def __post_init__(self) -> None:
        self._names = {
            public_key_to_bytes(load_ssh_public_key(member.node_key.encode())): member.name
            for member in self.roster.members
        }

    def online(self) -> dict[str, int]:
        """Node ids of the hospitals on the roster that are connected now, by name."""
        found = {}
        for node in self.grid.get_nodes():
            name = self._names.get(node.public_key)
            if name is not None:
                found[name] = node.node_id
        return found

    def ask(
        self,
        parcels: Mapping[str, Parcel],
        expected: Expected,
        *,
        wait: float,
        taken: Callable[[Outcome], None] = lambda outcome: None,
        enough: int | None = None,
    ) -> list[Outcome]:
        """Send each hospital its parcel and wait for what they say.

        Args:
            wait: seconds to wait for a hospital of the list that is not connected.
            taken: called with each good answer when it arrives; may raise WireError, which makes it
                a bad one, and may take the answer's blob away, so that not all are kept.
            enough: with so many good answers the others are waited for `GRACE` seconds more.

        Returns:
            An outcome a hospital, in the order of their names.
        """
        return _Conversation(self, parcels, expected, wait, taken, enough).hold()


class _Conversation:
    """The state of one exchange under way."""

    def __init__(
        self,
        exchange: Exchange,
        parcels: Mapping[str, Parcel],
        expected: Expected,
        wait: float,
        taken: Callable[[Outcome], None],
        enough: int | None,
    ) -> None:
        self.exchange, self.expected, self.wait, self.taken = exchange, expected, wait, taken
        self.enough = enough
        self.parcels = dict(parcels)
        self.outcomes = {name: Outcome(name) for name in sorted(parcels)}
        self.pending: dict[str, str] = {}  # message id → hospital
        self.sent_at: dict[str, float] = {}
        self.began = time.monotonic()
        self.deadline = self.began + exchange.participation.deadline
        # to be asked as soon as they are connected, and since when
        self.unasked = dict.fromkeys(parcels, self.began)

    def hold(self) -> list[Outcome]:
        pace = Pace(shortest=0.02)
        while self.pending or self.unasked:
            self._send()
            if self._collect():
                pace.news()
            now = time.monotonic()
            self._hurry(now)
            self._give_up(now)
            if self.pending or self.unasked:
                time.sleep(min(pace.pause(), max(self.deadline - now, 0)))
        return [self.outcomes[name] for name in sorted(self.outcomes)]

    def _hurry(self, now: float) -> None:
        """Where enough good answers are there, do not wait long for the rest."""
        good = sum(outcome.is_good for outcome in self.outcomes.values())
        if self.enough is not None and good >= self.enough:
            self.deadline = min(self.deadline, now + GRACE)
            self.enough = None

    def _give_up(self, now: float) -> None:
        """Stop waiting for who has been away too long, and at the deadline for everyone."""
        for name, since in list(self.unasked.items()):
            if now >= min(since + self.wait, self.deadline):
                del self.unasked[name]
                if self.outcomes[name].attempts == 0:
                    self.outcomes[name].reason = Reason.ABSENT
        if now >= self.deadline:
            for name in self.pending.values():
                self.outcomes[name].reason = Reason.LATE
            self.pending.clear()

    def _send(self) -> None:
        """Ask whoever is connected and was not asked yet (or is to be asked again)."""
        if not self.unasked:
            return
        online = self.exchange.online()
        ready = sorted(self.unasked & online.keys())
        if not ready:
            return
        lifetime = max(self.deadline - time.monotonic(), 1.0) + 60
        messages = [
            Message(
                wire.request_to_records(self.parcels[name].request, self.parcels[name].blob),
                dst_node_id=online[name],
                message_type="train",
                group_id=str(self.parcels[name].request.round),
                ttl=lifetime,
            )
            for name in ready
        ]
        for name, message_id in zip(ready, self.exchange.grid.push_messages(messages), strict=True):
            if message_id is None:
                continue  # Flower did not take it; tried again at the next look
            outcome = self.outcomes[name]
            outcome.attempts += 1
            outcome.bytes_down += self.parcels[name].size
            outcome.reason = None
            self.pending[message_id] = name
            self.sent_at[name] = time.monotonic()
            del self.unasked[name]

    def _collect(self) -> bool:
        """Take what has arrived; whether anything had."""
        if not self.pending:
            return False
        replies = self._pull()
        for reply in replies:
            name = self.pending.pop(reply.metadata.reply_to_message_id, None)
            if name is not None:
                self._take(self.outcomes[name], reply)
        return bool(replies)

    def _pull(self) -> list[Message]:
        """What has arrived. An answer that Flower cannot even read must not take the others along."""
        pull = self.exchange.grid.pull_messages
        try:
            return list(pull(list(self.pending)))
        except httpx.TransportError:
            raise  # the SuperLink is away, in spite of Flower's retries
        except Exception:
            replies: list[Message] = []
            for message_id, name in list(self.pending.items()):
                try:
                    replies.extend(pull([message_id]))
                except httpx.TransportError:
                    raise
                except Exception:
                    del self.pending[message_id]
                    self.outcomes[name].reason = Reason.MALFORMED
            return replies

    def _take(self, outcome: Outcome, reply: Message) -> None:
        outcome.seconds = time.monotonic() - self.sent_at[outcome.hospital]
        if reply.has_error():
            # Flower's text of the error is not read: it may hold what a hospital must not say.
            outcome.reason = _TRANSPORT_FAILURES.get(reply.error.code, Reason.CRASHED)
            if outcome.attempts < self.exchange.participation.attempts:
                self.unasked[outcome.hospital] = time.monotonic()
            return
        parcel = self.parcels[outcome.hospital]
        try:
            outcome.bytes_up += len(wire.blob(reply.content))
            answer = wire.answer_from_records(reply.content, parcel.request, self.expected)
            outcome.answer, outcome.reason = answer, answer.refused
            if answer.protected is not None:
                outcome.bytes_up += len(answer.protected.letter)
            if answer.refused is None:
                self.taken(outcome)
        except WireError as error:
            outcome.answer, outcome.reason = None, error.reason
            return
        if answer.refused is Reason.NO_MODEL and parcel.instead is not None:
            self.parcels[outcome.hospital] = parcel.instead
            self.unasked[outcome.hospital] = time.monotonic()
