"""What the index keeps of one file: keyed hashes for identifiers, and what tasks go by.

Here the raw identifiers end. It runs in a reader's process (see `readers`), so that none of them
reaches the process that writes the index.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from client_app.imaging.header import Header, Kind, Plane
from client_app.imaging.layouts import Layout
from client_app.imaging.pseudonym import normalised, pseudonym, uid_hash
from client_app.imaging.set_aside import Reason, Unfit
from client_app.imaging.walk import name_of

_LARGEST = 32 << 20  # characters of one header as JSON; 10,000 frames take 3 million
# Segment labels and ROI names are of value representation LO (DICOM PS3.5, table 6.2-1).
_LONGEST_NAME = 64


class Record(NamedTuple):
    """Attributes:
    reason, detail: why the file is set aside; `reason` is empty for a usable one.
    patient: pseudonym, empty for a NIfTI mask.
    study, series, instance, frame: keyed hashes of UIDs, empty where the format has none. A plane
        without a SeriesInstanceUID has a series of its own.
    content: the rest of the header as JSON, see `header_of`.
    """

    reason: str = ""
    detail: str = ""
    kind: str = ""
    patient: str = ""
    study: str = ""
    series: str = ""
    instance: str = ""
    frame: str = ""
    content: str = ""


def open_reader(root: Path, layout: Layout, key: bytes) -> Callable[[bytes], Record]:
    """A function from a path below the root to its record. It raises nothing, whatever the file is."""
    # Imported here: only a reader pays for what it needs itself.
    if layout.name == "dicom":
        from client_app.imaging import dicom

        return guarded(
            lambda path: record_of(dicom.read_header(root / os.fsdecode(path)), path, key)
        )
    from client_app.imaging import nifti

    def read(path: bytes) -> Record:
        relative = os.fsdecode(path)
        belonging = layout.belonging(PurePosixPath(relative))
        header = nifti.read_header(root / relative)
        is_mask = belonging.kind is Kind.MASK
        content = {
            "shape": header.shape,
            "affine": header.affine,
            "modality": belonging.modality,
            "references": [belonging.image] if is_mask else [],
            "attributes": dict(belonging.attributes),
        }
        patient = "" if is_mask else _patient(belonging.patient_id, key)
        return Record(kind=belonging.kind, patient=patient, content=_compact(content))

    return guarded(read)


def guarded(read: Callable[[bytes], Record]) -> Callable[[bytes], Record]:
    """`read`, with a reason in place of whatever it raises."""

    def read_or_say_why(path: bytes) -> Record:
        try:
            return read(path)
        except Unfit as unfit:
            return Record(unfit.reason, unfit.detail)
        except OSError as error:  # gzip's complaints are OSErrors without a number
            return Record(Reason.UNREADABLE if error.errno else Reason.CORRUPT, name_of(error))
        except MemoryError:
            return Record(Reason.TOO_LARGE, "reading its header takes more memory than is allowed")
        except Exception as error:
            # The text of a reader's exception may quote the file; its type cannot.
            return Record(Reason.CORRUPT, type(error).__name__)

    return read_or_say_why


def header_of(kind: str, content: dict[str, Any]) -> Header:
    """The header that a record was made from, without identifiers."""
    spacing, affine = content.get("pixel_spacing"), content.get("affine")
    return Header(
        kind=Kind(kind),
        shape=tuple(content.get("shape", ())),
        modality=content.get("modality", ""),
        affine=tuple(map(tuple, affine)) if affine else None,
        planes=tuple(
            Plane(
                number,
                tuple(position),
                tuple(orientation),
                tuple(plane_spacing),
                tuple(stack),
                tuple(order),
            )
            for number, position, orientation, plane_spacing, stack, order in content.get(
                "planes", ()
            )
        ),
        tiles=content.get("tiles", 0),
        pixel_spacing=tuple(spacing) if spacing else None,
        structures=tuple(content.get("structures", ())),
        references=tuple(content.get("references", ())),
        created=content.get("created", ""),
        attributes=content.get("attributes", {}),
    )


def record_of(header: Header, path: bytes, key: bytes) -> Record:
    """The record of a DICOM file.

    Raises:
        Unfit: it names no patient.
    """
    patient = _patient(header.patient_id, key)
    series = uid_hash(key, "series", header.series_uid)
    if not series and header.kind is Kind.PLANES:
        series = uid_hash(key, "series of one file", os.fsdecode(path))
    content = {
        "shape": header.shape,
        "modality": header.modality,
        "tiles": header.tiles,
        "pixel_spacing": header.pixel_spacing,
        "planes": [
            (p.number, p.position, p.orientation, p.spacing, p.stack, p.order)
            for p in header.planes
        ],
        # A reference names a series or an image; which of the two, only what it meets can tell.
        "references": [
            uid_hash(key, purpose, uid)
            for uid in header.references
            for purpose in ("series", "instance")
        ],
        "structures": [name[:_LONGEST_NAME] for name in header.structures],
        "created": header.created,
        "attributes": dict(header.attributes),
    }
    return Record(
        kind=header.kind,
        patient=patient,
        study=uid_hash(key, "study", header.study_uid),
        series=series,
        instance=uid_hash(key, "instance", header.instance_uid),
        frame=uid_hash(key, "frame", header.frame_of_reference_uid),
        content=_compact(content),
    )


def _patient(patient_id: str | None, key: bytes) -> str:
    if not normalised(patient_id or ""):
        raise Unfit(Reason.NO_PATIENT, "its patient identifier is empty")
    return pseudonym(key, patient_id or "")


def _compact(content: dict[str, Any]) -> str:
    """JSON in ASCII without what is empty.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    said = {name: value for name, value in content.items() if value}
    text = json.dumps(said, separators=(",", ":"), allow_nan=False)
    if len(text) > _LARGEST:
        raise Unfit(Reason.TOO_LARGE, f"its header takes {len(text):,} characters")
    return text
