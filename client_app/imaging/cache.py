"""Tensors of cases after a task's deterministic transforms, computed once and memory-mapped.

Training never decodes an image twice: an epoch reads what the system keeps of these files.
They hold pixels, so the folder belongs on the hospital's private disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from client_app.imaging.index import Progress
from client_app.imaging.set_aside import Reason, SetAside, Unfit, silenced
from federation.tasks import Case

Load = Callable[[dict[str, Any]], dict[str, Any]]

# Raise it when what is stored changes its meaning.
_VERSION = 1
_PARTS = ("image", "label")


class CachedCases(Dataset[dict[str, Tensor]]):
    """Cases as `{"image": tensor, "label": tensor}`, a class index being a tensor without axes.

    An entry is found by what went into it: the files' paths, sizes and modification times, the
    label, and the fingerprint. What cannot be read back is computed again. Tensors may be written
    to: what is written reaches neither the disk nor the next reader.
    """

    def __init__(self, cases: Sequence[Case], load: Load, folder: Path, fingerprint: str) -> None:
        """Args:
        load: deterministic transforms, `Task.load`.
        folder: where the arrays lie; made if absent. File names hold no identifier.
        fingerprint: changes whenever `load` would give something else: the task and its options.
        """
        self.cases = tuple(cases)
        self._load = load
        self._folder = folder
        self._fingerprint = fingerprint
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        """Raises:
        Unfit: the case cannot be loaded; `prepare` tells beforehand.
        """
        case = self.cases[position]
        key = self._key(case)
        try:
            return {part: _read(self._path(key, part)) for part in _PARTS}
        except Exception:  # absent, or no longer the array that was written
            for part, array in self._compute(case).items():
                _write(self._path(key, part), array)
            return {part: _read(self._path(key, part)) for part in _PARTS}

    def prepare(
        self, *, workers: int = 1, progress: Progress | None = None
    ) -> tuple[list[int], list[SetAside]]:
        """Run the transforms on every case that is not cached yet; a case that fails stops nothing.

        Returns:
            The positions of usable cases, ascending, and the cases that were set aside.
        """
        usable: list[int] = []
        set_aside: list[SetAside] = []
        with silenced(), ThreadPoolExecutor(workers) as pool:
            for position, failure in enumerate(pool.map(self._try, range(len(self)))):
                if failure is None:
                    usable.append(position)
                else:
                    set_aside.append(failure)
                if progress is not None:
                    progress(position + 1, len(self))
        return usable, set_aside

    def files(self) -> set[str]:
        """The names of these cases' files in the cache's folder."""
        keys = {self._key(case) for case in self.cases if _exist(case)}
        return {self._path(key, part).name for key in keys for part in _PARTS}

    def _try(self, position: int) -> SetAside | None:
        try:
            self[position]
        except Unfit as unfit:
            return SetAside(self.cases[position].image, unfit.reason, unfit.detail)
        return None

    def _key(self, case: Case) -> str:
        label = _identity(case.label) if isinstance(case.label, Path) else case.label
        parts = [_VERSION, self._fingerprint, _identity(case.image), label]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _path(self, key: str, part: str) -> Path:
        return self._folder / f"{key}.{part}.npy"

    def _compute(self, case: Case) -> dict[str, np.ndarray[Any, Any]]:
        label = str(case.label) if isinstance(case.label, Path) else case.label
        try:
            loaded = self._load({"image": str(case.image), "label": label})
            arrays = {part: _array(loaded[part]) for part in _PARTS}
        except Exception as error:
            # The text of a reader's exception may quote the file; its type cannot.
            raise Unfit(Reason.LOAD_FAILED, type(error).__name__) from None
        for part, array in arrays.items():
            if array.size == 0:
                raise Unfit(Reason.LOAD_FAILED, f"the {part} has no elements")
            if not np.isfinite(array).all():
                raise Unfit(Reason.NOT_FINITE, f"the {part} has NaN or infinite values")
        return arrays


def prune(folder: Path, keep: Iterable[CachedCases]) -> int:
    """Delete all entries but those of `keep`; how many files went.

    Pixels of a patient whose images were withdrawn must not live on in the cache.
    """
    kept = set().union(*(dataset.files() for dataset in keep))
    gone = [path for path in folder.glob("*.npy*") if path.name not in kept]
    for path in gone:
        path.unlink(missing_ok=True)
    return len(gone)


def _identity(path: Path) -> list[str | int]:
    """The file as far as the file system tells; a hash stands for its path.

    Raises:
        Unfit: the file has gone.
    """
    try:
        status = path.stat()
    except OSError:
        raise Unfit(Reason.UNREADABLE, "the file has gone since it was indexed") from None
    name = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()
    return [name, status.st_size, status.st_mtime_ns]


def _exist(case: Case) -> bool:
    return all(path.exists() for path in (case.image, case.label) if isinstance(path, Path))


def _array(value: object) -> np.ndarray[Any, Any]:
    """Any tensor, array or number as an array; MONAI's metadata, which holds paths, stays out."""
    tensor = torch.as_tensor(value).detach().cpu()
    return np.ascontiguousarray(tensor.numpy()).reshape(tuple(tensor.shape))


def _read(path: Path) -> Tensor:
    # Mode "c" is copy on write. Pickled objects are never read.
    array = np.load(path, mmap_mode="c", allow_pickle=False)
    return torch.from_numpy(np.asarray(array))


def _write(path: Path, array: np.ndarray[Any, Any]) -> None:
    """Whole or not at all, even in a power cut."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with draft.open("wb") as file:
            np.save(file, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
