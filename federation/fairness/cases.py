"""Predictions on held-out images as what is counted of them: words of groups, truth and bins."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from federation.fairness.layout import UNKNOWN, Layout
from federation.tasks import Prediction, Task

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Cases:
    """What a hospital counts: images, breasts or patients, as `Layout.options.unit` says.

    Attributes:
        patients: whose, by pseudonym; they stay at the hospital.
        words: (cases, attributes), positions in `Layout.words`; where the images of a case differ in
            a word it is `unknown`.
        truth: (cases,) class index; 0 in segmentation.
        places: (cases, channels) positions on the axis of bins.
    """

    patients: tuple[str, ...] = field(repr=False)
    words: Ints = field(repr=False)
    truth: Ints = field(repr=False)
    places: Ints = field(repr=False)

    def __len__(self) -> int:
        return len(self.patients)

    def at_most(self, count: int) -> Cases:
        """The first `count` cases of each patient: what noise is made for (`counts.sensitivity`)."""
        seen: dict[str, int] = defaultdict(int)
        kept = []
        for position, patient in enumerate(self.patients):
            seen[patient] += 1
            if seen[patient] <= count:
                kept.append(position)
        rows = np.array(kept, np.int64)
        return replace(
            self,
            patients=tuple(self.patients[at] for at in kept),
            words=self.words[rows],
            truth=self.truth[rows],
            places=self.places[rows],
        )

    def fingerprint(self, layout: Layout) -> str:
        """SHA-256 of who is counted in which group, whatever the model answers.

        Of what `suppression.withhold` left: it says whether two vectors are of the same classes.

        It stays at the hospital: whoever guessed all patients could check the guess by it.
        """
        rows = sorted(
            zip(self.patients, self.words.tolist(), self.truth.tolist(), strict=True), key=repr
        )
        return hashlib.sha256(repr((layout.attributes, layout.words, rows)).encode()).hexdigest()


def of_predictions(predictions: Sequence[Prediction], task: Task, layout: Layout) -> Cases:
    """What the layout's `unit` makes of predictions.

    - `task`: as the task's own metrics count, which is by image, or by the part of a patient that
      labels speak of (`Task.label_by`: a breast). A part has the mean logits of its images and the
      highest class that one of them has; an image that does not say its part is a part of its own.
    - `image`: by image.
    - `patient`: the largest score of a patient's parts, and their highest class. Where there are no
      parts, the mean logits of a patient's images of one class: who has had two diagnoses counts once
      for each. In segmentation, the mean Dice of a patient's images.

    An image whose logits are not finite makes its case `unanswered`. Segmentations' outcomes begin with
    the Dice of each structure, NaN where there is none, and end with the loss, which is finite where
    the logits are.

    Raises:
        ValueError: an outcome or a target that is none of the task's.
    """
    if not predictions:
        none = np.zeros((0, len(layout.channels)), np.int64)
        return Cases((), np.zeros((0, len(layout.attributes)), np.int64), none[:, 0], none)
    outcomes = np.stack([np.asarray(case.outcome, dtype=np.float64) for case in predictions])
    if task.kind == "classification":
        target = np.array([int(case.target) for case in predictions], np.int64)
        _require_classes(outcomes, target, task)
        parts = _parts(predictions, target, task, layout)
    else:
        target, parts = np.zeros(len(predictions), np.int64), list(range(len(predictions)))
        if outcomes.ndim != 2 or outcomes.shape[1] <= len(layout.channels):
            raise ValueError("an outcome is not the task's: Dice by structure, then the loss")
    owners: Sequence[Hashable] = parts
    if layout.options.unit == "patient" and (task.kind == "segmentation" or task.label_by):
        owners = [case.patient for case in predictions]
    members = _members(owners)
    if task.kind == "classification":
        scores = [_score([outcomes[p] for p in _members(parts, m)], layout) for m in members]
        places = _score_places(np.array(scores), layout)
    else:
        places = np.array([_dice_places(outcomes[m], layout) for m in members])
    return Cases(
        tuple(predictions[m[0]].patient for m in members),
        _agreed(predictions, members, layout),
        np.array([target[m].max() for m in members], np.int64),
        places,
    )


def _require_classes(logits: Floats, target: Ints, task: Task) -> None:
    if logits.shape[1:] != (len(task.classes),):
        raise ValueError("an outcome is not the logits of the task's classes")
    if target.min() < 0 or target.max() >= len(task.classes):
        raise ValueError("a target is no class of the task's")


def _parts(
    predictions: Sequence[Prediction], target: Ints, task: Task, layout: Layout
) -> list[Hashable]:
    """Of each image, which part of which patient it shows."""
    unit = layout.options.unit
    parts: list[Hashable] = []
    for position, (case, label) in enumerate(zip(predictions, target.tolist(), strict=True)):
        said = tuple(case.attributes.get(name, UNKNOWN) for name in task.label_by)
        if unit == "patient" and not task.label_by:
            parts.append((case.patient, label))
        elif unit == "image" or not said or {"", UNKNOWN} & set(said):
            parts.append(position)
        else:
            parts.append((case.patient, said))
    return parts


def _members(owners: Sequence[Hashable], among: Ints | None = None) -> list[Ints]:
    """For each owner, in order of first appearance, the positions (among some) that it has."""
    found: dict[Hashable, list[int]] = defaultdict(list)
    for position in range(len(owners)) if among is None else among.tolist():
        found[owners[position]].append(position)
    return [np.array(positions, np.int64) for positions in found.values()]


def _agreed(predictions: Sequence[Prediction], members: Sequence[Ints], layout: Layout) -> Ints:
    words = np.array(
        [
            [layout.word(a, case.attributes.get(a)) for a in layout.attributes]
            for case in predictions
        ],
        np.int64,
    )
    unknown = np.array([listed.index(UNKNOWN) for listed in layout.words])
    return np.array(
        [np.where((words[m] == words[m[0]]).all(axis=0), words[m[0]], unknown) for m in members],
        np.int64,
    )


def _score(parts: Sequence[Floats], layout: Layout) -> Floats:
    """Log odds (channels,) of a case by its parts' logits (images, classes); NaN is no answer."""
    with np.errstate(invalid="ignore", over="ignore"):
        by_part = [_log_odds(logits.mean(axis=0), layout) for logits in parts]
    highest: Floats = np.maximum.reduce(by_part)  # NaN if any is
    return highest


