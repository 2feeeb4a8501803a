"""One NIfTI header, and whose file it is.

`images/NAME.nii[.gz]` with, for segmentation, a mask of the same name in `labels/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import nibabel
import numpy as np

from client_app.imaging.attributes import attributes
from client_app.imaging.header import Header
from client_app.imaging.set_aside import Reason, Unfit
from client_app.imaging.table import read_table
from federation.schema import ConfigError

IMAGES, MASKS = "images", "labels"
_SUFFIXES = (".nii", ".nii.gz")


@dataclass(frozen=True)
class Person:
    """A row of the table of patients: the raw identifier, and attributes already cleaned."""

    patient_id: str = field(repr=False)
    attributes: Mapping[str, str]


def read_people(table: Path) -> dict[str, Person]:
    """File name below `images/` to its patient, from `Data.patients`.

    Raises:
        ConfigError: the table lacks a column, or gives one file to two patients.
    """
    people: dict[str, Person] = {}
    for line, row in read_table(
        table,
        where="data.patients",
        columns=("file", "patient"),
        optional=("sex", "age", "manufacturer"),
    ):
        person = Person(
            row["patient"],
            attributes(sex=row["sex"], age=row["age"], manufacturer=row["manufacturer"]),
        )
        if people.setdefault(row["file"], person).patient_id != person.patient_id:
            raise ConfigError(f"data.patients: line {line} gives a file to a second patient")
    return people


def read_header(
    path: Path, *, relative: PurePosixPath, people: Mapping[str, Person] | None
) -> Header:
    """Read the header of a NIfTI-1 or -2 file.

    Args:
        relative: the file below the data's root, `images/…` or `labels/…`.
        people: whose file it is; without it each file is a patient of its own.

    Raises:
        Unfit: not NIfTI, shorter than its header says, no usable affine, or not in the table.
        Exception: whatever nibabel raises on a file that is broken in ways of its own.
    """
    if not relative.name.lower().endswith(_SUFFIXES):
        raise Unfit(Reason.NOT_NIFTI)
    with path.open("rb"):  # nibabel tells "may not be read" and "is not there" apart from nothing
        pass
    image = nibabel.load(path)
    shape = tuple(int(length) for length in image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    affine = image.affine
    if len(shape) < 2 or min(shape) < 1:
        raise Unfit(Reason.NOT_AN_IMAGE, f"shape {shape}")
    if affine is None or not np.isfinite(affine).all() or abs(np.linalg.det(affine)) < 1e-12:
        raise Unfit(Reason.CORRUPT, "the affine from voxels to millimetres cannot be inverted")
    if path.suffix == ".nii":
        needed = image.dataobj.offset + int(np.prod(shape)) * image.get_data_dtype().itemsize
        present = path.stat().st_size
        if present < needed:
            raise Unfit(Reason.TRUNCATED, f"{present:,} of {needed:,} bytes")
    person = Person("", {}) if relative.parts[0] == MASKS else _person(relative, people)
    return Header(
        shape=shape,
        affine=tuple(tuple(map(float, row)) for row in affine),
        patient_id=person.patient_id or None,
        attributes=person.attributes,
    )


def _person(relative: PurePosixPath, people: Mapping[str, Person] | None) -> Person:
    name = str(PurePosixPath(*relative.parts[1:]))
    if people is None:
        return Person(name, attributes())
    if name not in people or not people[name].patient_id.strip():
        raise Unfit(Reason.NO_PATIENT, "data.patients has no patient for it")
    return people[name]
