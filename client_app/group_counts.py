"""What leaves of held-out patients by group: counts that no sum or difference narrows to a few of them.

`federation.fairness.suppression` withholds words that would point at few patients. It promises nothing
where the patients change from one answer to the next, and they do: images come and go, experiments hold
out other shares. So a hospital counts in batches.

    counted/TASK.json   the division (`client_app.division`) and its batches, never sent: whose images,
                        and a digest of their classes and of the words that are told of them
    counted/TASK.lock   held while it is read and written

1. Patients who are in no batch yet become one together as soon as something is left of them alone
   after words are withheld, and as soon as they have every true class that the hospital has. Before that
   they wait, uncounted. Later images of a patient are not counted.
2. A batch is counted if all its images are there, with the classes and words that were told of them at
   first, and as a whole not at all otherwise.

3. The first experiment that is counted fixes the words by which the task's patients are divided; what
   others ask is read off these words. An experiment of other classes, or that counts by another unit,
   is told of nobody.

So each number that ever leaves of a task is a sum over whole classes of whole batches, each of at least
`smallest_group` patients of each true class: what `suppression` says of the numbers of one answer holds
of those of all rounds, runs and experiments together.

It does not hold between two tasks of the same patients, nor beside `Evaluated`, whose metrics and
numbers are of all held-out patients as they are at the time. Who deletes the folder has the patients
divided anew, and gives up what is said here between before and after: so must be done after patients of
a batch have gone for good, if the others shall be counted again, or for other words. A damaged file
counts nobody, and batches of a smaller `smallest_group` than the policy's are counted no more.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client_app.division import Division
from client_app.imaging.image import Case, Image
from client_app.private_file import write_private
from client_app.training.feed import Items
from client_app.training.loop import predict, predicting
from federation.fairness import counts
from federation.fairness.cases import Cases, of_predictions
from federation.fairness.counts import count
from federation.fairness.layout import Layout
from federation.fairness.suppression import withhold
from federation.privacy.csprng import Csprng
from federation.privacy.mechanism import ClippedSum
from federation.tasks import Prediction, Task

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Patients who are counted together, or not.

    Attributes:
        smallest: group that the policy allowed.
        told: `Cases.fingerprint` of what was left of them.
        images: by pseudonym, sorted.
    """

    smallest: int
    told: str
    images: dict[str, list[str]]


def group_counts(
    predictions: Sequence[Prediction],
    cases: Sequence[Case],
    task: Task,
    layout: Layout,
    *,
    state: Path,
    smallest: int,
) -> Ints:
    """The counts that may leave of exact answers on held-out patients, (`layout.size`,).

    Args:
        cases: of the predictions, in their order.
        state: the hospital's state folder.
        smallest: of the policy; with 1 all are counted as they are, and nothing is remembered.

    Raises:
        ConfigError: the folder cannot be written to.
    """
    if smallest <= 1:
        return count(of_predictions(predictions, task, layout), layout)
    answers = [
        (_identity(case.image), prediction)
        for case, prediction in zip(cases, predictions, strict=True)
    ]
    path = state / "counted" / f"{task.name}.json"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            known = _read(path)
            if known is None:
                return count(None, layout)
            division, batches = known
            division = division or Division.of(layout, task.classes)
            if not division.counts(layout, task.classes):
                return count(None, layout)
            divided = division.layout(layout)

            def cases_of(chosen: Sequence[tuple[str, Prediction]]) -> Cases:
                return of_predictions([prediction for _, prediction in chosen], task, divided)

            patients = {patient for batch in batches for patient in batch.images}
            coming = [one for one in answers if one[1].patient not in patients]
            left = withhold(cases_of(coming), divided, smallest)
            # who is known to have come would be known to be of the class that all who came are of
            if left is not None and set(left.truth.tolist()) == set(
                cases_of(answers).truth.tolist()
            ):
                batches.append(Batch(smallest, left.fingerprint(divided), _images(coming)))
                _write(path, division, batches)
        finally:  # processes forked meanwhile have the open file too
            fcntl.flock(lock, fcntl.LOCK_UN)
    total = count(None, layout)
    for batch in batches:
        own = [one for one in answers if one[0] in batch.images.get(one[1].patient, ())]
        if batch.smallest >= smallest and _images(own) == batch.images:
            left = withhold(cases_of(own), divided, batch.smallest)
            if left is not None and left.fingerprint(divided) == batch.told:
                total += count(division.told(left, layout), layout)
    return total


