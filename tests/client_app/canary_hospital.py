"""A hospital of canaries with a ledger, asked as Flower asks a ClientApp."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from flwr.app import RecordDict

from client_app import app
from client_app.audit import Audit
from client_app.imaging.pseudonym import load_key
from client_app.ledger import Ledger, cohort_id
from federation import messages, models, tasks, wire
from federation.messages import Answer, Expected, Request, Shape
from federation.schema import Experiment
from tests.client_app import canary
from tests.in_process import experiment

PATIENTS = 300
PUBLIC_SIZE = 250  # what divides is what was declared, not what is there
STEPS, RATE, NOISE, CLIP, LEARNING_RATE = 4, 0.2, 1.0, 0.5, 0.01


def content(rounds: int = 5, held_out: float = 0.0, **privacy: Any) -> Experiment:
    return experiment(
        rounds=rounds,
        task={"name": "canary", "weights": PATIENTS},
        model={"name": "canary"},
        training={
            "local_steps": STEPS,
            "batch_size": 8,
            "learning_rate": LEARNING_RATE,
            "optimizer": "sgd",
        },
        evaluation={"held_out": held_out},
        privacy={"noise_multiplier": NOISE, "sampling_rate": RATE, "clipping_norm": CLIP} | privacy,
    )


@dataclass
class Hospital:
    """A site's folder, asked as Flower asks: through `app.serve`, which reads the site's file."""

    folder: Path

    @property
    def site_file(self) -> Path:
        return self.folder / "site.yaml"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def ask(
        self, of: Experiment, request: Request, model: messages.Arrays | None = None
    ) -> RecordDict:
        records = wire.request_to_records(request, wire.pack(model or start(of)))
        config = {"experiment": of.canonical(), "experiment-sha256": of.sha256()}
        return app.serve(records, config)

    def edit(self, **sections: dict[str, Any] | None) -> None:
        site = yaml.safe_load(self.site_file.read_text())
        for name, changes in sections.items():
            site[name] = None if changes is None else (site.get(name) or {}) | changes
        self.site_file.write_text(yaml.safe_dump(site))

    def ledger(self) -> Ledger:
        key = load_key(self.state / "pseudonym.key")
        return Ledger.open(self.state / "ledger.sqlite", cohort_id(key, "north"))

    def charges(self) -> int:
        with self.ledger() as ledger:
            return len(ledger.charges())

    def events(self) -> list[str]:
        return [entry.event for entry in Audit(self.state / "audit.jsonl").entries()]


def start(of: Experiment) -> messages.Arrays:
    network = models.build(of.model, tasks.build(of.task), seed=0)
    return {name: tensor.numpy().copy() for name, tensor in network.state_dict().items()}


def read(records: RecordDict, of: Experiment, request: Request) -> Answer:
    noisy = of.privacy is not None and of.privacy.metrics == "noisy"
    return wire.answer_from_records(
        records,
        request,
        Expected(Shape.of(start(of)), frozenset({"share"}), private=True, tally=2 * noisy),
    )


def training(round_: int, run: str = "run") -> Request:
    return Request(run, round_, evaluate=False, train=True)


def make(folder: Path, patients: range | list[int] = range(PATIENTS), **changes: Any) -> Hospital:
    canary.write_patients(folder / "data", list(patients), **changes)
    site = {
        "hospital": "north",
        "kit": "kit",
        "state": "state",
        "device": "cpu",
        "threads": 1,
        "data": {"root": "data/images", "layout": "dicom", "labels": "data/labels.csv"},
        "privacy": {"patients": PUBLIC_SIZE, "epsilon": 500.0, "answer_every": 0},
    }
    hospital = Hospital(folder)
    hospital.site_file.write_text(yaml.safe_dump(site))
    hospital.state.mkdir()
    key = hospital.state / "pseudonym.key"
    key.touch(mode=0o600)
    key.write_bytes(bytes(range(32)))
    Ledger.create(hospital.state / "ledger.sqlite", cohort_id(load_key(key), "north"))
    return hospital
