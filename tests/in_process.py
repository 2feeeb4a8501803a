"""A federation in one process: Flower's Grid with handlers in place of SuperNodes.

Messages are copied on the way, as the wire would, so nothing is shared by accident.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from numpy.typing import NDArray

from federation import strategies, wire
from federation.messages import (
    Answer,
    Arrays,
    Evaluated,
    Expected,
    Lodged,
    Reason,
    Request,
    Shape,
    Spent,
    Tallied,
    Trained,
)
from federation.roster import Member, Roster
from federation.schema import Experiment, parse
from federation.tasks import Tally
from server_app.aggregation.plain import Plain
from server_app.courier import Courier
from server_app.descent import Descent
from server_app.exchange import Exchange
from server_app.lodgings import Lodgings
from server_app.rounds import Conductor
from server_app.state import RunFolder

UNREADABLE = "an answer whose bytes Flower cannot read"


@dataclass
class Node:
    """A hospital: what `handler` returns is its reply; an `Error` is Flower's, None is silence."""

    name: str
    handler: Callable[[RecordDict], RecordDict | Error | str | None]
    online: bool = True
    delay: float = 0.0
    key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP384R1())
    )

    @property
    def member(self) -> Member:
        public = self.key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        return Member(self.name, public.decode(), base64.b64encode(b"\0" * 32).decode())


class InProcessGrid(Grid):
    def __init__(self, nodes: Iterable[Node]) -> None:
        self.nodes = dict(enumerate(nodes, start=1))
        self.replies: dict[str, Message] = {}
        self.unreadable: set[str] = set()
        self.asked: list[str] = []  # names, in the order of asking

    def roster(self) -> Roster:
        return Roster("test", tuple(node.member for node in self.nodes.values()))

    def get_nodes(self) -> list[Any]:
        return [
            SimpleNamespace(node_id=number, public_key=public_key_to_bytes(node.key.public_key()))
            for number, node in self.nodes.items()
            if node.online
        ]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            sent = copy.deepcopy(message)
            sent.metadata.__dict__["_message_id"] = uuid.uuid4().hex
            node = self.nodes[sent.metadata.dst_node_id]
            self.asked.append(node.name)
            threading.Thread(target=self._serve, args=(node, sent), daemon=True).start()
            ids.append(sent.metadata.message_id)
        return ids

    def _serve(self, node: Node, message: Message) -> None:
        time.sleep(node.delay)
        answer = node.handler(message.content)
        if isinstance(answer, str):
            self.unreadable.add(message.metadata.message_id)
        elif answer is not None:
            self.replies[message.metadata.message_id] = Message(answer, reply_to=message)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        if self.unreadable & set(message_ids):
            raise ValueError("an object that does not inflate")
        return [self.replies.pop(number) for number in list(message_ids) if number in self.replies]

    # what a Grid also has, and our rounds do not use
    def set_run(self, run: Any) -> None: ...

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *_: Any, **__: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Any:
        raise NotImplementedError


METRICS = ("score", "loss")
START: Arrays = {"w": np.zeros(3, np.float32), "seen": np.array(0, np.int64)}


def adding(amount: float, examples: int = 1) -> Callable[[RecordDict], RecordDict]:
    """A hospital whose update is a constant plus a tenth of the model, so that rounds differ."""

    def handler(records: RecordDict) -> RecordDict:
        request = wire.request_from_records(records)
        model = wire.unpack(wire.blob(records), Shape.of(START))
        update = {
            "w": (model["w"] / 10 + amount).astype(np.float32),
            "seen": np.array(examples, np.int64),
        }
        trained = Trained(update, examples, examples=examples, loss=1.0, seconds=0.0)
        evaluated = Evaluated({"score": float(model["w"].sum()), "loss": amount}, 2, 1)
        return wire.answer_to_records(
            Answer(
                round=request.round,
                trained=trained if request.train else None,
                evaluated=evaluated if request.evaluate else None,
            )
        )

    return handler


