"""Accuracy and bytes of a federation by codec: hippocampus in three groups, or chest radiographs.

    python benchmarks/accuracy_by_codec.py [--data hippocampus|chest_xray] [--rounds N]
                                           [--seeds 0 1 2] [--codecs CODEC ...] [--json FILE]

Data, split, network and training are those of hippocampus_dice.py and chest_xray_auroc.py; with one
seed all codecs start from the same weights and draw the same batches. A codec is what would follow
`codec=` on the command line of `coordinator run`, with more overrides after blanks:
'[rand_k,int8] codec.sparsify.keep=0.1'.

All of it runs in this process, calling what both sides call: the hospital's training, the chain with
each hospital's residual kept from round to round, the message's bytes and their reading, the weighted
mean, the strategy, the model down as a difference. Bytes are of the blobs of the whole run, one hospital
in the mean, the first round's 16 bits and whole model included; Flower's records around them, some
hundred bytes a message, are not. *times* is how many times fewer go up than with `none`.

The metric is the task's headline: over all held-out cases together, and at the hospital where it is
lowest; the mean over seeds, and what it lacks to `none` of the same seeds. With `--json` what the file
already has of the same experiment is not trained again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import chest_xray_auroc
import hippocampus_dice
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from client_app.imaging.image import Case
from client_app.training.loop import Items, evaluate, train
from federation import models, strategies, tasks, wire
from federation.codec import chain as chains
from federation.codec import down, scales
from federation.codec.chain import Chain, Scales
from federation.messages import Arrays, Request, Trained
from federation.schema import Experiment
from federation.tasks import Task
from server_app import compose
from server_app.aggregation.plain import weighted_mean
from server_app.descent import Descent
from server_app.state import Checkpoint

DEVICE = torch.device("cpu")
SETTINGS = {
    "hippocampus": ["experiment=hippocampus"],
    "chest_xray": ["experiment=demo", "training.learning_rate=0.001", "rounds=20"],
}
CODECS = (
    "none",
    "fp16",
    "int16",
    "int8",
    "int4",
    "int2",
    "[rand_k,int8] codec.sparsify.keep=0.15",
    "[rand_k,int8] codec.sparsify.keep=0.05",
    "[rand_k,int4] codec.sparsify.keep=0.25",
    "[rand_k,int2] codec.sparsify.keep=0.4",
    "[top_k,int8] codec.sparsify.keep=0.05",
    "[top_k,int8] codec.sparsify.keep=0.02",
    "[adapters,int8]",
    "[adapters,int4]",
    "[head,int8]",
)


@dataclass(frozen=True)
class Hospital:
    name: str
    training: Items
    held_out: Items
    held_out_cases: list[Case]


@dataclass
class Sent:
    """Bytes of one hospital's blobs over the run, in the mean over hospitals."""

    up: float = 0.0
    down: float = 0.0


@dataclass
class Result:
    """One training.

    Attributes:
        metric: after the last round, over all held-out cases and by hospital; under `all` the first.
        course: the same over all cases after some rounds, by round.
    """

    data: str
    codec: str
    seed: int
    rounds: int
    experiment: str
    metric: dict[str, float]
    course: dict[int, float]
    sent: Sent
    seconds: float

    @property
    def worst(self) -> float:
        return min(value for name, value in self.metric.items() if name != "all")