def _log_odds(logits: Floats, layout: Layout) -> Floats:
    """Of each channel's class against all others, the probabilities being the logits' softmax."""
    if not np.isfinite(logits).all():
        return np.full(len(layout.channels), np.nan)
    classes = range(len(logits))[-1:] if len(layout.channels) == 1 else range(len(logits))
    return np.array([logits[k] - np.logaddexp.reduce(np.delete(logits, k)) for k in classes])


def _score_places(log_odds: Floats, layout: Layout) -> Ints:
    """An edge belongs to the bin above it, as `called positive from the threshold on` wants it."""
    inner = np.log(layout.edges[1:-1]) - np.log1p(-layout.edges[1:-1])
    places = np.searchsorted(inner, log_odds, side="right")
    return np.where(np.isnan(log_odds), layout.bins, places).astype(np.int64)


def _dice_places(outcomes: Floats, layout: Layout) -> Ints:
    """(channels,) of one case by its images' outcomes (images, …); a Dice of 1 is in the last bin."""
    undefined, unanswered = layout.bins, layout.bins + 1
    dices = outcomes[:, : len(layout.channels)]
    defined = ~np.isnan(dices)
    if not (
        np.isfinite(outcomes[:, -1]).all() and ((dices[defined] >= 0) & (dices[defined] <= 1)).all()
    ):
        return np.full(len(layout.channels), unanswered, np.int64)
    total, images = np.where(defined, dices, 0.0).sum(axis=0), defined.sum(axis=0)
    mean = total / np.maximum(images, 1)
    places = np.searchsorted(layout.edges[1:-1], mean, side="right")
    return np.where(images == 0, undefined, places).astype(np.int64)
