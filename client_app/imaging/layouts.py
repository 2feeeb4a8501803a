"""How a folder is organised: whose a NIfTI file is, what it shows, and which mask lies on which image.

DICOM says all this in each file. NIfTI says none of it: a layout does, by folders, names and tables.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from client_app.imaging.attributes import attributes
from client_app.imaging.header import Kind
from client_app.imaging.set_aside import Reason, Unfit
from client_app.imaging.table import read_table
from client_app.site import Data
from federation.schema import ConfigError

Name = Literal["dicom", "nifti", "bids", "decathlon"]

IMAGES, MASKS = "images", "labels"
_SUFFIXES = (".nii", ".nii.gz")
_LARGEST_SIDECAR = 1 << 20  # bytes
_LARGEST_DATASET = 64 << 20
# How many files of images/ are looked at to tell a NIfTI folder from a DICOM tree of that name.
_GLANCE = 1000

# BIDS 1.10, appendix "Suffixes": what a file's last word says of its modality and contrast.
_BIDS_SUFFIXES = {
    "T1w": ("MR", "t1"),
    "T2w": ("MR", "t2"),
    "FLAIR": ("MR", "flair"),
    "PDw": ("MR", "pd"),
    "dwi": ("MR", "diffusion"),
    "bold": ("MR", "functional"),
    "sbref": ("MR", "functional"),
    "asl": ("MR", "perfusion"),
    "angio": ("MR", "angiography"),
    "ct": ("CT", ""),
    "pet": ("PT", ""),
}
_BIDS_MASKS = frozenset({"mask", "dseg", "roi"})
# Entities that a derivative adds to its source's name.
_BIDS_ADDED = frozenset({"space", "label", "desc", "res", "den", "seg", "rec"})
_DECATHLON_MODALITIES = {"mri": "MR", "mr": "MR", "ct": "CT", "pet": "PT"}


@dataclass(frozen=True)
class Belonging:
    """Whose a NIfTI file is, and what it is.

    Attributes:
        kind: `NIFTI`, or `MASK`.
        patient_id: the raw identifier; none for a mask, whose patient is its image's.
        image: of a mask, the image's path below the root.
    """

    kind: Kind
    patient_id: str | None = field(default=None, repr=False)
    modality: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    image: str = field(default="", repr=False)


@dataclass(frozen=True)
class Layout:
    """Attributes:
    tops: folders below the root that are walked; the empty string is the root.
    tables: files beside the images that decide what `belonging` says.
    belonging: of a file's path below the root; raises Unfit where it has no place here.
    """

    name: Name
    tops: tuple[str, ...]
    tables: tuple[Path, ...]
    belonging: Callable[[PurePosixPath], Belonging]


def open_layout(data: Data) -> Layout:
    """The layout of the data's root, found out where the configuration says `auto`.

    Raises:
        ConfigError: the root is not a folder, or a table of the layout is missing or unusable.
    """
    if not data.root.is_dir():
        raise ConfigError(f"data.root: there is no folder {data.root}")
    name = detect(data.root) if data.layout == "auto" else data.layout
    return {"dicom": _dicom, "nifti": _nifti, "bids": _bids, "decathlon": _decathlon}[name](data)


def detect(root: Path) -> Name:
    """What a folder looks like from above; a tree of DICOM files where nothing says otherwise."""
    if (root / "dataset.json").is_file():
        return "decathlon"
    if (root / "participants.tsv").is_file() or (root / "dataset_description.json").is_file():
        return "bids"
    if (root / IMAGES).is_dir():
        some = itertools.islice((root / IMAGES).rglob("*"), _GLANCE)
        if any(is_nifti(path.name) for path in some):
            return "nifti"
    return "dicom"


def is_nifti(name: str) -> bool:
    """Whether a file's name says so."""
    # macOS leaves `._name.nii.gz` beside every file that it copies to a share.
    return name.lower().endswith(_SUFFIXES) and not name.startswith(".")


def _dicom(_: Data) -> Layout:
    def belonging(_: PurePosixPath) -> Belonging:
        raise Unfit(Reason.NOT_DICOM)

    return Layout("dicom", ("",), (), belonging)


def _nifti(data: Data) -> Layout:
    """`images/NAME.nii[.gz]` with, for segmentation, a mask of the same name in `labels/`."""
    if not (data.root / IMAGES).is_dir():
        raise ConfigError(f"data.root: layout nifti needs a folder {IMAGES}/ in it")
    people = _read_people(data)

    def belonging(relative: PurePosixPath) -> Belonging:
        if not is_nifti(relative.name):
            raise Unfit(Reason.NOT_NIFTI)
        name = PurePosixPath(*relative.parts[1:])
        if relative.parts[0] == MASKS:
            return Belonging(Kind.MASK, image=str(IMAGES / name))
        return _of_person(people, str(name))

    tops = tuple(top for top in (IMAGES, MASKS) if (data.root / top).is_dir())
    return Layout("nifti", tops, _tables(data.patients), belonging)


