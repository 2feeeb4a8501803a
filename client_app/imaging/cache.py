"""Tensors of cases after a task's deterministic transforms, computed once and memory-mapped.

Training never decodes an image twice: an epoch reads what the system keeps of these files. An image
that cannot be loaded is not tried again in each round either. Entries hold pixels, so the folder
belongs on the hospital's private disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from client_app.imaging import pool, voxels
from client_app.imaging.image import Case, Image, Mask
from client_app.imaging.set_aside import Reason, SetAside, Unfit, silenced

if TYPE_CHECKING:
    from client_app.imaging.index import Progress

Load = Callable[[dict[str, Any]], dict[str, Any]]

# Raise it when what is stored changes its meaning.
_VERSION = 2
_PARTS = ("image", "label")
# Seconds for which a failure is believed: a new decoder, or a disk that is well again, gets its chance.
_FAILED_FOR = 24 * 3600.0
# Seconds after which a draft has been left behind by a process that was killed.
_DRAFT_FOR = 3600.0
# Seconds that one image may take before the process that loads it is ended.
_LONGEST_LOAD = 600.0
# What may pass by itself is tried again each time.
_PASSING = frozenset({Reason.UNREADABLE, Reason.TOO_SLOW, Reason.TOO_LARGE})


@dataclass(frozen=True)
class Entries(Dataset[dict[str, Tensor]]):
    """What lies in a cache, by key: small enough to be sent to other processes, and only ever read."""

    folder: Path = field(repr=False)
    keys: tuple[str, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        """Raises:
        OSError, ValueError: the entry is gone, or no longer the arrays that were written.
        """
        key = self.keys[position]
        return {part: _read(_path(self.folder, key, part)) for part in _PARTS}


class CachedCases(Dataset[dict[str, Tensor]]):
    """Cases as `{"image": tensor, "label": tensor}`, a class index being a tensor without axes.

    An entry is found by what went into it: paths, sizes and modification times of all files, which of
    their planes make the image and where these lie, the label, the words that the task gets to see,
    and the fingerprint. Files are looked at once in the life of this object: what changes on the disk
    is seen by the next one. What cannot be read back is computed again. Tensors may be written to:
    what is written reaches neither the disk nor the next reader.

    Pickled (and copied), it becomes its `Entries`: other processes get neither cases nor transforms.
    """

    def __init__(self, cases: Sequence[Case], load: Load, folder: Path, fingerprint: str) -> None:
        """Args:
        load: deterministic transforms, `Task.load`; picklable, if `prepare` is to use processes.
        folder: where the arrays lie; made if absent. File names hold no identifier.
        fingerprint: changes whenever `load` would give something else: the task and its options.
        """
        self.cases = tuple(cases)
        self._load = load
        self._folder = folder
        self._fingerprint = fingerprint
        self._keys: list[str | None] = [None] * len(self.cases)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        """Raises:
        Unfit: the case cannot be loaded; `prepare` tells beforehand.
        """
        entry = self._found(position)
        if entry is None:
            key = self._key(position)
            _store(self._load, self._folder, (key, self.cases[position]))
            entry = Entries(self._folder, (key,))[0]
        return entry

    def __reduce__(self) -> tuple[type[Entries], tuple[Path, tuple[str, ...]]]:
        return Entries, (self._folder, tuple(self._key(at) for at in range(len(self))))

    def subset(self, positions: Iterable[int]) -> CachedCases:
        """The cases at these positions, whose files need not be looked at again."""
        chosen = list(positions)
        cases = [self.cases[position] for position in chosen]
        subset = CachedCases(cases, self._load, self._folder, self._fingerprint)
        subset._keys = [self._keys[position] for position in chosen]
        return subset

    def prepare(
        self, *, workers: int = 1, progress: Progress | None = None
    ) -> tuple[list[int], list[SetAside]]:
        """Run the transforms on every case that is not cached yet; a case that fails stops nothing.

        Args:
            workers: processes that do it. With one it is done in this process, which starts at once
                but does not survive a decoder that crashes or is stuck.

        Returns:
            The positions of usable cases, ascending, and the cases that were set aside.
        """
        failures: dict[int, Unfit] = {}
        missing: list[int] = []
        done = 0

        def tell() -> None:
            nonlocal done
            done += 1
            if progress is not None:
                progress(done, len(self))

        with silenced():
            for position in range(len(self)):
                try:
                    if self._found(position) is None:
                        missing.append(position)
                        continue
                except Unfit as unfit:
                    failures[position] = unfit
                tell()
            for position, failure in self._store_all(missing, workers):
                if failure is not None:
                    failures[position] = failure
                tell()
        return (
            [position for position in range(len(self)) if position not in failures],
            [
                SetAside(self.cases[position].image.files[0], unfit.reason, unfit.detail)
                for position, unfit in sorted(failures.items())
            ],
        )

    def files(self) -> set[str]:
        """Names of these cases' files in the cache's folder; none of cases whose images have gone."""
        names = set()
        for position in range(len(self)):
            try:
                key = self._key(position)
            except Unfit:
                continue
            names |= {_path(self._folder, key, part).name for part in _PARTS}
        return names

    def _found(self, position: int) -> dict[str, Tensor] | None:
        """The entry, if it lies in the cache and is whole.

        Raises:
            Unfit: the case could not be loaded before, or its files have gone.
        """
        key = self._key(position)
        try:
            return Entries(self._folder, (key,))[0]
        except Exception:  # absent, or no longer the arrays that were written
            failure = _known_failure(self._folder, key)
            if failure is not None:
                raise failure from None
            return None

    def _store_all(
        self, positions: Sequence[int], workers: int
    ) -> Iterator[tuple[int, Unfit | None]]:
        if not positions:
            return
        store = partial(_try_to_store, self._load, self._folder)
        given = [(self._key(position), self.cases[position]) for position in positions]
        if workers <= 1:
            for position, one in zip(positions, given, strict=True):
                yield position, _unfit(store(one))
            return
        for number, failure in pool.each(store, given, workers=workers, limit=_LONGEST_LOAD):
            if isinstance(failure, pool.Lost):
                unfit = Unfit(Reason.LOAD_FAILED, "the process that loaded it crashed or was stuck")
                _remember(self._folder, given[number][0], unfit)
                yield positions[number], unfit
            else:
                yield positions[number], _unfit(failure)

    def _key(self, position: int) -> str:
        """Raises:
        Unfit: a file has gone.
        """
        key = self._keys[position]
        if key is None:
            case = self.cases[position]
            parts = [_VERSION, self._fingerprint, _of_image(case.image), _of_label(case.label)]
            key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
            self._keys[position] = key
        return key


def prune(folder: Path, keep: Iterable[CachedCases]) -> int:
    """Delete all entries but those of `keep`, and what is too old to be of use; how many files went.

    Pixels of a patient whose images were withdrawn must not live on in the cache.
    """
    kept = set().union(*(dataset.files() for dataset in keep))
    gone = [path for path in folder.glob("*.npy") if path.name not in kept]
    gone += [path for path in folder.glob("*.tmp") if _age(path) > _DRAFT_FOR]
    gone += [path for path in folder.glob("*.bad") if _age(path) > _FAILED_FOR]
    for path in gone:
        path.unlink(missing_ok=True)
    return len(gone)


# --- what goes into a key -----------------------------------------------------------------------


def _of_image(image: Image) -> list[Any]:
    """All that voxels, affine and words of an image depend on."""
    return [
        [_of_file(file) for file in image.files],
        image.kind,
        image.planes,
        image.tiles,
        image.shape,
        image.affine,
        image.pixel_spacing,
        image.volume,
        sorted(image.attributes.items()),
    ]


def _of_label(label: int | Mask) -> int | list[Any]:
    if isinstance(label, Mask):
        return [label.kind, _of_file(label.file), label.classes]
    return label


def _of_file(path: Path) -> list[str | int]:
    """The file as far as the file system tells; a hash stands for its path.

    Raises:
        Unfit: the file has gone.
    """
    try:
        status = path.stat()
    except OSError:
        raise Unfit(Reason.UNREADABLE, "a file has gone since it was indexed") from None
    name = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()
    return [name, status.st_size, status.st_mtime_ns]


# --- making an entry ----------------------------------------------------------------------------


def _try_to_store(load: Load, folder: Path, given: tuple[str, Case]) -> tuple[Reason, str] | None:
    """Why there is no entry now; none if there is. Plain values: `Unfit` does not pickle."""
    try:
        _store(load, folder, given)
    except Unfit as unfit:
        return unfit.reason, unfit.detail
    return None


def _unfit(failure: tuple[Reason, str] | None) -> Unfit | None:
    return Unfit(*failure) if failure is not None else None


def _store(load: Load, folder: Path, given: tuple[str, Case]) -> None:
    """Load the case and write its entry under the key.

    Raises:
        Unfit: it cannot be loaded, which is remembered unless it may pass by itself.
    """
    key, case = given
    try:
        arrays = _compute(load, case)
    except Unfit as unfit:
        if unfit.reason not in _PASSING:
            _remember(folder, key, unfit)
        raise
    for part, array in arrays.items():
        with _written(_path(folder, key, part)) as file:
            np.save(file, array, allow_pickle=False)


def _compute(load: Load, case: Case) -> dict[str, np.ndarray[Any, Any]]:
    try:
        image, label = case.image, case.label
        loaded = load(
            {
                "image": voxels.read_image(image),
                "label": voxels.read_mask(label, image) if isinstance(label, Mask) else label,
                "attributes": image.attributes,
            }
        )
        arrays = {part: _array(loaded[part]) for part in _PARTS}
    except Unfit:
        raise
    except MemoryError:
        raise Unfit(Reason.TOO_LARGE, "this machine has not enough memory for it") from None
    except Exception as error:
        # The text of a reader's exception may quote the file; its type cannot.
        raise Unfit(Reason.LOAD_FAILED, type(error).__name__) from None
    for part, array in arrays.items():
        if array.size == 0:
            raise Unfit(Reason.LOAD_FAILED, f"the {part} has no elements")
        if not np.isfinite(array).all():
            raise Unfit(Reason.NOT_FINITE, f"the {part} has NaN or infinite values")
    return arrays


def _array(value: object) -> np.ndarray[Any, Any]:
    """Any tensor, array or number as an array; MONAI's metadata, which holds paths, stays out."""
    tensor = torch.as_tensor(value).detach().cpu()
    return np.ascontiguousarray(tensor.numpy()).reshape(tuple(tensor.shape))