def noisy_group_counts(
    network: nn.Module,
    task: Task,
    layout: Layout,
    cases: Sequence[Case],
    items: Items,
    *,
    device: torch.device,
    csprng: Csprng | None = None,
) -> Ints:
    """The counts that may leave under patient-level privacy, (`layout.size`,); some may be negative.

    One `accounting.Mechanism(layout.options.noise_multiplier, 1, 1)`: of each patient the first cases
    count, and the sum itself sees to it that they move it no further than `counts.sensitivity` says.
    Rounding comes after the noise. A patient of whom an image cannot be read or an answer cannot be
    computed counts as nobody. The network is left in the mode it was in.

    Args:
        cases: held out; `items` are the same, loaded, in the same order.
        csprng: None: one with a key of its own.

    Raises:
        ValueError: the experiment names no noise, or cases and items are not as many.
        MemoryError, torch.OutOfMemoryError: the machine is too small; nothing was given out.
    """
    noise, multiplier = counts.noise(layout), layout.options.noise_multiplier
    if multiplier is None or len(cases) != len(items):
        raise ValueError("counts need noise, and cases and items that are as many")
    by_patient: dict[str, list[int]] = defaultdict(list)
    for position, case in enumerate(cases):
        by_patient[case.patient].append(position)
    total = ClippedSum([torch.empty(layout.size)], clipping_norm=noise / multiplier)

    def counted(positions: Sequence[int]) -> Tensor:
        """Of one patient; zero where it fails: why could tell of the patient."""
        try:
            own = [predict(network, task, cases[at], items[at], device) for at in positions]
            few = of_predictions(own, task, layout).at_most(counts.CASES_A_PATIENT)
            return torch.from_numpy(count(few, layout)).double()
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception:
            return torch.zeros(layout.size, dtype=torch.float64)

    with predicting(network, device):
        for positions in by_patient.values():
            total.add([counted(positions)])
    (values,) = total.noised(multiplier, csprng or Csprng())
    return values.numpy().round().astype(np.int64)


def _images(answers: Sequence[tuple[str, Prediction]]) -> dict[str, list[str]]:
    images: dict[str, list[str]] = defaultdict(list)
    for image, prediction in answers:
        images[prediction.patient].append(image)
    return {patient: sorted(own) for patient, own in images.items()}


def _identity(image: Image) -> str:
    """The same image again, wherever the folder of images was moved."""
    names = [file.name for file in image.files]
    parts = (names, image.study, image.series, image.planes, image.tiles, image.volume)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _write(path: Path, division: Division, batches: Sequence[Batch]) -> None:
    content = {"division": division.to_json(), "batches": [asdict(batch) for batch in batches]}
    write_private(path, json.dumps(content).encode())


def _read(path: Path) -> tuple[Division | None, list[Batch]] | None:
    """None: it is damaged, so who was counted is not known. A division of None: nobody was yet."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        # before there was one division for a task each had a file, named by its digest
        before = any(re.fullmatch("[0-9a-f]{32}", one.stem) for one in path.parent.glob("*.json"))
        return None if before else (None, [])
    try:
        found = json.loads(content)
        return Division.from_json(found["division"]), [
            Batch(int(one["smallest"]), str(one["told"]), dict(one["images"]))
            for one in found["batches"]
        ]
    except (ValueError, TypeError, KeyError):
        return None
