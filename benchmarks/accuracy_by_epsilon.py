"""AUROC of pneumonia against ε: what patient-level privacy costs, in real and in phantom radiographs.

    python benchmarks/accuracy_by_epsilon.py [--data nih|phantom] [--epsilons inf 8 3 1] [--seeds 0 1 2]

`nih`: the 300 radiographs of `../shared/data/nih_cxr`, at three hospitals of some 50 patients to train
on, with AUROC within detector beside the overall one, which the detector inflates (chest_xray_auroc.py).
`phantom`: four hospitals with phantom patients (`--patients` each), where labels and scanners differ.

Each ε is that of the whole run at δ = 1e-5 for a patient of one hospital; the noise is found by the
accountant, as `coordinator run privacy.epsilon=…` does; `inf` is training without it. All of it runs
in this process with the hospital's own training; the average of the updates is taken here, weighted by
declared sizes. Held-out patients are measured exactly, which a hospital would not send.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from chest_xray_auroc import prepare, write_hospitals
from torch import Tensor, nn

from client_app.imaging import phantoms
from client_app.imaging.cache import CachedCases
from client_app.training import loop, private
from federation import models, tasks
from federation.privacy.accounting import epsilon, of_run
from federation.schema import Experiment
from federation.tasks import Task
from server_app import compose

DEVICE = torch.device("cpu")
MODEL = ["task=chest_xray", "task.size=64", "model=resnet"]
# Larger samples of the patients win over more steps, and small hospitals need them most.
SETTINGS = {
    "nih": ["rounds=20", "training.local_steps=8", "training.learning_rate=0.002"],
    "phantom": ["rounds=20", "training.local_steps=8", "training.learning_rate=0.003"],
}
RATES = {"nih": 0.5, "phantom": 0.25}
EXACT = ["training.batch_size=16"]


@dataclass(frozen=True)
class Hospital:
    training: CachedCases
    held_out: CachedCases
    detectors: dict[str, str]

    def by_patient(self) -> list[tuple[str, list[int]]]:
        cases = enumerate(self.training.cases)
        grouped = groupby(cases, key=lambda case: case[1].patient)
        return [(patient, [position for position, _ in own]) for patient, own in grouped]


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory(prefix="accuracy-") as folder:
        hospitals = _hospitals(arguments, Path(folder))
        for number, hospital in enumerate(hospitals):
            print(
                f"hospital {number}: {len(hospital.by_patient())} patients, "
                f"{len(hospital.training)} images to train on, {len(hospital.held_out)} held out"
            )
        print(
            f"\n{'epsilon':>8}{'sigma':>8}{'spent':>8}  AUROC over seeds: mean (each)", flush=True
        )
        for target in arguments.epsilons:
            found: dict[str, list[float]] = defaultdict(list)
            for seed in arguments.seeds:
                experiment = _experiment(arguments.data, target, seed, arguments.overrides)
                network = _federate(experiment, hospitals)
                for group, auroc in _measure(network, tasks.of_experiment(experiment), hospitals):
                    found[group].append(auroc)
            _print(target, experiment, found)


def _federate(experiment: Experiment, hospitals: Sequence[Hospital]) -> nn.Module:
    task = tasks.of_experiment(experiment)
    network = models.build(experiment.model, task, seed=experiment.seed)
    sizes = [len(hospital.by_patient()) for hospital in hospitals]
    for number in range(1, experiment.rounds + 1):
        start = {name: value.clone() for name, value in network.state_dict().items()}
        mean: dict[str, Tensor] = {}
        for position, hospital in enumerate(hospitals):
            network.load_state_dict(start)
            seed = experiment.seed * 1_000_003 + number * 1_009 + position
            _train(network, task, hospital, experiment, seed, sizes[position])
            share = sizes[position] / sum(sizes)
            for name, value in network.state_dict().items():
                mean[name] = mean.get(name, torch.zeros(())) + share * value.double()
        network.load_state_dict({name: mean[name].to(value.dtype) for name, value in start.items()})
    return network


def _train(
    network: nn.Module,
    task: Task,
    hospital: Hospital,
    experiment: Experiment,
    seed: int,
    size: int,
) -> None:
    rate = experiment.training.learning_rate
    if experiment.privacy is None:
        loop.train(
            network, task, hospital.training, experiment.training, device=DEVICE, seed=seed,
            learning_rate=rate,
        )  # fmt: skip
        return
    private.train(
        network, task, hospital.training, hospital.by_patient(), experiment.training,
        experiment.privacy, device=DEVICE, seed=seed, learning_rate=rate, public_size=size,
    )  # fmt: skip


def _measure(
    network: nn.Module, task: Task, hospitals: Sequence[Hospital]
) -> list[tuple[str, float]]:
    """AUROC over all held-out images and within each detector, where it is defined."""
    groups: dict[str, list[tuple[CachedCases, int]]] = defaultdict(list)
    for hospital in hospitals:
        for position, case in enumerate(hospital.held_out.cases):
            groups["all"].append((hospital.held_out, position))
            detector = hospital.detectors.get(case.image.files[0].name)
            if detector is not None:
                groups[f"detector {detector}"].append((hospital.held_out, position))
    measured = []
    for name, members in sorted(groups.items()):
        cases = [dataset.cases[position] for dataset, position in members]
        items = [dataset[position] for dataset, position in members]
        found = loop.evaluate(network, task, cases, items, device=DEVICE)
        if "auroc" in found and len(items) >= 10:
            measured.append((name, found["auroc"]))
    return measured


def _print(target: float, experiment: Experiment, found: dict[str, list[float]]) -> None:
    privacy = experiment.privacy
    sigma = f"{privacy.noise_multiplier:.2f}" if privacy and privacy.noise_multiplier else "-"
    spent = f"{epsilon(of_run(experiment), 1e-5):.2f}" if privacy else "-"
    shown = "; ".join(
        f"{name} {statistics.mean(values):.3f} ({', '.join(f'{v:.3f}' for v in values)})"
        for name, values in found.items()
    )
    print(f"{target:>8g}{sigma:>8}{spent:>8}  {shown}", flush=True)


def _hospitals(arguments: argparse.Namespace, folder: Path) -> list[Hospital]:
    experiment = _experiment(arguments.data, math.inf, 0, arguments.overrides)
    task = tasks.of_experiment(experiment)
    if arguments.data == "nih":
        detectors = write_hospitals(folder)
        count = 3
    else:
        detectors, count = {}, 4
        for site in range(count):
            data = phantoms.write(
                "chest_xray", folder / "made" / str(site), patients=arguments.patients, site=site,
                seed=site,
            )  # fmt: skip
            (folder / str(site)).mkdir()
            data.root.rename(folder / str(site) / "images")
            assert data.labels is not None
            data.labels.rename(folder / str(site) / "labels.csv")
    parts = [prepare(folder / str(number), task, experiment) for number in range(count)]
    return [Hospital(training, held_out, detectors) for training, held_out in parts]


def _experiment(data: str, target: float, seed: int, overrides: Sequence[str]) -> Experiment:
    chosen = [*MODEL, *SETTINGS[data], f"seed={seed}"]
    if math.isinf(target):
        return compose.experiment([*chosen, *EXACT, *overrides])
    private_settings = [
        "privacy=patient_dp",
        f"privacy.epsilon={target}",
        f"privacy.sampling_rate={RATES[data]}",
    ]
    return compose.experiment([*chosen, *private_settings, *overrides])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", choices=("nih", "phantom"), default="phantom")
    parser.add_argument("--epsilons", type=float, nargs="+", default=[math.inf, 8.0, 3.0, 1.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--patients", type=int, default=260, help="phantoms a hospital")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--override", dest="overrides", action="append", default=[])
    return parser.parse_args()


if __name__ == "__main__":
    main()