# --- files --------------------------------------------------------------------------------------


def _path(folder: Path, key: str, part: str) -> Path:
    return folder / f"{key}.{part}.npy"


def _read(path: Path) -> Tensor:
    # Mode "c" is copy on write. Pickled objects are never read.
    array = np.load(path, mmap_mode="c", allow_pickle=False)
    return torch.from_numpy(np.asarray(array))


def _remember(folder: Path, key: str, unfit: Unfit) -> None:
    with _written(folder / f"{key}.bad") as file:
        file.write(json.dumps([unfit.reason, unfit.detail]).encode())


def _known_failure(folder: Path, key: str) -> Unfit | None:
    """Why the case could not be loaded, if that was tried lately."""
    marker = folder / f"{key}.bad"
    try:
        if _age(marker) > _FAILED_FOR:
            return None
        reason, detail = json.loads(marker.read_bytes())
        return Unfit(Reason(reason), str(detail))
    except (OSError, ValueError, TypeError):  # absent, or no longer what was written
        return None


def _age(path: Path) -> float:
    """Seconds since the file was written; endless if it has gone."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return float("inf")


@contextlib.contextmanager
def _written(path: Path) -> Iterator[IO[bytes]]:
    """A file that is there whole or not at all, even after a power cut."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with draft.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
