"""Real hospitals in one process: real ClientApps with phantoms, keys and a signed roster, on a Grid."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import RecordDict

from client_app import app, identity, plain_round
from client_app.imaging import phantoms
from client_app.imaging.pseudonym import load_key
from client_app.kit import read_kit
from client_app.ledger import Ledger, cohort_id
from client_app.received import local_seed, update_of
from client_app.site import Data, Policy, Privacy, Site
from federation import models, strategies, tasks, wire
from federation.messages import Phase, Request, Trained
from federation.roster import Roster
from federation.schema import Experiment
from server_app import aggregation, exchange, tallies
from server_app.courier import Courier
from server_app.exchange import Exchange
from server_app.fairness import Counted
from server_app.home import Federation, Home
from server_app.lodgings import Lodgings
from server_app.rounds import Conductor
from server_app.state import Checkpoint, RunFolder
from tests.in_process import InProcessGrid, Node, experiment
from tests.provisioned import provisioned

SMALL = {"name": "resnet", "channels": [8, 8, 8, 8], "blocks": [1, 1, 1, 1], "norm": "batch"}
MASKS = {"name": "masks", "least": 3}
_ONE_AT_A_TIME = threading.Lock()  # PyTorch's deterministic mode is the process's

# what a test does with a message: passes it on, changes it, answers for the hospital (None: silence)
Meddler = Callable[[Request, RecordDict, Callable[[RecordDict], RecordDict]], Any]


@dataclass
class Hospitals:
    """Some hospitals of one federation; `meddle` stands between the coordinator and each.

    Attributes:
        asked, heard: all that went to hospitals and came back, in this order.
    """

    folder: Path
    home: Home
    sites: dict[str, Site]
    roster: Roster
    meddle: dict[str, Meddler] = field(default_factory=dict)
    asked: list[tuple[str, Request, bytes]] = field(default_factory=list)
    heard: list[tuple[str, Phase, RecordDict]] = field(default_factory=list)

    def fresh(self) -> Hospitals:
        """The same, with nothing between and nothing noted, for the next test."""
        self.meddle.clear()
        self.asked.clear()
        self.heard.clear()
        return self

    @contextmanager
    def lent(self) -> Iterator[Hospitals]:
        """Fresh, for one test that changes sites; they are as they were afterwards."""
        own = dict(self.sites)
        yield self.fresh()
        self.sites.update(own)

    def serve(self, name: str, of: Experiment) -> Callable[[RecordDict], Any]:
        """The hospital's ClientApp, as a SuperNode would call it."""
        config = {"experiment": of.canonical(), "experiment-sha256": of.sha256()}

        def answer(records: RecordDict) -> RecordDict:
            with _ONE_AT_A_TIME:
                return app.respond(records, config, self.sites[name])

        def handler(records: RecordDict) -> Any:
            request = wire.request_from_records(records)
            self.asked.append((name, request, wire.blob(records)))
            meddler = self.meddle.get(name)
            reply = meddler(request, records, answer) if meddler else answer(records)
            if isinstance(reply, RecordDict):
                self.heard.append((name, request.phase, reply))
            return reply

        return handler

    def conduct(self, of: Experiment, run: str, *, rounds: int | None = None) -> Checkpoint:
        """Conduct a run, or so many more rounds of it; its last state."""
        folder, conductor, start = self.conductor(of, run)
        if rounds is None:
            return conductor.conduct(start)
        for _ in range(rounds):
            start = conductor.round(start)
            folder.save(start)
        return start

    def conductor(self, of: Experiment, run: str) -> tuple[RunFolder, Conductor, Checkpoint]:
        """What `server_app.app` builds, on a Grid in this process, and where the run stands."""
        path = self.folder / "runs" / run
        record = {"experiment_sha256": of.sha256()}
        folder = RunFolder(path) if path.exists() else RunFolder.create(path, of, record)
        task = tasks.build(of.task)
        network = models.build(of.model, task, seed=of.seed)
        grid = InProcessGrid(self._node(name, of) for name in self.sites)
        descent = aggregation.descent_of(of)
        courier = Courier(
            folder,
            Exchange(grid, self.roster, of.participation),
            descent,
            Lodgings(self.folder / "lodgings") if of.privacy is not None else None,
            wait=0.5,
        )
        start = folder.load()
        if start is None:
            start = aggregation.untrained(of, network)
        conductor = Conductor(
            folder,
            of,
            strategies.build(of),
            aggregation.build(of, courier, network, task),
            descent,
            tuple(sorted(self.sites)),
            frozenset(name for name, _ in network.named_parameters()),
            task.headline,
            tallies.of_experiment(of, task),
            Counted.of(of, task),
        )
        return folder, conductor, start

    def _node(self, name: str, of: Experiment) -> Node:
        path = identity.load(self.sites[name]).node_key
        key: Any = load_ssh_private_key(path.read_bytes(), None)
        return Node(name, self.serve(name, of), key=key)


