"""Hospitals that differ: every strategy at the worst hospital and in the worst group, beside the mean.

    python benchmarks/heterogeneity.py [--setting SETTING ...] [--strategies STRATEGY ...]
                                       [--seeds 0 1 2] [--rounds N] [--patients N] [--json FILE]

A setting is one of `_skewed.SETTINGS`: phantoms whose scanners or labels differ, hippocampi by intensity
group, real radiographs by detector. A strategy is what would follow `strategy=` on the command line of
`coordinator run`, with more overrides after blanks: 'fednova training.learning_rate=0.1'. All start from
the same weights and train the same number of local steps on the same split.

- `pooled` is one training on all hospitals' patients, with the steps that one hospital does in a run.
- `local` is each hospital alone, measured on its own held-out patients.
- mean is over hospitals, weighted by held-out patients, worst hospital the lowest of them; both of the
  model that a hospital would use: its own where the strategy leaves it one.
- worst group and gap are from summed counts by group (`federation.fairness`), of groups with enough
  cases of each class; gap is the widest of one attribute.
- rounds are those until the mean first has 95 % of what pooled training of the same seed ended with.
- MB are of the updates of one hospital, the whole run; it is what the arrays take, without a codec.

All of it runs in this process, calling what both sides call: the hospital's local part and training, the
strategy's combination and step. Medians over seeds, with the least and the largest after them. With
`--json` what the file already has of the same experiment is not trained again. A strategy that refuses a
setting is said, and left out.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from _results import Quality, Result, read, show, write
from _skewed import HOSPITALS, SETTINGS, Hospital, Setting
from torch import nn

from client_app.local_part import LocalPart
from client_app.received import Asked, Received, learning_rate, local_seed
from client_app.site import Data, Site
from client_app.training import loop
from federation import harmonisation, models, strategies, tasks, wire
from federation.fairness import cases, counts, measures, table
from federation.fairness.layout import Layout
from federation.messages import Arrays, Request, Shape, Trained
from federation.schema import ConfigError, Experiment
from federation.strategies import Told, Turn
from federation.tasks import Prediction, Task
from server_app import compose
from server_app.aggregation.plain import weighted_mean, weights_of

DEVICE = torch.device("cpu")
ALONE = ("pooled", "local")
_ONE_VOTE = "participation.weighting=equal"
_SGD = "training.optimizer=sgd training.learning_rate=0.1"
STRATEGIES = (
    "fedavg",
    "fedprox",
    "fedavgm",
    "fedadam",
    "fedyogi",
    "fedadagrad",
    f"fedavg {_SGD}",
    f"fednova {_SGD}",
    f"scaffold {_SGD} {_ONE_VOTE}",
    f"feddyn {_SGD} {_ONE_VOTE}",
    "fedbn",
    "fedper",
    "fedrep",
    "ditto",
    f"qfedavg {_SGD}",
    "afl",
    f"feddg_ga {_ONE_VOTE}",
    f"norm_bound {_ONE_VOTE}",
    f"coordinate_median {_ONE_VOTE}",
    f"trimmed_mean {_ONE_VOTE}",
)


@dataclass
class Federation:
    """One federation in this process: the coordinator's state; hospitals' are in `folder`."""

    experiment: Experiment
    hospitals: Sequence[Hospital]
    folder: Path
    bytes_up: float = 0.0
    number: int = 0
    combined: Arrays = field(default_factory=dict)

    def __post_init__(self) -> None:
        experiment = self.experiment
        self.task = tasks.of_experiment(experiment)
        self.network = models.build(experiment.model, self.task, seed=experiment.seed)
        self.parameters = frozenset(name for name, _ in self.network.named_parameters())
        self.strategy = strategies.build(experiment)
        own = models.arrays_of(self.network)
        self.model: Arrays = {name: array.copy() for name, array in own.items()}
        self.memory = strategies.begin(experiment, self.model, self.parameters)

    def round(self) -> None:
        self.number += 1
        experiment = self.experiment
        trained = {one.name: self._train(one) for one in self.hospitals}
        weighting = experiment.participation.weighting
        if self.strategy.combine is None:
            mean = weighted_mean(trained, weighting)
        else:
            updates = {name: one.update for name, one in trained.items()}
            weights = weights_of(trained, weighting)
            told = self._told(trained)
            mean, self.combined = strategies.combine(self.strategy, updates, weights, told)
        turn = Turn(self.number, 1.0, experiment.training)
        self.model, self.memory = strategies.move(
            self.strategy, self.model, mean, self.memory, self.parameters, turn
        )

    def predictions(self) -> dict[str, list[Prediction]]:
        """Of each hospital, its held-out cases by the model that it would use."""
        return {one.name: self._predictions(one) for one in self.hospitals}

    def _train(self, hospital: Hospital) -> Trained:
        experiment, (asked, received, part) = self.experiment, self.ask(hospital, train=True)
        compared = partial(
            loop.mean_loss,
            received.network,
            self.task,
            hospital.training,
            experiment.training,
            device=DEVICE,
            seed=local_seed(asked),
        )
        figures = strategies.figures_for(experiment) & {"loss_before", "loss_after"}
        train = partial(
            loop.train,
            task=self.task,
            items=hospital.training,
            device=DEVICE,
            learning_rate=learning_rate(asked),
        )
        before = compared() if figures else None
        personal = part.train_personal(train)
        done = part.train(train)
        after = compared() if figures else None
        update = part.finish(done.steps, personal)
        stays = strategies.kept_at_hospitals(experiment, self.network)
        sent = {name: array for name, array in update.items() if name not in stays}
        self.bytes_up += len(wire.pack(sent)) / len(self.hospitals)
        size = len(hospital.training)
        return Trained(
            update, size, size, done.loss, steps=done.steps, loss_before=before, loss_after=after
        )

    def _predictions(self, hospital: Hospital) -> list[Prediction]:
        _, received, part = self.ask(hospital, train=False)
        return predict(part.personal_network() or received.network, self.task, hospital)

    def ask(self, hospital: Hospital, *, train: bool) -> tuple[Asked, Received, LocalPart]:
        """A request of the next round as the hospital has it, its network and what stays there."""
        state = self.folder / hospital.name
        site = Site(hospital=hospital.name, kit=state, state=state, data=Data(root=state))
        number = self.number if train else self.number + 1
        request = Request("run", number, evaluate=not train, train=train)
        asked = Asked(request, self.experiment, self.experiment.training, site, b"", "", 0.0)
        network = copy.deepcopy(self.network)
        own = models.arrays_of(network)
        for name, array in self.model.items():
            own[name][...] = array
        down = strategies.sent_down(self.memory)
        shape = Shape.of(self.model)
        received = Received(self.task, network, self.model, b"", shape, DEVICE, None, down)
        return asked, received, LocalPart.of(asked, received)

    def _told(self, trained: dict[str, Trained]) -> Told:
        def figure(name: str) -> dict[str, float]:
            told = {hospital: getattr(one, name) for hospital, one in trained.items()}
            return {hospital: value for hospital, value in told.items() if value is not None}

        return Told(
            round=self.number,
            rounds=self.experiment.rounds,
            training=self.experiment.training,
            loss=figure("loss"),
            steps=figure("steps"),
            loss_before=figure("loss_before"),
            loss_after=figure("loss_after"),
            memory=self.combined,
        )


def predict(network: nn.Module, task: Task, hospital: Hospital) -> list[Prediction]:
    with loop.predicting(network, DEVICE):
        made = [
            loop.predict(network, task, case, hospital.held_out[at], DEVICE)
            for at, case in enumerate(hospital.held_out_cases)
        ]
    if not hospital.groups:
        return made
    groups = [hospital.groups[case.image.files[0].name] for case in hospital.held_out_cases]
    return [
        replace(one, attributes={**one.attributes, "manufacturer": group})
        for one, group in zip(made, groups, strict=True)
    ]


def quality(
    predictions: dict[str, list[Prediction]], task: Task, setting: Setting, seed: int
) -> Quality:
    """Metrics by hospital and group of what hospitals predicted on their held-out cases."""
    layout = Layout.of(setting.fairness, task)
    hospitals = {}
    for name, own in predictions.items():
        measured = task.measure(own).get(task.headline, float("nan"))
        if np.isfinite(measured):
            hospitals[name] = float(measured)
    patients = {name: len({one.patient for one in predictions[name]}) for name in hospitals}
    vector = sum(
        (
            counts.count(cases.of_predictions(own, task, layout), layout)
            for own in predictions.values()
        ),
        start=np.zeros(layout.size, np.int64),
    )
    found = table.of_counts(vector, layout, seed=seed)
    metric, least = measures.metrics(layout)[0].name, setting.fairness.least_cases
    worst = [row for c in layout.channels if (row := found.worst(metric, c, least)) is not None]
    lowest = min(worst, key=lambda row: row.metrics[metric].value, default=None)
    gaps = [gap.value for gap in found.gaps if gap.metric == metric and len(gap.attributes) == 1]
    return Quality(
        hospitals=hospitals,
        mean=sum(value * patients[name] for name, value in hospitals.items())
        / sum(patients.values()),
        worst_group=None if lowest is None else lowest.metrics[metric].value,
        group=None if lowest is None else lowest.group,
        gap=max(gaps, default=None),
    )


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    known = read(arguments.json)
    for name in arguments.setting:
        rows: dict[str, list[Result]] = {}
        with tempfile.TemporaryDirectory(prefix="heterogeneity-") as folder:
            for seed in arguments.seeds:
                prepared: dict[str, list[Hospital]] = {}
                for strategy in (*ALONE, *arguments.strategies):
                    try:
                        experiment = _experiment(arguments, name, strategy, seed)
                    except ConfigError as error:
                        print(f"{strategy} does not run in {name}: {error}", flush=True)
                        continue
                    key = f"{name}/{strategy if strategy in ALONE else ''}/{arguments.patients}/"
                    key += experiment.sha256()
                    if key not in known:
                        images = repr(
                            (experiment.task, harmonisation.cached(experiment.harmonisation))
                        )
                        if images not in prepared:
                            where = Path(folder) / f"{seed}-{len(prepared)}"
                            prepared[images] = _prepare(arguments, name, experiment, where)
                        hospitals, work = prepared[images], Path(folder)
                        known[key] = _run(key, name, strategy, experiment, hospitals, work)
                        write(arguments.json, known)
                    rows.setdefault(strategy, []).append(known[key])
        show(name, rows, {_SGD: "(sgd)", _ONE_VOTE: "(equal)"})


def _prepare(
    arguments: argparse.Namespace, name: str, experiment: Experiment, folder: Path
) -> list[Hospital]:
    task = tasks.of_experiment(experiment)
    folder.mkdir()
    made = SETTINGS[name].hospitals(experiment, task, folder, arguments.patients)
    for one in made:
        print(f"{one.name}: {len(one.training)} images, {len(one.held_out)} held out", flush=True)
    return made


def _run(
    key: str,
    name: str,
    strategy: str,
    experiment: Experiment,
    hospitals: Sequence[Hospital],
    folder: Path,
) -> Result:
    began, setting, task = time.monotonic(), SETTINGS[name], tasks.of_experiment(experiment)
    with tempfile.TemporaryDirectory(dir=folder) as state:
        if strategy == "pooled":
            items = [one.training[at] for one in hospitals for at in range(len(one.training))]
            together = [replace(hospitals[0], name="pooled", training=items)]
            federations = [Federation(experiment, together, Path(state))]
        elif strategy == "local":
            federations = [Federation(experiment, [one], Path(state)) for one in hospitals]
        else:
            federations = [Federation(experiment, hospitals, Path(state))]
        course: dict[int, float] = {}
        for number in range(1, experiment.rounds + 1):
            for federation in federations:
                federation.round()
            if strategy == "pooled":
                network = federations[0].ask(hospitals[0], train=False)[1].network
                predicted = {one.name: predict(network, task, one) for one in hospitals}
            else:
                predicted = {k: v for one in federations for k, v in one.predictions().items()}
            found = quality(predicted, task, setting, experiment.seed)
            course[number] = found.mean
    return Result(
        key=key,
        setting=name,
        strategy=strategy,
        seed=experiment.seed,
        rounds=experiment.rounds,
        quality=found,
        course=course,
        bytes_up=0.0 if strategy in ALONE else federations[0].bytes_up,
        seconds=time.monotonic() - began,
    )


def _experiment(arguments: argparse.Namespace, name: str, strategy: str, seed: int) -> Experiment:
    chosen = "fedavg" if strategy in ALONE else strategy
    overrides = [*SETTINGS[name].overrides, *arguments.overrides, f"seed={seed}"]
    if arguments.rounds is not None:
        overrides.append(f"rounds={arguments.rounds}")
    return compose.experiment(
        [*overrides, f"participation.least={HOSPITALS}", *f"strategy={chosen}".split()]
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--setting", nargs="+", choices=tuple(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--strategies", nargs="*", default=STRATEGIES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rounds", type=int, help="instead of the experiment's")
    parser.add_argument("--patients", type=int, default=70, help="phantoms a hospital")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--json", type=Path, help="results, kept as they come")
    parser.add_argument("--override", dest="overrides", action="append", default=[])
    return parser.parse_args()


if __name__ == "__main__":
    main()
