"""Phantoms of hospitals that differ in one thing alone: who has which labels, scanner, size, errors."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from client_app.imaging import skew
from client_app.site import Data
from federation.schema import ConfigError

# Patients of each class that every hospital has: with a quarter held out it can train and be evaluated.
LEAST = 15
SKEWS = ("label_skew", "scanner_skew", "size_skew", "noisy_labels", "poisoned_update")

Write = Callable[..., Data]


@dataclass(frozen=True)
class _Patients:
    """Phantom patients on the disk.

    Attributes:
        data: where they lie.
        header: of the table of labels.
        rows: of the table, by patient, in the order in which they were drawn.
        column: where the label stands in a row.
        classes: words of the table, normal first.
    """

    data: Data
    header: list[str]
    rows: dict[str, list[list[str]]]
    column: int
    classes: tuple[str, ...]

    @classmethod
    def read(cls, data: Data, classes: tuple[str, ...]) -> _Patients:
        if data.labels is None:
            raise ConfigError(
                "labels are dealt of tasks that have a table of them: choose chest_xray, mammography "
                "or alzheimers"
            )
        with data.labels.open(newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        own: dict[str, list[list[str]]] = {}
        for row in rows:
            own.setdefault(row[header.index("patient")], []).append(row)
        return cls(data, header, own, header.index("label"), classes)

    @property
    def names(self) -> list[str]:
        return list(self.rows)

    @property
    def labels(self) -> list[str]:
        """Of each patient the highest class that a part of them has."""
        return [
            max((row[self.column] for row in rows), key=self.classes.index)
            for rows in self.rows.values()
        ]

    def give(self, chosen: Sequence[str], out: Path) -> Data:
        """Move these patients, images and rows, to a hospital's folder."""
        (out / "images").mkdir(parents=True)
        for name in chosen:
            folder = self._folder(name)
            folder.rename(out / "images" / folder.name)
        return self._write(out, [row for name in chosen for row in self.rows[name]])

    def relabel(self, share: float, seed: int) -> None:
        """Make a share of the table's labels wrong."""
        rows = [row for own in self.rows.values() for row in own]
        words = skew.flipped([row[self.column] for row in rows], share, seed=seed)
        changed = [
            [*row[: self.column], word, *row[self.column + 1 :]]
            for row, word in zip(rows, words, strict=True)
        ]
        self._write(self.data.root.parent, changed)

    def _folder(self, name: str) -> Path:
        return self.data.root / f"P{name.rpartition('-')[2]}"

    def _write(self, out: Path, rows: Sequence[Sequence[str]]) -> Data:
        with (out / "labels.csv").open("w", newline="", encoding="utf-8") as table:
            csv.writer(table).writerows([self.header, *rows])
        return self.data.model_copy(update={"root": out / "images", "labels": out / "labels.csv"})


def write(
    how: str,
    write_phantom: Write,
    classes: tuple[str, ...],
    folders: Sequence[Path],
    *,
    patients: int,
    seed: int,
    alpha: float,
) -> list[Data]:
    """Fill each hospital's folder; see `client_app.imaging.phantoms.write_skewed`."""
    match how:
        case "label_skew" | "size_skew":
            pool = folders[0].parent / f"{folders[0].name}-pool"
            data = write_phantom(pool, patients=patients * len(folders), site=0, seed=seed)
            drawn = _Patients.read(data, classes)
            if how == "label_skew":
                least = min(LEAST, patients // (2 * len(classes)))
                parts = skew.by_label(
                    drawn.labels, len(folders), alpha=alpha, seed=seed, least=least
                )
            else:
                parts = skew.by_size(drawn.labels, skew.unequal(len(folders)), seed=seed)
            made = [
                drawn.give([drawn.names[at] for at in part], folder)
                for part, folder in zip(parts, folders, strict=True)
            ]
            shutil.rmtree(pool)
            return made
        case "scanner_skew":
            return [
                _with_mix(write_phantom, classes, folder, patients=patients, site=site, seed=seed)
                for site, folder in enumerate(folders)
            ]
        case _:
            made = [
                write_phantom(folder, patients=patients, site=0, seed=seed + number)
                for number, folder in enumerate(folders)
            ]
            share = skew.NOISY if how == "noisy_labels" else 1.0
            _Patients.read(made[-1], classes).relabel(share, seed)
            return made


def _with_mix(
    write_phantom: Write,
    classes: tuple[str, ...],
    folder: Path,
    *,
    patients: int,
    site: int,
    seed: int,
) -> Data:
    """Patients of another scanner whose mix of classes is the same at all hospitals."""
    mix = (0.6, 0.4) if len(classes) == 2 else (1 / len(classes),) * len(classes)
    wanted = dict(zip(classes, skew.whole(np.array(mix), patients).tolist(), strict=True))
    pool = folder.parent / f"{folder.name}-pool"
    drawn_patients = patients
    while True:
        drawn_patients *= 2  # the first ones stay the same when more are asked for
        data = write_phantom(pool, patients=drawn_patients, site=site, seed=seed)
        drawn = _Patients.read(data, classes)
        by_class = {
            word: [n for n, label in zip(drawn.names, drawn.labels, strict=True) if label == word]
            for word in classes
        }
        if all(len(by_class[word]) >= wanted[word] for word in classes):
            break
        shutil.rmtree(pool)
    chosen = [name for word in classes for name in by_class[word][: wanted[word]]]
    made = drawn.give(sorted(chosen), folder)
    shutil.rmtree(pool)
    return made
