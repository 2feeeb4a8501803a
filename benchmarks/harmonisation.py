"""Dice by intensity group with and without harmonisation, federated: mean, worst group, each group.

    python benchmarks/harmonisation.py [--rounds N] [--seeds N …] [--variants NAME …]
                                       [--leave-out A|B|C] [--threads N] [overrides …]

Hospitals, split, network and training are those of hippocampus_dice.py: three hospitals of
`../shared/data/hippocampus` by `intensity_group`, whose raw intensities differ by a factor of 1000. A
variant is what follows `harmonisation=` for `coordinator run`, several joined by `+` in this order.
`none` is the task alone, which cuts each volume at its percentiles and z-scores it, so what is
measured is what comes on top of that. With `--leave-out` the named group is never trained on, as a
hospital that joins later.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict

import hippocampus_dice
import torch

from federation import tasks
from federation.schema import Experiment
from server_app import compose

VARIANTS = ("none", "percentile", "histogram", "scanner_augmentation", "fourier_amplitude")


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    began = time.monotonic()
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    groups = hippocampus_dice.intensity_groups()
    print(f"{'variant':<34}{'seed':>5}{'mean':>9}{'worst':>9}", end="")
    print("".join(f"{group:>9}" for group in groups))
    for seed in arguments.seeds:
        for variant in arguments.variants:
            by = _dice_by_group(_experiment(arguments, variant, seed), arguments.leave_out)
            found[variant].append(by)
            _print(variant, str(seed), by)
    if len(arguments.seeds) > 1:
        for variant, several in found.items():
            mean = {group: statistics.mean(by[group] for by in several) for group in groups}
            _print(variant, "all", mean)
    left_out = f", {arguments.leave_out} never trained on" if arguments.leave_out else ""
    print(
        f"\n{arguments.rounds} rounds{left_out}; worst is the least of the groups, of all seeds that "
        f"of their means; {time.monotonic() - began:.0f} s on {arguments.threads} CPU thread(s)"
    )


def _dice_by_group(experiment: Experiment, leave_out: str | None) -> dict[str, float]:
    task = tasks.of_experiment(experiment)
    hospitals = [
        hippocampus_dice.read_hospital(name, task, experiment)
        for name in hippocampus_dice.intensity_groups()
    ]
    trained = [hospital.training for hospital in hospitals if hospital.name != leave_out]
    network = hippocampus_dice._fit(task, experiment, trained)
    return {
        hospital.name: hippocampus_dice._dice(network, task, hospital) for hospital in hospitals
    }


def _print(variant: str, seed: str, by: dict[str, float]) -> None:
    mean, worst = statistics.mean(by.values()), min(by.values())
    print(f"{variant:<34}{seed:>5}{mean:>9.4f}{worst:>9.4f}", end="")
    print("".join(f"{value:>9.4f}" for value in by.values()), flush=True)


def _experiment(arguments: argparse.Namespace, variant: str, seed: int) -> Experiment:
    chosen = f"[{variant.replace('+', ',')}]" if "+" in variant else variant
    return compose.experiment(
        [
            "experiment=hippocampus",
            f"harmonisation={chosen}",
            f"seed={seed}",
            f"rounds={arguments.rounds}",
            *arguments.overrides,
        ]
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=VARIANTS)
    parser.add_argument("--leave-out", choices=hippocampus_dice.intensity_groups(), default=None)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, as for coordinator run")
    return parser.parse_args()


if __name__ == "__main__":
    main()
