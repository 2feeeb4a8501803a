# ruff: noqa: S608 - what is put into statements are constants of this file
"""The index: what lies below the data's root, and what was set aside and why.

A SQLite file in the site's state folder that spares reading headers again. It holds paths, so it
stays on this hospital's disk, but no identifier read from a file: the patient is a pseudonym and an
image's UID is a keyed hash. It can be deleted at any time; the next `update` makes it anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from client_app.imaging.header import Affine, Kind
from client_app.imaging.image import Image
from client_app.imaging.layouts import Layout, open_layout
from client_app.imaging.pseudonym import keyed_hash
from client_app.imaging.record import header_of
from client_app.imaging.set_aside import Reason, SetAside
from client_app.imaging.store import connect, is_damage, locked, open_store, remove
from client_app.imaging.survey import Progress as Progress
from client_app.imaging.survey import Survey
from client_app.site import Data
from federation.schema import ConfigError

# Whether another file, earlier in the order of paths, holds the same instance.
_IS_COPY = """(files.instance != '' AND EXISTS (
    SELECT 1 FROM files AS other
    WHERE other.instance != '' AND other.instance = files.instance AND other.kind = files.kind
      AND other.path < files.path))"""


@dataclass(frozen=True)
class MaskFile:
    """A mask that the index found.

    Attributes:
        kind: segmentation, structure_set or mask.
        patient: pseudonym; empty for NIfTI.
        references: keyed hashes of the UIDs of series and of instances that it was drawn on; for NIfTI
            the image's path below the root. Where a file names a UID without saying what it is, both
            hashes are here, one of which meets nothing.
        frame_of_reference: keyed hash, may be empty.
        structures: names of its segments or regions in their order.
        created: `YYYYMMDDHHMMSS` or a beginning of it.
        instance: keyed hash.
        affine, shape: of NIfTI.
    """

    kind: Kind
    file: Path = field(repr=False)
    patient: str
    references: tuple[str, ...] = field(repr=False)
    frame_of_reference: str
    structures: tuple[str, ...]
    created: str
    instance: str
    affine: Affine | None = None
    shape: tuple[int, ...] = ()


class Index:
    """What the last update found, as of that moment; memory stays bounded.

    Attributes:
        read: how many files the update had to read.
        files: how many there are.
    """

    def __init__(self, path: Path, root: Path, read: int) -> None:
        self._path = path
        self._root = root
        self._database = connect(path)
        self.read = read
        # One transaction for as long as the handle lives: later updates do not show in it.
        self._database.execute("BEGIN")
        self.files: int = self._database.execute("SELECT count(*) FROM files").fetchone()[0]

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._database.close()

    def images(self) -> Iterator[Image]:
        """In the order of (patient, study, series, volume, first file)."""
        singles = self._rows(
            "SELECT patient, study, series, 0, path, kind, frame, content FROM files "
            f"WHERE kind IN ('radiograph', 'nifti') AND NOT {_IS_COPY} "
            "ORDER BY patient, study, series, path"
        )
        of_series = self._rows(
            "SELECT patient, study, series, volume, path, volumes, files, content FROM volumes "
            "WHERE reason = '' ORDER BY patient, study, series, volume"
        )
        single: Callable[..., Image] = self._single
        volume: Callable[..., Image] = self._volume
        merged = heapq.merge(
            ((row, single) for row in singles),
            ((row, volume) for row in of_series),
            key=lambda item: item[0][:5],
        )
        for row, image in merged:
            yield image(*row)

    def masks(self) -> Iterator[MaskFile]:
        """In the order of their paths."""
        for path, patient, frame, instance, kind, content in self._rows(
            "SELECT path, patient, frame, instance, kind, content FROM files "
            "WHERE kind IN ('segmentation', 'structure_set', 'mask') "
            f"AND NOT {_IS_COPY} ORDER BY path"
        ):
            header = header_of(kind, json.loads(content))
            yield MaskFile(
                kind=header.kind,
                file=self._file(path),
                patient=patient,
                references=header.references,
                frame_of_reference=frame,
                structures=header.structures,
                created=header.created,
                instance=instance,
                affine=header.affine,
                shape=header.shape,
            )

    def set_aside(self) -> Iterator[SetAside]:
        """Files, and volumes of series by the path of their first file; in the order of paths."""
        rows = heapq.merge(
            self._rows("SELECT path, reason, detail FROM files WHERE reason != '' ORDER BY path"),
            self._rows("SELECT path, reason, detail FROM volumes WHERE reason != '' ORDER BY path"),
            self._rows(
                f"SELECT path, '{Reason.DUPLICATE}', 'another file holds the same image' FROM files "
                f"WHERE kind NOT IN ('', 'planes') AND {_IS_COPY} ORDER BY path"
            ),
        )
        for path, reason, detail in rows:
            yield SetAside(self._file(path), Reason(reason), detail)

    def series_of_instance(self, instance: str) -> str | None:
        """The keyed hash of the series that an image belongs to, given its own."""
        rows = self._rows(
            "SELECT series FROM files WHERE instance = ? AND instance != '' "
            "AND kind IN ('planes', 'radiograph') ORDER BY kind, path LIMIT 1",
            instance,
        )
        return next((series for (series,) in rows), None)

    def _single(
        self,
        patient: str,
        study: str,
        series: str,
        volume: int,
        path: bytes,
        kind: str,
        frame: str,
        content: str,
    ) -> Image:
        header = header_of(kind, json.loads(content))
        return Image(
            kind=header.kind,
            patient=patient,
            files=(self._file(path),),
            shape=header.shape,
            modality=header.modality,
            study=study,
            series=series,
            frame_of_reference=frame,
            affine=header.affine,
            pixel_spacing=header.pixel_spacing,
            attributes=header.attributes,
        )

    def _volume(
        self,
        patient: str,
        study: str,
        series: str,
        volume: int,
        path: bytes,
        number: int,
        files: str,
        content: str,
    ) -> Image:
        said = json.loads(content)
        paths = self._rows(
            "SELECT files.path FROM json_each(?) AS place JOIN files ON files.number = place.value "
            "ORDER BY place.key",
            files,
        )
        return Image(
            kind=Kind.PLANES,
            patient=patient,
            files=tuple(self._file(path) for (path,) in paths),
            shape=tuple(said["shape"]),
            modality=said["modality"],
            study=study,
            series=series,
            frame_of_reference=said["frame"],
            planes=tuple((place, plane) for place, plane in said["planes"]),
            tiles=said["tiles"],
            affine=tuple(map(tuple, said["affine"])),
            volume=volume,
            volumes=number,
            attributes=said["attributes"],
            note=said["note"],
        )

    def _file(self, path: bytes) -> Path:
        return self._root / os.fsdecode(path)

    def _rows(self, query: str, *values: object) -> Iterator[Any]:
        try:
            for row in self._database.execute(query, values):  # noqa: UP028 - would close the cursor
                yield row
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            remove(self._path)
            raise ConfigError(
                "the index was damaged and has been removed; the next look at the folders makes it anew"
            ) from None


def noted(state: Path) -> tuple[int, float] | None:
    """What the index holds without a look at the images: how many files, and when they were looked at.

    Args:
        state: the site's state folder.

    Returns:
        Files, and seconds since 1970; None where no look was ever finished.
    """
    path = state / "index.sqlite"
    if not path.exists():
        return None
    try:
        with contextlib.closing(connect(path)) as database:
            (files,) = database.execute("SELECT count(*) FROM files").fetchone()
            row = database.execute("SELECT walked FROM about").fetchone()
    except sqlite3.DatabaseError:
        return None  # of another version, or damaged: the next update makes it anew
    return None if row is None or row[0] is None else (files, row[0])


def update(
    data: Data,
    *,
    state: Path,
    key: bytes,
    progress: Progress | None = None,
    refresh: float = 0.0,
    workers: int | None = None,
) -> Index:
    """Bring the index up to date with the disk and give what it holds.

    Only files whose path, size or times are new are read, and of them only the header. A bad file gets
    a row with its reason and stops nothing. May be killed at any moment: what was committed is not
    read again. Of several processes one works and the others wait for it.

    Args:
        state: the site's state folder; the index is `index.sqlite` in it. Never walked.
        key: the hospital's pseudonym key. Under another key everything is read again.
        progress: told about files that had to be read.
        refresh: seconds for which the last look at the folders is trusted; they are not walked then.
        workers: processes that read headers; none for one a core.

    Raises:
        ConfigError: the root is not a folder, or a table of the layout cannot be used.
    """
    layout = open_layout(data)
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = state / "index.sqlite"
    survey = Survey(data, layout, state, key, progress or (lambda done, total: None), workers)

    def attempt() -> Index:
        with contextlib.closing(open_store(path, _origin(data, layout, key))) as database:
            (walked,) = database.execute("SELECT walked FROM about").fetchone()
            # A clock that was set back says nothing about when that was.
            fresh = walked is not None and 0 <= time.time() - walked < refresh
            read = 0 if fresh else survey.run(database)
        return Index(path, data.root, read)

    with locked(state / "index.lock"):
        try:
            return attempt()
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
        remove(path)
        return attempt()


def _origin(data: Data, layout: Layout, key: bytes) -> bytes:
    """Keyed hash of all that rows depend on besides the files themselves."""
    tables = [hashlib.sha256(table.read_bytes()).hexdigest() for table in layout.tables]
    said = [str(data.root.resolve()), layout.name, tables]
    return keyed_hash(key, "index", json.dumps(said))