@dataclass
class Run:
    """One federation in this process: the coordinator's state, and what each hospital keeps."""

    experiment: Experiment
    task: Task
    hospitals: Sequence[Hospital]
    sent: Sent = field(default_factory=Sent)

    def __post_init__(self) -> None:
        experiment = self.experiment
        self.network = models.build(experiment.model, self.task, seed=experiment.seed)
        self.parameters = frozenset(name for name, _ in self.network.named_parameters())
        self.strategy = strategies.build(experiment)
        self.descent = Descent(experiment.codec)
        first = models.arrays_of(self.network)
        self.done = Checkpoint(0, {name: array.copy() for name, array in first.items()}, {})
        self.held: dict[str, Arrays] = {}
        self.residuals: dict[str, NDArray[np.float32] | None] = {}
        self.chain: Chain | None = None
        self.scales: Scales = np.empty(0, np.int16)
        if experiment.codec is not None:
            self.chain = chains.build(experiment.codec, self.network, seed=experiment.seed)
            self.scales = self.chain.first_scales(experiment.training)

    def round(self) -> None:
        number = self.done.round + 1
        request = Request("run", number, evaluate=False, train=True)
        requests = {hospital.name: request for hospital in self.hospitals}
        parcels = self.descent.parcels(requests, self.done)
        trained: dict[str, Trained] = {}
        votes: list[NDArray[np.int64]] = []
        for position, hospital in enumerate(self.hospitals):
            blob = parcels[hospital.name].blob
            self.sent.down += (len(blob) + len(scales.to_bytes(self.scales))) / len(self.hospitals)
            self._receive(hospital, blob, parcels[hospital.name].request)
            self.descent.delivered(hospital.name, self.done.round)
            seed = self.experiment.seed * 1_000_003 + number * 1_009 + position
            update = self._send(hospital, self._train(hospital, number, seed), number, seed, votes)
            examples = len(hospital.training)
            trained[hospital.name] = Trained(update, patients=examples, examples=examples)
        if self.chain is not None and votes:
            self.scales = self.chain.next_scales(self.scales, np.sum(votes, axis=0), round=number)
        mean = weighted_mean(trained, self.experiment.participation.weighting)
        model, memory = strategies.move(
            self.strategy, self.done.model, mean, self.done.strategy, self.parameters
        )
        made = Checkpoint(number, model, memory, self.done.codec)
        self.done = self.descent.settle(self.done, made)

    def measure(self) -> dict[str, float]:
        """The headline metric by hospital and over all held-out cases."""
        _load(self.network, self.done.model)
        groups = {hospital.name: [hospital] for hospital in self.hospitals}
        groups["all"] = list(self.hospitals)
        metric = {}
        for name, members in groups.items():
            cases = [case for hospital in members for case in hospital.held_out_cases]
            items = [one.held_out[at] for one in members for at in range(len(one.held_out))]
            metric[name] = evaluate(self.network, self.task, cases, items, device=DEVICE)[
                self.task.headline
            ]
        return metric

    def _receive(self, hospital: Hospital, blob: bytes, request: Request) -> None:
        if request.base is None:
            self.held[hospital.name] = self.done.model
        else:
            self.held[hospital.name] = down.apply(self.held[hospital.name], blob)
        _load(self.network, self.held[hospital.name])

    def _train(self, hospital: Hospital, number: int, seed: int) -> Arrays:
        training, chain = self.experiment.training, self.chain
        with nullcontext() if chain is None else chain.restrict(self.network, round=number):
            train(
                self.network,
                self.task,
                hospital.training,
                training,
                device=DEVICE,
                seed=seed,
                learning_rate=training.learning_rate * training.learning_rate_decay ** (number - 1),
            )
        local = models.arrays_of(self.network)
        return {name: local[name] - array for name, array in self.held[hospital.name].items()}

    def _send(
        self,
        hospital: Hospital,
        update: Arrays,
        number: int,
        seed: int,
        votes: list[NDArray[np.int64]],
    ) -> Arrays:
        """The update as the coordinator reads it."""
        if self.chain is None:
            self.sent.up += len(wire.pack(update)) / len(self.hospitals)
            return update
        before = self.residuals.get(hospital.name)
        made = self.chain.encode(update, before, self.scales, round=number, seed=seed)
        self.residuals[hospital.name] = made.residual
        blob = self.chain.to_bytes(made, round=number)
        self.sent.up += len(blob) / len(self.hospitals)
        read = self.chain.from_bytes(blob, round=number)
        votes.append(read.wanted)
        return self.chain.decode_one(read, self.scales, round=number)


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    known = _read(arguments.json)
    results: dict[str, list[Result]] = {}
    with tempfile.TemporaryDirectory(prefix="accuracy-by-codec-") as folder:
        prepared: dict[int, list[Hospital]] = {}
        for codec in dict.fromkeys(["none", *arguments.codecs]):
            for seed in arguments.seeds:
                experiment = _experiment(arguments, codec, seed)
                key = experiment.sha256()
                if key not in known:
                    if seed not in prepared:
                        prepared[seed] = _hospitals(arguments.data, experiment, Path(folder))
                    known[key] = _federate(arguments, experiment, codec, prepared[seed])
                    _write(arguments.json, known)
                results.setdefault(codec, []).append(known[key])
            if codec == "none":
                _print_header(arguments, results["none"])
            _print(codec, results[codec], results["none"])


