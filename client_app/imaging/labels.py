"""The table of labels: what a hospital says of its patients, studies, series or files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from client_app.imaging.attributes import attributes
from client_app.imaging.header import Kind
from client_app.imaging.image import Image, Mask
from client_app.imaging.pseudonym import normalised, pseudonym, uid_hash
from client_app.imaging.set_aside import Reason, Unfit
from client_app.imaging.table import read_table
from client_app.site import Data
from federation.schema import ConfigError, nearest
from federation.tasks import Task

# The most specific column that a row fills in says what it speaks of.
_UNITS = ("file", "series", "study", "patient")
_SPELLINGS = {"participant_id": "patient", "patient_id": "patient"}
# What BIDS data sets call the column of the diagnosis.
_BIDS_COLUMNS = ("label", "diagnosis", "group", "dx")
_MASK = "mask"

_Key = tuple[str, str, tuple[str, ...]]
Answer = int | Path | Reason


@dataclass(frozen=True)
class Labels:
    """What the table says, by unit, the unit's hash, and what else the task tells apart."""

    rows: Mapping[_Key, Answer]
    root: Path
    by: tuple[str, ...] = ()
    extra: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)

    def of(self, image: Image) -> int | Mask:
        """The class index or mask of an image.

        Raises:
            Unfit: the table has none for it, contradicts itself, or says a word that is no class.
        """
        names = {
            "file": str(image.files[0].relative_to(self.root)) if self._below(image) else "",
            "series": image.series,
            "study": image.study,
            "patient": image.patient,
        }
        finer = tuple(image.attributes.get(name, "") for name in self.by)
        for unit in _UNITS:
            for words in dict.fromkeys((finer, ("",) * len(finer))):
                answer = self.rows.get((unit, names[unit], words)) if names[unit] else None
                if isinstance(answer, Reason):
                    raise Unfit(answer)
                if isinstance(answer, Path):
                    return Mask(Kind.MASK, answer)
                if answer is not None:
                    return answer
        raise Unfit(Reason.LABEL_MISSING)

    def _below(self, image: Image) -> bool:
        return image.files[0].is_relative_to(self.root)


def find_labels(data: Data, task: Task, key: bytes, *, bids: bool) -> Labels | None:
    """The site's table of labels for a task; none where the task's masks need no table.

    Rows that name no patient (study, series, file) or have no label are passed over; two rows that
    say different things of one unit make a conflict, never a guess.

    Args:
        key: the hospital's pseudonym key: identifiers of the table become hashes at once.
        bids: whether participants.tsv stands in for a missing table.

    Raises:
        ConfigError: the table is needed and missing, or lacks a column.
    """
    table, column = data.labels, data.label_column
    if table is None and bids and task.kind == "classification":
        table = data.root / "participants.tsv"
    if table is None:
        if task.kind == "segmentation":
            return None
        raise ConfigError(
            f"data.labels is missing: task {task.name} needs a CSV with columns patient,label"
        )
    classes = _classes(data, task)
    rows: dict[_Key, Answer] = {}
    extra: dict[str, dict[str, str]] = {}
    for line, cells in read_table(table, where="data.labels", columns=(), optional=task.label_by):
        row = {_SPELLINGS.get(name, name): text for name, text in cells.items()}
        column = _column(row, column, task, bids=bids)
        if not any(unit in row for unit in _UNITS):
            raise ConfigError(
                "data.labels: the first line names none of the columns patient, study, series, file"
            )
        unit = next((name for name in _UNITS if normalised(row.get(name, ""))), None)
        if unit is None or not row[column]:
            continue
        finer = tuple(_word(name, row[name], line) for name in task.label_by)
        place = (unit, _hashed(key, unit, row[unit]), finer)
        answer: Answer
        if column == _MASK:
            answer = data.root / row[column]
        else:
            answer = classes.get(row[column].casefold(), Reason.LABEL_UNKNOWN)
        if rows.setdefault(place, answer) != answer:
            rows[place] = Reason.LABEL_CONFLICT
        density = attributes(breast_density=row.get("breast_density", ""))["breast_density"]
        if unit == "patient" and density != "unknown":
            extra[place[1]] = {"breast_density": density}
    return Labels(rows, data.root, task.label_by, extra)


def _classes(data: Data, task: Task) -> dict[str, int]:
    """Every word for a class, lower case: its index, its name, the task's and the site's synonyms."""
    names = {name.casefold(): position for position, name in enumerate(task.classes)}
    known = {str(position): position for position in range(len(task.classes))} | names
    known |= {word.casefold(): names[name.casefold()] for word, name in task.synonyms.items()}
    for word, name in data.label_names.items():
        if name.casefold() not in names:
            raise ConfigError(
                f"data.label_names: task {task.name} has no class {name!r}{nearest(name, task.classes)}"
            )
        known[word.casefold()] = names[name.casefold()]
    return known


def _column(row: Mapping[str, str], wanted: str, task: Task, *, bids: bool) -> str:
    """The column that holds the answer."""
    candidates: tuple[str, ...] = (
        wanted.lower(),
        *(_BIDS_COLUMNS if bids and wanted == "label" else ()),
    )
    if task.kind == "segmentation":
        candidates = (_MASK,)
    for name in candidates:
        if name in row:
            return name
    raise ConfigError(
        f"data.labels: the first line names no column {candidates[0]!r}; "
        + ("a segmentation takes masks" if task.kind == "segmentation" else "see data.label_column")
    )


def _word(name: str, text: str, line: int) -> str:
    """A table's word for an attribute, in the vocabulary of images; empty where the row speaks of all.

    Raises:
        ConfigError: a word that means nothing here: guessing would label the wrong breast.
    """
    if not text:
        return ""
    word: str = attributes(**{name: text}).get(name, "unknown")
    if word == "unknown":
        raise ConfigError(f"data.labels: line {line}: column {name} holds an unknown word")
    return word


def _hashed(key: bytes, unit: str, text: str) -> str:
    if unit == "patient":
        return pseudonym(key, text)
    if unit == "file":
        return text.strip()
    return uid_hash(key, unit, text.strip())
