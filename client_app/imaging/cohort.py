"""The cohort: which images of which patients serve a task, and which are never trained on."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from client_app.imaging.header import Kind
from client_app.imaging.image import Case, Image, Mask
from client_app.imaging.index import Index, MaskFile, Progress, update
from client_app.imaging.labels import Labels, find_labels
from client_app.imaging.layouts import open_layout
from client_app.imaging.pseudonym import keyed_hash
from client_app.imaging.set_aside import Reason, SetAside, Unfit
from client_app.site import Data
from federation.schema import ConfigError, nearest
from federation.tasks import Task

# Image and mask must name the same point of space this closely, in mm, to lie on one grid: files
# written by different programs differ in the last digits of single precision.
_AFFINE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Left:
    """Files or images left out for one reason: how many, and one of them."""

    count: int
    example: SetAside


@dataclass(frozen=True)
class Cohort:
    """Cases in the order of (pseudonym, file, volume); no patient has cases in both parts.

    Attributes:
        set_aside: images that could be read and do not serve this task.
        unread: files that the index had set aside before, by reason.
    """

    training: tuple[Case, ...]
    held_out: tuple[Case, ...]
    set_aside: tuple[SetAside, ...]
    unread: Mapping[Reason, Left]

    @property
    def training_patients(self) -> int:
        return len({case.patient for case in self.training})

    @property
    def held_out_patients(self) -> int:
        return len({case.patient for case in self.held_out})

    @property
    def left_out(self) -> dict[Reason, Left]:
        """Everything that is not used, by reason, the most frequent first."""
        left = dict(self.unread)
        for reason, items in _by_reason(self.set_aside).items():
            before = left.get(reason)
            left[reason] = Left(items.count + before.count, before.example) if before else items
        return dict(sorted(left.items(), key=lambda item: -item[1].count))


def build_cohort(
    data: Data,
    task: Task,
    *,
    state: Path,
    key: bytes,
    held_out: float,
    progress: Progress | None = None,
    refresh: float = 0.0,
) -> Cohort:
    """The cases of this hospital for a task.

    Whether a patient is held out depends on the key, the pseudonym and the share alone: it stays so
    when images or other patients are added, and a larger share holds out a superset.

    Args:
        state: the site's state folder, where the index lies.
        key: the hospital's pseudonym key.
        held_out: share of the patients that is never trained on, in [0, 1).
        progress: told about files whose header had to be read.
        refresh: seconds for which the last look at the folders is trusted.

    Raises:
        ConfigError: the data's root or a table cannot be used.
    """
    layout = open_layout(data)
    labels = find_labels(data, task, key, bids=layout.name == "bids")
    patterns = _patterns(data, task)
    cases: list[Case] = []
    with update(data, state=state, key=key, progress=progress, refresh=refresh) as index:
        unread = _by_reason(index.set_aside())
        masks = _Masks(index, data, patterns) if task.kind == "segmentation" else None
        set_aside: list[SetAside] = []
        for image in index.images():
            try:
                require_selected(image, task)
                cases.append(_case(image, labels, masks))
            except Unfit as unfit:
                set_aside.append(SetAside(image.files[0], unfit.reason, unfit.detail))
                if masks is not None:
                    masks.drawn_on(image)  # the mask of an image that is left out is no riddle
    if masks is not None:
        set_aside.extend(masks.left_over())
    cases.sort(key=lambda case: (case.patient, case.image.files[0], case.image.volume))
    set_aside.sort(key=lambda item: item.path)
    return Cohort(
        training=tuple(case for case in cases if split_position(key, case.patient) >= held_out),
        held_out=tuple(case for case in cases if split_position(key, case.patient) < held_out),
        set_aside=tuple(set_aside),
        unread=unread,
    )


def split_position(key: bytes, patient: str) -> float:
    """Where a pseudonym stands in [0, 1): uniform over patients, known to this hospital alone."""
    # 53 bits: what a float holds exactly, so that 1.0 is never reached by rounding.
    return (int.from_bytes(keyed_hash(key, "split", patient)[:8]) >> 11) / 2**53


def require_selected(image: Image, task: Task) -> None:
    """Whether an image is of the kind that a task wants.

    Raises:
        Unfit: it is not; the detail says which rule it breaks.
    """
    if len(image.shape) != task.spatial_dims:
        raise Unfit(
            Reason.WRONG_DIMENSIONS,
            f"{len(image.shape)} axes; task {task.name} reads {task.spatial_dims}",
        )
    selection = task.selection
    if image.modality and selection.modalities and image.modality not in selection.modalities:
        raise Unfit(Reason.NOT_FOR_TASK, f"modality {image.modality}")
    for name, words in selection.attributes.items():
        word = image.attributes.get(name, "unknown")
        if word not in words:
            raise Unfit(Reason.NOT_FOR_TASK, f"{name} {word}")
    if image.volumes > 1 and not (selection.several_volumes and image.volume == 0):
        raise Unfit(
            Reason.NOT_FOR_TASK, f"volume {image.volume + 1} of {image.volumes} in a series"
        )
    if image.affine is not None:
        spacing = np.linalg.norm(np.asarray(image.affine)[:3, :3], axis=0)
        extent = spacing[: len(image.shape)] * image.shape[:3]
        if spacing.max() > selection.largest_spacing:
            raise Unfit(Reason.NOT_FOR_TASK, f"voxels of {spacing.max():.1f} mm")
        if extent.min() < selection.least_extent:
            raise Unfit(Reason.NOT_FOR_TASK, f"it covers {extent.min():.0f} mm")


def _case(image: Image, labels: Labels | None, masks: _Masks | None) -> Case:
    """The image with its label; a table of masks comes before masks that are found."""
    if labels is not None:
        image = replace(
            image, attributes={**image.attributes, **labels.extra.get(image.patient, {})}
        )
        try:
            return Case(image, labels.of(image))
        except Unfit as unfit:
            if masks is None or unfit.reason is not Reason.LABEL_MISSING:
                raise
    if masks is None:
        raise Unfit(Reason.LABEL_MISSING)
    return Case(image, masks.of(image))


class _Masks:
    """What is drawn on which image, and which of it was used."""

    def __init__(self, index: Index, data: Data, patterns: Sequence[Sequence[str]]) -> None:
        self._root = data.root
        self._patterns = patterns
        self._by_reference: dict[str, list[MaskFile]] = defaultdict(list)
        self._files: list[MaskFile] = []
        self._referred: set[Path] = set()
        self._superseded: dict[Path, SetAside] = {}
        for mask in index.masks():
            self._files.append(mask)
            # Where a mask names images and not their series, the index knows the series.
            series = {index.series_of_instance(name) or name for name in mask.references}
            for reference in series:
                self._by_reference[reference].append(mask)

    def of(self, image: Image) -> Mask:
        """The newest mask of an image that has a structure which the task asks for.

        Raises:
            Unfit: there is none, or it lies on another grid.
        """
        found = self.drawn_on(image)
        if not found:
            raise Unfit(Reason.MASK_MISSING, "no usable mask refers to it")
        wanted = [(mask, classes) for mask in found if (classes := self._classes(mask)) is not None]
        if not wanted:
            raise Unfit(
                Reason.STRUCTURE_MISSING,
                f"{sum(len(mask.structures) for mask in found)} structures, none with a wanted name",
            )
        for mask, _ in wanted[1:]:
            self._superseded[mask.file] = SetAside(mask.file, Reason.MASK_SUPERSEDED)
        newest, classes = wanted[0]
        if newest.kind is Kind.MASK:
            _require_same_grid(image, newest)
        return Mask(newest.kind, newest.file, classes)

    def drawn_on(self, image: Image) -> list[MaskFile]:
        """All masks of its patient that refer to an image, the newest first.

        Another patient's file may not decide over this one's: what a patient adds must be his own.
        """
        name = image.series or str(image.files[0].relative_to(self._root))
        found = sorted(
            (m for m in self._by_reference.get(name, ()) if m.patient in ("", image.patient)),
            key=lambda mask: (mask.created, mask.instance),
            reverse=True,
        )
        self._referred.update(mask.file for mask in found)
        return found

    def left_over(self) -> list[SetAside]:
        """Masks that no image has use for."""
        alone = [
            SetAside(mask.file, Reason.IMAGE_MISSING, "no usable image is the one it was drawn on")
            for mask in self._files
            if mask.file not in self._referred
        ]
        return [*alone, *self._superseded.values()]

    def _classes(self, mask: MaskFile) -> tuple[tuple[int, ...], ...] | None:
        """Positions of the structures of each foreground class; none if there are none at all."""
        if mask.kind is Kind.MASK:
            return ()
        names = [name.strip().casefold() for name in mask.structures]
        classes = tuple(
            tuple(
                position
                for position, name in enumerate(names)
                if any(fnmatchcase(name, pattern) for pattern in patterns)
            )
            for patterns in self._patterns
        )
        return classes if any(classes) else None


def _patterns(data: Data, task: Task) -> tuple[tuple[str, ...], ...]:
    """For each foreground class, how its structures are called here, lower case."""
    foreground = task.classes[1:] if task.kind == "segmentation" else ()
    for name in data.structures if foreground else ():
        if name not in foreground:
            raise ConfigError(
                f"data.structures: task {task.name} has no class {name!r}{nearest(name, foreground)}"
            )
    return tuple(
        tuple(
            pattern.casefold()
            for pattern in data.structures.get(name) or task.structures.get(name) or (name,)
        )
        for name in foreground
    )


def _require_same_grid(image: Image, mask: MaskFile) -> None:
    """A NIfTI mask found by its name lies on its image's voxels; another grid is another image."""
    if image.shape != mask.shape:
        raise Unfit(Reason.GEOMETRY_DIFFERS, f"image {image.shape}, mask {mask.shape} voxels")
    ours, theirs = np.asarray(image.affine), np.asarray(mask.affine)
    corners = np.array([[x, y, z, 1.0] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    corners[:, :3] *= (*image.shape, 1, 1)[:3]
    distance = float(np.linalg.norm(corners @ (ours - theirs).T, axis=1).max())
    if distance > _AFFINE_TOLERANCE:
        raise Unfit(Reason.GEOMETRY_DIFFERS, f"a corner of the mask lies {distance:.3g} mm off")


def _by_reason(items: Iterable[SetAside]) -> dict[Reason, Left]:
    counts: Counter[Reason] = Counter()
    examples: dict[Reason, SetAside] = {}
    for item in items:
        counts[item.reason] += 1
        examples.setdefault(item.reason, item)
    return {reason: Left(count, examples[reason]) for reason, count in counts.items()}