def _federate(
    arguments: argparse.Namespace,
    experiment: Experiment,
    codec: str,
    hospitals: Sequence[Hospital],
) -> Result:
    began = time.monotonic()
    run = Run(experiment, tasks.of_experiment(experiment), hospitals)
    course: dict[int, float] = {}
    for number in range(1, experiment.rounds + 1):
        run.round()
        if number % arguments.every == 0 and number < experiment.rounds:
            course[number] = run.measure()["all"]
    return Result(
        data=arguments.data,
        codec=codec,
        seed=experiment.seed,
        rounds=experiment.rounds,
        experiment=experiment.sha256(),
        metric=run.measure(),
        course=course,
        sent=run.sent,
        seconds=time.monotonic() - began,
    )


def _hospitals(data: str, experiment: Experiment, folder: Path) -> list[Hospital]:
    task = tasks.of_experiment(experiment)
    if data == "hippocampus":
        groups = [
            hippocampus_dice.read_hospital(name, task, experiment)
            for name in hippocampus_dice.intensity_groups()
        ]
        return [Hospital(g.name, g.training, g.held_out, g.held_out_cases) for g in groups]
    own = folder / str(experiment.seed)
    chest_xray_auroc.write_hospitals(own)
    made = []
    for number in range(chest_xray_auroc.HOSPITALS):
        training, held_out = chest_xray_auroc.prepare(own / str(number), task, experiment)
        made.append(Hospital(str(number), training, held_out, list(held_out.cases)))
    return made


def _experiment(arguments: argparse.Namespace, codec: str, seed: int) -> Experiment:
    overrides = [*SETTINGS[arguments.data], *arguments.overrides, f"seed={seed}"]
    if arguments.rounds is not None:
        overrides.append(f"rounds={arguments.rounds}")
    return compose.experiment([*overrides, *f"codec={codec}".split()])


def _load(network: nn.Module, model: Arrays) -> None:
    network.load_state_dict({name: torch.from_numpy(a.copy()) for name, a in model.items()})


def _read(path: Path | None) -> dict[str, Result]:
    if path is None or not path.exists():
        return {}
    return {row["experiment"]: _result(row) for row in json.loads(path.read_text())}


def _result(row: dict[str, Any]) -> Result:
    course = {int(number): value for number, value in row.pop("course").items()}
    return Result(**{**row, "course": course, "sent": Sent(**row["sent"])})


def _write(path: Path | None, known: dict[str, Result]) -> None:
    if path is not None:
        path.write_text(json.dumps([asdict(result) for result in known.values()], indent=1))


def _print_header(arguments: argparse.Namespace, exact: Sequence[Result]) -> None:
    task = tasks.of_experiment(_experiment(arguments, "none", exact[0].seed))
    print(f"{arguments.data}: {task.headline} after {exact[0].rounds} rounds", end=", ")
    print(f"seeds {' '.join(str(result.seed) for result in exact)}; of none after some rounds:")
    for result in exact:
        course = ", ".join(f"{number}: {value:.4f}" for number, value in result.course.items())
        print(f"  seed {result.seed}  {course}, {result.rounds}: {result.metric['all']:.4f}")
    print(
        f"\n{'codec':<42}{'all':>8}{'- none':>9}{'worst':>8}{'- none':>9}"
        f"{'kB up':>9}{'times':>7}{'kB down':>9}  - none by seed",
        flush=True,
    )


def _print(codec: str, results: Sequence[Result], exact: Sequence[Result]) -> None:
    mean = statistics.mean
    shown = codec.replace("codec.", "")
    whole, worst = mean(r.metric["all"] for r in results), mean(r.worst for r in results)
    up = mean(r.sent.up for r in results)
    differences = [r.metric["all"] - e.metric["all"] for r, e in zip(results, exact, strict=True)]
    print(
        f"{shown:<42}{whole:>8.4f}{mean(differences):>+9.4f}"
        f"{worst:>8.4f}{worst - mean(e.worst for e in exact):>+9.4f}"
        f"{up / 1000:>9.1f}{mean(e.sent.up for e in exact) / up:>7.1f}"
        f"{mean(r.sent.down for r in results) / 1000:>9.1f}  "
        + ", ".join(f"{difference:+.4f}" for difference in differences),
        flush=True,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", choices=tuple(SETTINGS), default="hippocampus")
    parser.add_argument("--rounds", type=int, help="instead of the experiment's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--codecs", nargs="+", default=CODECS, help="none is always among them")
    parser.add_argument("--every", type=int, default=4, help="rounds between two measurements")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--json", type=Path, help="results, kept as they come")
    parser.add_argument("--override", dest="overrides", action="append", default=[])
    return parser.parse_args()


if __name__ == "__main__":
    main()
