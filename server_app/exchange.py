"""One exchange with the hospitals over Flower's Grid: send a request, collect the answers.

Flower's own `send_and_receive` sleeps three seconds between looks and never tells a crash from a
refusal. Here the pause is a tenth of the time waited so far, a hospital that crashed or vanished is
asked again while the deadline allows, and whatever is wrong with an answer has a name.

Flower lists a reply before its parts are there, hands it out once, and whoever took it waits for the
parts: for three minutes after the last of them, if the hospital was killed while it sent (flwr 1.41,
`OBJECT_PUSH_SESSION_TTL_SECONDS`). So each reply is waited for in a thread of its own, and none holds
up the others, or the end of the exchange.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
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
from server_app.suspensions import Suspensions

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
    """Asks hospitals over the Grid.

    Attributes:
        suspensions: who is not asked; None: all are.
    """

    grid: Grid
    roster: Roster
    participation: Participation
    suspensions: Suspensions | None = None
    _names: dict[bytes, str] = field(init=False)
    _suspended: tuple[int, frozenset[str]] = field(default=(-1, frozenset()), init=False)

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

    def suspended(self, round_: int) -> frozenset[str]:
        """Who is not asked in this round: as it was when somebody first wanted to know.

        Between two steps of a secure sum nobody is put out: that would cost the round.

        Raises:
            ConfigError: nobody can tell who is suspended.
        """
        if self.suspensions is None:
            return frozenset()
        if self._suspended[0] != round_:
            self._suspended = round_, frozenset(self.suspensions.all())
        return self._suspended[1]

    def unanswered(self, hospitals: Iterable[str], round_: int) -> dict[str, Outcome]:
        """An outcome for each hospital before it has said anything: absent, or suspended."""
        out = self.suspended(round_)
        return {
            name: Outcome(name, reason=Reason.SUSPENDED if name in out else Reason.ABSENT)
            for name in hospitals
        }

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

        One that is not on the roster any more cannot connect, so it is absent at once.

        Args:
            wait: seconds to wait for a hospital of the roster that is not connected.
            taken: called with each good answer when it arrives; may raise WireError, which makes it
                a bad one, and may take the answer's blob away, so that not all are kept.
            enough: with so many good answers the others are waited for `GRACE` seconds more.

        Returns:
            An outcome a hospital, in the order of their names.
        """
        out: dict[str, Outcome] = {}
        for name, parcel in parcels.items():
            round_ = parcel.request.round
            if name in self.suspended(round_) or name not in self.roster.names():
                out |= self.unanswered([name], round_)
        asked = {name: parcel for name, parcel in parcels.items() if name not in out}
        held = _Conversation(self, asked, expected, wait, taken, enough).hold()
        return sorted([*held, *out.values()], key=lambda outcome: outcome.hospital)


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
        self._arrived: queue.SimpleQueue[tuple[str, Message | BaseException]] = queue.SimpleQueue()
        self._over = threading.Event()
        # to be asked as soon as they are connected, and since when
        self.unasked = dict.fromkeys(parcels, self.began)

    def hold(self) -> list[Outcome]:
        pace = Pace(shortest=0.02)
        try:
            while self.pending or self.unasked:
                self._send()
                left = self.deadline - time.monotonic()
                if self._collect(min(pace.pause(), max(left, 0))):
                    pace.news()
                now = time.monotonic()
                self._hurry(now)
                self._give_up(now)
        finally:
            self._over.set()
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
            threading.Thread(target=self._listen, args=(message_id,), daemon=True).start()

    def _listen(self, message_id: str) -> None:
        """Wait for one reply, in a thread of its own that changes nothing but `_arrived`.

        One that comes when the exchange is over is dropped, wherever this thread is with it.
        """
        pace = Pace(shortest=0.01 * len(self.parcels))  # together a hundred times a second at most
        while not self._over.wait(pace.pause()):
            try:
                replies = list(self.exchange.grid.pull_messages([message_id]))
            except BaseException as error:  # Flower's word that a run was stopped is no Exception
                self._arrived.put((message_id, error))
                return
            if replies:
                self._arrived.put((message_id, replies[0]))
                return

    def _collect(self, seconds: float) -> bool:
        """Take what arrives, waiting so long for the first of it; whether anything did."""
        found = False
        while True:
            try:
                message_id, reply = self._arrived.get(timeout=0 if found else seconds)
            except queue.Empty:
                return found
            found = True
            name = self.pending.pop(message_id, None)
            if name is None:
                continue
            outcome = self.outcomes[name]
            if isinstance(reply, Message):
                self._take(outcome, reply)
            elif isinstance(reply, httpx.HTTPStatusError):  # the SuperLink's database was busy
                self._lost(outcome, Reason.UNAVAILABLE)
            elif isinstance(reply, Exception) and not isinstance(reply, httpx.TransportError):
                outcome.reason = Reason.MALFORMED  # Flower cannot even read it
            else:
                raise reply  # the run was stopped, or the SuperLink is away in spite of retries

    def _take(self, outcome: Outcome, reply: Message) -> None:
        outcome.seconds = time.monotonic() - self.sent_at[outcome.hospital]
        if reply.has_error():
            # Flower's text of the error is not read: it may hold what a hospital must not say.
            self._lost(outcome, _TRANSPORT_FAILURES.get(reply.error.code, Reason.CRASHED))
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

    def _lost(self, outcome: Outcome, reason: Reason) -> None:
        """No answer came, which may be different when the hospital is asked again."""
        outcome.reason = reason
        if outcome.attempts < self.exchange.participation.attempts:
            self.unasked[outcome.hospital] = time.monotonic()