def private(
    amount: float,
    patients: int = 1,
    *,
    charges: Callable[[Request], int] = lambda request: request.round,
    tally: Callable[[Request], Tallied] | None = None,
    budget: float = 8.0,
    seen: list[Request] | None = None,
) -> Callable[[RecordDict], RecordDict]:
    """As `adding`, of a private run: no exact figure, and word of a ledger of `charges` rows.

    Args:
        charges: of a request, the rows that its ledger has then; each costs 0.5 of `budget`.
        tally: its noisy sums; none: it has public images.
        seen: where requests are noted.
    """

    def handler(records: RecordDict) -> RecordDict:
        request = wire.request_from_records(records)
        model = wire.unpack(wire.blob(records), Shape.of(START))
        if seen is not None:
            seen.append(request)
        count = charges(request)
        if count * 0.5 > budget:
            return wire.answer_to_records(Answer(request.round, refused=Reason.BUDGET_SPENT))
        update = {"w": (model["w"] / 10 + amount).astype(np.float32), "seen": START["seen"]}
        evaluated = Evaluated({"score": float(model["w"].sum()), "loss": amount}, 2, 1)
        return wire.answer_to_records(
            Answer(
                round=request.round,
                trained=Trained(update, patients) if request.train else None,
                evaluated=evaluated if request.evaluate and tally is None else None,
                tallied=tally(request) if request.evaluate and tally is not None else None,
                spent=Spent(
                    count * 0.5, request.round * 0.5, budget, 1e-5, "rdp", ledger_of(count)
                ),
            )
        )

    return handler


def share(sums: NDArray[np.float64]) -> dict[str, float]:
    return {"score": float(sums[0] / sums.sum())} if sums.sum() > 0 else {}


SHARE = Tally(2, lambda predictions: torch.zeros(2, dtype=torch.float64), share)


def sums(*values: float, noise: float) -> Callable[[Request], Tallied]:
    return lambda _: Tallied(np.array(values, np.float64), noise)


def ledger_of(charges: int) -> Lodged:
    """How a ledger of so many charges is lodged."""
    return Lodged(charges, hashlib.sha256(str(charges).encode()).hexdigest())


PRIVATE: dict[str, Any] = {"noise_multiplier": 1.0, "sampling_rate": 0.1}


def experiment(**changes: Any) -> Experiment:
    """A small experiment; keys of `participation` may be given directly."""
    participation = {"least": 2, "deadline": 5.0}
    for key in list(changes):
        if key in (
            "least",
            "deadline",
            "attempts",
            "weighting",
            "hospitals",
            "largest_update_norm",
        ):
            participation[key] = changes.pop(key)
    content = {
        "name": "test",
        "rounds": 3,
        "task": {"name": "chest_xray"},
        "model": {"name": "resnet"},
        "strategy": {"name": "fedavg"},
        "training": {"local_steps": 1, "batch_size": 2, "learning_rate": 0.1},
        "participation": participation,
    }
    return parse(Experiment, content | changes)


def conductor(
    grid: InProcessGrid,
    folder: RunFolder,
    wait: float = 0.3,
    *,
    tally: Tally | None = None,
    lodgings: Path | None = None,
) -> Conductor:
    """What `server_app.app` builds, for the model START."""
    content = folder.experiment()
    private = content.privacy is not None
    descent = Descent(content.codec)
    courier = Courier(
        folder,
        Exchange(grid, grid.roster(), content.participation),
        descent,
        Lodgings(lodgings or folder.path.parent / "lodgings") if private else None,
        wait,
    )
    expected = Expected(
        Shape.of(START), frozenset(METRICS), private=private, tally=tally.size if tally else 0
    )
    return Conductor(
        folder,
        content,
        strategies.build(content),
        Plain(courier, content, expected, frozenset({"w"})),
        descent,
        tuple(content.participation.hospitals or grid.roster().names()),
        frozenset({"w"}),
        "score",
        tally,
    )