def content(**changes: Any) -> Experiment:
    """A small experiment for them, with a codec; the deadline is for nobody to reach."""
    base: dict[str, Any] = {
        "task": {"name": "chest_xray", "size": 32},
        "model": SMALL,
        "rounds": 3,
        "codec": {"quantise": {"name": "integers", "bits": 8}},
        "weighting": "equal",
        "least": 3,
        "deadline": 3000.0,
        "attempts": 1,
    }
    return experiment(**(base | changes))


def hospitals(
    folder: Path,
    count: int = 5,
    *,
    patients: int | Sequence[int] = 8,
    privacy: Sequence[dict[str, Any]] | None = None,
) -> Hospitals:
    """`count` hospitals with phantom radiographs, each with its own keys, on one roster.

    Args:
        patients: of each; or one number for all.
        privacy: of each, who have a ledger then.
    """
    names = ("east", "hill", "lake", "north", "south", "vale", "west")[:count]
    states = {name: folder / name / "state" for name in names}
    for state in states.values():
        state.mkdir(parents=True)
    home = Home(folder / "coordinator")
    provisioned(Federation(name="a", host="127.0.0.1", port=1, hospitals=list(names)), home, states)
    sites = {}
    for number, name in enumerate(names):
        data = phantoms.write(
            "chest_xray",
            folder / name / "data",
            patients=patients if isinstance(patients, int) else patients[number],
            site=number,
            seed=number,
        )
        sites[name] = Site(
            hospital=name,
            kit=home.kit(name),
            state=states[name],
            device="cpu",
            threads=1,
            data=Data.model_validate(data),
            policy=Policy(code="any", least_patients=1, smallest_group=1),
            privacy=None if privacy is None else Privacy.model_validate(privacy[number]),
        )
        read_kit(sites[name]).pin()
        # a fixed key, so that the same patients are held out in every run of the tests
        key = states[name] / "pseudonym.key"
        key.touch(mode=0o600)
        key.write_bytes(bytes([number]) * 32)
        if privacy is not None:
            Ledger.create(states[name] / "ledger.sqlite", cohort_id(load_key(key), name))
    return Hospitals(folder, home, sites, home.roster())


def train_quickly(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Have training without privacy be seeded noise on every array; who trained in which round."""
    trained = []

    def quick(asked: Any, received: Any, patients: Any, part: Any) -> Trained:
        trained.append((asked.site.hospital, asked.request.round))
        source = np.random.default_rng(local_seed(asked))
        for tensor in received.network.state_dict().values():
            if tensor.is_floating_point():
                tensor += torch.from_numpy(source.normal(0, 0.01, tensor.shape).astype("f4"))
        return Trained(
            update=update_of(received),
            patients=patients.cohort.training_patients,
            examples=len(patients.training),
            loss=float(source.uniform()),
            seconds=1.0,
            steps=asked.training.local_steps,
        )

    monkeypatch.setattr(plain_round, "_train", quick)
    return trained


def silence(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names to be added of hospitals that will not answer: nobody waits for them any longer."""
    silent: set[str] = set()
    give_up = exchange._Conversation._give_up

    def at_once(self: Any, now: float) -> None:
        only_silent = not self.unasked and set(self.pending.values()) <= silent
        give_up(self, self.deadline if only_silent else now)

    monkeypatch.setattr(exchange._Conversation, "_give_up", at_once)
    return silent
