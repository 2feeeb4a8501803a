"""AUROC of pneumonia in real chest radiographs at three hospitals, overall and within detector.

    python benchmarks/chest_xray_auroc.py [--rounds N] [--seed N] [OVERRIDE ...]

The 300 radiographs of `../shared/data/nih_cxr` (206 patients, 256 pixels) become DICOM files with sex,
age and view in a temporary folder, dealt to three hospitals by patient. From there on it is what a
hospital runs: the index, the cohort with its table of labels, the cache, training and evaluation; the
average of the updates is taken in this process, weighted by training images.

The detector (pixel spacing) gives the label away in these data: nearly all of one kind are pneumonia. So
a model that learnt detectors has a high AUROC overall and none within a detector, where it is measured
again.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor, nn

from client_app.imaging import public_images
from client_app.imaging.cache import CachedCases
from client_app.imaging.cohort import build_cohort
from client_app.site import Data
from client_app.training.loop import evaluate, train
from federation import models, tasks
from federation.schema import Experiment
from federation.tasks import Task
from server_app import compose

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "nih_cxr"
DEVICE = torch.device("cpu")
HOSPITALS = 3
KEY = bytes(range(32))  # of the phantom hospitals' pseudonyms: the split is the same in each run

Part = tuple[CachedCases, CachedCases]


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    experiment = _experiment(arguments)
    task = tasks.of_experiment(experiment)
    with tempfile.TemporaryDirectory(prefix="nih-cxr-") as folder:
        detectors = write_hospitals(Path(folder))
        parts = [
            prepare(Path(folder) / str(number), task, experiment) for number in range(HOSPITALS)
        ]
        for number, (training, held_out) in enumerate(parts):
            print(
                f"hospital {number}: {len(training)} images to train on, {len(held_out)} held out"
            )
        network = _federate(task, experiment, parts)
        _print(network, task, parts, detectors)


def _federate(task: Task, experiment: Experiment, parts: list[Part]) -> nn.Module:
    network = models.build(experiment.model, task, seed=experiment.seed)
    shares = [len(training) for training, _ in parts]
    for number in range(1, experiment.rounds + 1):
        start = {name: value.clone() for name, value in network.state_dict().items()}
        mean: dict[str, Tensor] = {}
        for position, (training, _) in enumerate(parts):
            network.load_state_dict(start)
            train(
                network,
                task,
                training,
                experiment.training,
                device=DEVICE,
                seed=experiment.seed * 1_000_003 + number * 1_009 + position,
                learning_rate=experiment.training.learning_rate
                * experiment.training.learning_rate_decay ** (number - 1),
            )
            share = shares[position] / sum(shares)
            for name, value in network.state_dict().items():
                mean[name] = mean.get(name, torch.zeros(())) + share * value.double()
        network.load_state_dict({name: mean[name].to(value.dtype) for name, value in start.items()})
    return network


def _print(network: nn.Module, task: Task, parts: list[Part], detectors: dict[str, str]) -> None:
    """AUROC over all held-out images, then over those of each detector that has both labels."""
    groups: dict[str, list[tuple[CachedCases, int]]] = defaultdict(list)
    for _, held_out in parts:
        for position, case in enumerate(held_out.cases):
            groups["all"].append((held_out, position))
            groups[f"detector {detectors[case.image.files[0].name]}"].append((held_out, position))
    print(f"\n{'held-out images':<18}{'images':>8}{'AUROC':>8}")
    for name, members in sorted(groups.items()):
        cases = [dataset.cases[position] for dataset, position in members]
        items = [dataset[position] for dataset, position in members]
        auroc = evaluate(network, task, cases, items, device=DEVICE).get("auroc")
        print(
            f"{name:<18}{len(cases):>8}"
            + (f"{auroc:>8.3f}" if auroc is not None else "   one label")
        )


def prepare(folder: Path, task: Task, experiment: Experiment) -> Part:
    """What a hospital does before its first round."""
    data = Data(root=folder / "images", labels=folder / "labels.csv")
    cohort = build_cohort(
        data,
        task,
        state=folder / "state",
        key=KEY,
        held_out=experiment.evaluation.held_out,
    )
    assert not cohort.left_out, cohort.left_out
    training, held_out = (
        CachedCases(part, task.load, folder / "cache", experiment.sha256())
        for part in (cohort.training, cohort.held_out)
    )
    return training, held_out


def write_hospitals(folder: Path) -> dict[str, str]:
    """The radiographs as DICOM, by hospital; of each file its detector."""
    detectors: dict[str, str] = {}
    tables = {number: ["study,label"] for number in range(HOSPITALS)}
    for number in range(HOSPITALS):
        (folder / str(number) / "images").mkdir(parents=True)
    for row in rows():
        digest = hashlib.sha256(row["patient"].encode()).digest()
        hospital = digest[0] % HOSPITALS
        # A patient may be healthy in one image and ill in another: each image is its own study.
        tables[hospital].append(f"{public_images.study(row)},{row['pneumonia']}")
        public_images.write_dicom(DATA, row, folder / str(hospital) / "images")
        detectors[public_images.dicom_name(row)] = row["detector_proxy"]
    for number, lines in tables.items():
        (folder / str(number) / "labels.csv").write_text("\n".join(lines))
    return detectors


def rows() -> list[dict[str, str]]:
    if not DATA.is_dir():
        raise SystemExit(f"{DATA} is absent: the images are not part of the project")
    return public_images.read_rows(DATA / public_images.RADIOGRAPHS)


def _experiment(arguments: argparse.Namespace) -> Experiment:
    overrides = ["experiment=demo", f"seed={arguments.seed}", "training.learning_rate=0.001"]
    overrides += [f"rounds={arguments.rounds}", *arguments.overrides]
    return compose.experiment(overrides)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, as for coordinator run")
    return parser.parse_args()


if __name__ == "__main__":
    main()
