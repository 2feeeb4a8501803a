"""Mean foreground Dice at each of three hospitals: pooled, local-only and federated training.

    python benchmarks/hippocampus_dice.py [--rounds N] [--seed N]

The 123 volumes of `../shared/data/hippocampus` make three hospitals by `intensity_group`, whose
raw intensities differ by a factor of 1000. Each holds out a share of its patients (`pseudo_patient`:
two volumes of one person never part) by a seeded hash. Every network starts from the same weights
and takes the same number of optimiser steps: `pooled` on all hospitals' training cases together,
`local` on one hospital's, `federated` on each hospital's between two averages. Task, model and
training are those of `configs/experiment/hippocampus.yaml`.

All of it runs in this process, calling what a hospital's node calls to train and evaluate; the
average is taken in float64, weighted by training cases. That a federation of real processes gives
the same is tested apart, in tests/e2e.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from client_app.imaging.header import Kind
from client_app.imaging.image import Case, Image, Mask
from client_app.training.loop import evaluate, train
from federation import models, tasks
from federation.pixels import read_nifti
from federation.schema import Experiment
from federation.tasks import Task
from server_app import compose

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "hippocampus"
DEVICE = torch.device("cpu")

Weights = Mapping[str, Tensor]
Item = dict[str, Any]


@dataclass(frozen=True)
class Hospital:
    name: str
    training: list[Item]
    held_out: list[Item]
    held_out_cases: list[Case]


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    experiment = _experiment(arguments)
    task = tasks.of_experiment(experiment)
    hospitals = [read_hospital(name, task, experiment) for name in intensity_groups()]
    for hospital in hospitals:
        print(
            f"{hospital.name}: {len(hospital.training)} training cases, "
            f"{len(hospital.held_out)} held out"
        )
    pooled_items = [item for hospital in hospitals for item in hospital.training]
    began = time.monotonic()
    dice: dict[str, dict[str, float]] = {}
    pooled = _fit(task, experiment, [pooled_items])
    federated = _fit(task, experiment, [hospital.training for hospital in hospitals])
    for hospital in hospitals:
        local = _fit(task, experiment, [hospital.training])
        networks = {"pooled": pooled, "local": local, "federated": federated}
        dice[hospital.name] = {
            how: _dice(network, task, hospital) for how, network in networks.items()
        }
    _print(dice)
    steps = experiment.rounds * experiment.training.local_steps
    print(
        f"\n{experiment.rounds} rounds, {steps} optimiser steps each, seed {experiment.seed}, "
        f"{time.monotonic() - began:.0f} s on {arguments.threads} CPU thread(s)"
    )


def _fit(task: Task, experiment: Experiment, sites: Sequence[Sequence[Item]]) -> nn.Module:
    """Federated averaging over `sites`; over one site it is ordinary training."""
    network = models.build(experiment.model, task, seed=experiment.seed)
    training = experiment.training
    shares = [len(items) / sum(map(len, sites)) for items in sites]
    for number in range(1, experiment.rounds + 1):
        start = {name: value.clone() for name, value in network.state_dict().items()}
        trained: list[Weights] = []
        for position, items in enumerate(sites):
            network.load_state_dict(start)
            train(
                network,
                task,
                items,
                training,
                device=DEVICE,
                seed=experiment.seed * 1_000_003 + number * 1_009 + position,
                learning_rate=training.learning_rate * training.learning_rate_decay ** (number - 1),
            )
            trained.append({name: value.clone() for name, value in network.state_dict().items()})
        network.load_state_dict(_average(trained, shares))
    return network


def _average(trained: Sequence[Weights], shares: Sequence[float]) -> dict[str, Tensor]:
    return {
        name: sum(
            (
                share * weights[name].double()
                for weights, share in zip(trained, shares, strict=True)
            ),
            start=torch.zeros((), dtype=torch.float64),
        ).to(value.dtype)
        for name, value in trained[0].items()
    }


def _dice(network: nn.Module, task: Task, hospital: Hospital) -> float:
    measured = evaluate(network, task, hospital.held_out_cases, hospital.held_out, device=DEVICE)
    return measured[task.headline]


def read_hospital(group: str, task: Task, experiment: Experiment) -> Hospital:
    cases = [
        Case(
            Image(
                Kind.NIFTI,
                patient=row["pseudo_patient"],
                files=(DATA / "images" / f"{row['case']}.nii.gz",),
                shape=(),
            ),
            Mask(Kind.MASK, DATA / "labels" / f"{row['case']}.nii.gz"),
        )
        for row in _rows()
        if row["intensity_group"] == group
    ]
    patients = sorted(
        {case.patient for case in cases},
        key=lambda patient: hashlib.sha256(f"{experiment.seed}/{patient}".encode()).digest(),
    )
    held_out = set(patients[: round(len(patients) * experiment.evaluation.held_out)])
    held_out_cases = [case for case in cases if case.patient in held_out]
    return Hospital(
        name=group,
        training=[_load(task, case) for case in cases if case.patient not in held_out],
        held_out=[_load(task, case) for case in held_out_cases],
        held_out_cases=held_out_cases,
    )


def _load(task: Task, case: Case) -> Item:
    assert isinstance(case.label, Mask)
    return task.load(
        {
            "image": read_nifti(case.image.files[0]),
            "label": read_nifti(case.label.file).to(torch.uint8),
            "attributes": {},
        }
    )


def _rows() -> list[dict[str, str]]:
    if not DATA.is_dir():
        raise SystemExit(f"{DATA} is absent: the images are not part of the project")
    with (DATA / "cases.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def intensity_groups() -> list[str]:
    return sorted({row["intensity_group"] for row in _rows()})


def _experiment(arguments: argparse.Namespace) -> Experiment:
    overrides = ["experiment=hippocampus", f"seed={arguments.seed}", *arguments.overrides]
    if arguments.rounds is not None:
        overrides.append(f"rounds={arguments.rounds}")
    return compose.experiment(overrides)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, help="instead of the experiment's")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and the split")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, as for coordinator run")
    return parser.parse_args()


def _print(dice: Mapping[str, Mapping[str, float]]) -> None:
    columns = ("pooled", "local", "federated")
    print(f"\n{'hospital':<10}" + "".join(f"{name:>11}" for name in columns), end="")
    print(f"{'fed-pooled':>12}{'fed-local':>11}{'fed/pooled':>12}")
    for hospital, by in dice.items():
        print(f"{hospital:<10}" + "".join(f"{by[name]:>11.4f}" for name in columns), end="")
        print(
            f"{by['federated'] - by['pooled']:>+12.4f}{by['federated'] - by['local']:>+11.4f}"
            f"{by['federated'] / by['pooled']:>12.4f}"
        )


if __name__ == "__main__":
    main()