def _decathlon(data: Data) -> Layout:
    """The Medical Segmentation Decathlon's `dataset.json` lists images and their masks.

    Images of its `test` list have no masks and are not walked.
    """
    listing = data.root / "dataset.json"
    content = _read_json(listing, _LARGEST_DATASET)
    try:
        pairs = {
            str(PurePosixPath(row["image"])): str(PurePosixPath(row["label"]))
            for row in content["training"]
        }
        modalities = {str(word).lower() for word in dict(content.get("modality", {})).values()}
    except (KeyError, TypeError, ValueError):
        raise ConfigError(
            "data.root: dataset.json needs a list `training` of objects with `image` and `label`"
        ) from None
    images = {mask: image for image, mask in pairs.items()}
    modality = next(
        (_DECATHLON_MODALITIES.get(word.split()[0], "") for word in modalities if word), ""
    )
    people = _read_people(data)

    def belonging(relative: PurePosixPath) -> Belonging:
        path = str(relative)
        if not is_nifti(relative.name):
            raise Unfit(Reason.NOT_NIFTI)
        if path in images:
            return Belonging(Kind.MASK, image=images[path])
        if path not in pairs:
            raise Unfit(Reason.NOT_FOR_TASK, "dataset.json does not list it for training")
        person = _of_person(people, relative.name)
        return Belonging(Kind.NIFTI, person.patient_id, modality, person.attributes)

    tops = {PurePosixPath(path).parts[0] for path in itertools.chain(pairs, images)}
    present = tuple(sorted(top for top in tops if (data.root / top).is_dir()))
    return Layout("decathlon", present, _tables(listing, data.patients), belonging)


def _bids(data: Data) -> Layout:
    """The Brain Imaging Data Structure: `sub-01[/ses-1]/anat/sub-01[_ses-1]_T1w.nii.gz`.

    Sex and age come from `participants.tsv`, the scanner from the JSON beside the image. A mask below
    `derivatives/` lies on the one image whose name it continues.
    """
    table = data.root / "participants.tsv"
    people = _read_participants(table)

    def belonging(relative: PurePosixPath) -> Belonging:
        if not is_nifti(relative.name):
            raise Unfit(Reason.NOT_NIFTI)
        stem = re.sub(r"\.nii(\.gz)?$", "", relative.name, flags=re.IGNORECASE)
        *entities, suffix = stem.split("_")
        subject = next((part for part in relative.parts[:-1] if part.startswith("sub-")), "")
        if not subject or not entities or entities[0] != subject:
            raise Unfit(Reason.NO_PATIENT, "its name and folder do not name one BIDS subject")
        if suffix in _BIDS_MASKS:
            return Belonging(Kind.MASK, image=_bids_source(data.root, relative, subject, entities))
        if relative.parts[0] != subject:
            raise Unfit(Reason.NOT_SUPPORTED, "derived images are not measurements")
        modality, weighting = _BIDS_SUFFIXES.get(suffix, ("", ""))
        person = people.get(subject, {})
        return Belonging(
            Kind.NIFTI,
            subject,
            modality,
            attributes(
                sex=person.get("sex", "") or person.get("gender", ""),
                age=person.get("age", ""),
                weighting=weighting,
                **_bids_scanner(data.root / relative.parent / f"{stem}.json"),
            ),
        )

    return Layout("bids", ("",), _tables(table if table.is_file() else None), belonging)


def _bids_source(root: Path, mask: PurePosixPath, subject: str, entities: list[str]) -> str:
    """The image that a mask was drawn on: same subject, session and other entities."""
    kept = [entity for entity in entities if entity.partition("-")[0] not in _BIDS_ADDED]
    below = mask.parts[mask.parts.index(subject) : -1]
    folder = PurePosixPath(*below)
    found = sorted(
        path.name
        for path in (root / folder).glob("_".join(kept) + "_*.nii*")
        if is_nifti(path.name)
        and re.sub(r"\.nii(\.gz)?$", "", path.name).split("_")[-1] in _BIDS_SUFFIXES
    )
    if len(found) != 1:
        raise Unfit(Reason.IMAGE_MISSING, f"{len(found)} images of its name; one is wanted")
    return str(folder / found[0])


def _bids_scanner(sidecar: Path) -> dict[str, str]:
    """What the JSON beside an image says of the scanner; nothing where none can be read."""
    try:
        content = _read_json(sidecar, _LARGEST_SIDECAR)
    except ConfigError:
        return {}
    names = {
        "manufacturer": "Manufacturer",
        "model": "ManufacturersModelName",
        "field_strength": "MagneticFieldStrength",
    }
    return {name: str(content.get(key, "")) for name, key in names.items()}


def _read_participants(table: Path) -> dict[str, dict[str, str]]:
    if not table.is_file():
        return {}
    rows = read_table(
        table,
        where="participants.tsv",
        columns=("participant_id",),
        optional=("sex", "gender", "age"),
    )
    return {row["participant_id"]: row for _, row in rows}


def _read_people(data: Data) -> dict[str, Belonging] | None:
    """File name to its patient, from `data.patients`."""
    if data.patients is None:
        return None
    people: dict[str, Belonging] = {}
    for line, row in read_table(
        data.patients,
        where="data.patients",
        columns=("file", "patient"),
        optional=("sex", "age", "manufacturer"),
    ):
        words = attributes(sex=row["sex"], age=row["age"], manufacturer=row["manufacturer"])
        person = Belonging(Kind.NIFTI, row["patient"], attributes=words)
        if people.setdefault(row["file"], person).patient_id != person.patient_id:
            raise ConfigError(f"data.patients: line {line} gives a file to a second patient")
    return people


def _of_person(people: dict[str, Belonging] | None, name: str) -> Belonging:
    if people is None:
        return Belonging(Kind.NIFTI, name, attributes=attributes())
    if name not in people or not (people[name].patient_id or "").strip():
        raise Unfit(Reason.NO_PATIENT, "data.patients has no patient for it")
    return people[name]


def _tables(*paths: Path | None) -> tuple[Path, ...]:
    return tuple(path for path in paths if path is not None)


def _read_json(path: Path, largest: int) -> dict[str, Any]:
    """Raises ConfigError: unreadable, too large, or not an object; nothing of it is quoted."""
    try:
        if path.stat().st_size > largest:
            raise ConfigError(f"{path.name} has more than {largest:,} bytes")
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        raise ConfigError(f"{path.name} cannot be read as JSON") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path.name} holds no JSON object")
    return content
