"""What is not used, and why. No file is skipped without a row that says so."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path


class Reason(StrEnum):
    """Why a file or an image serves no task. The words are fixed and hold nothing of the file."""

    UNREADABLE = "unreadable"
    NOT_A_FILE = "not_a_file"
    EMPTY = "empty"
    CORRUPT = "corrupt"
    TRUNCATED = "truncated"
    TOO_SLOW = "too_slow"
    TOO_LARGE = "too_large"
    NOT_DICOM = "not_dicom"
    NOT_NIFTI = "not_nifti"
    NOT_AN_IMAGE = "not_an_image"
    NOT_SUPPORTED = "not_supported"
    COLOUR = "colour"
    COMPRESSION_UNKNOWN = "compression_unknown"
    NO_PATIENT = "no_patient"
    PATIENT_CONFLICT = "patient_conflict"
    NO_GEOMETRY = "no_geometry"
    DUPLICATE = "duplicate"
    LOCALISER = "localiser"
    SLICES_MISSING = "slices_missing"
    SLICES_REPEATED = "slices_repeated"
    SPACING_VARIES = "spacing_varies"
    SLICES_DIFFER = "slices_differ"
    NOT_FOR_TASK = "not_for_task"
    WRONG_DIMENSIONS = "wrong_dimensions"
    MASK_MISSING = "mask_missing"
    MASK_SUPERSEDED = "mask_superseded"
    STRUCTURE_MISSING = "structure_missing"
    IMAGE_MISSING = "image_missing"
    GEOMETRY_DIFFERS = "geometry_differs"
    LABEL_MISSING = "label_missing"
    LABEL_UNKNOWN = "label_unknown"
    LABEL_CONFLICT = "label_conflict"
    LOAD_FAILED = "load_failed"
    NOT_FINITE = "not_finite"

    @property
    def remedy(self) -> str:
        """What would mend it, for the hospital's eyes."""
        return _REMEDIES[self]


_REMEDIES = {
    Reason.UNREADABLE: "let the service's user read it, or take it out of the folder",
    Reason.NOT_A_FILE: "nothing to mend: pipes, sockets and devices are never opened",
    Reason.EMPTY: "copy it from the archive again",
    Reason.CORRUPT: "copy it from the archive again",
    Reason.TRUNCATED: "copy it from the archive again; the transfer was cut short",
    Reason.TOO_SLOW: "copy it from the archive again; no sound header takes seconds to read",
    Reason.TOO_LARGE: "copy it from the archive again; it claims more than this machine will hold",
    Reason.NOT_DICOM: "nothing to mend if it is a note or a table among the images",
    Reason.NOT_NIFTI: "nothing to mend if it is a note or a table among the images",
    Reason.NOT_AN_IMAGE: "nothing to mend: reports and presentation states hold no pixels",
    Reason.NOT_SUPPORTED: "nothing to mend: no task learns from this kind of image",
    Reason.COLOUR: "nothing to mend: screenshots and colour renderings are not measurements",
    Reason.COMPRESSION_UNKNOWN: "export it from the archive as Explicit VR Little Endian",
    Reason.NO_PATIENT: "export it with its PatientID, or name its patient in the table",
    Reason.PATIENT_CONFLICT: "export the series again; its files name several patients",
    Reason.NO_GEOMETRY: "export the original series; position, orientation or spacing are missing",
    Reason.DUPLICATE: "nothing to mend: another file holds the same image and is used",
    Reason.LOCALISER: "nothing to mend: planning views are no volume",
    Reason.SLICES_MISSING: "export the whole series again; slices are missing inside it",
    Reason.SLICES_REPEATED: "export the series again; slices lie on one another and differ",
    Reason.SPACING_VARIES: "export the series as acquired, or reconstruct it with even spacing",
    Reason.SLICES_DIFFER: "export the series again; its slices differ in size or orientation",
    Reason.NOT_FOR_TASK: "nothing to mend: the task wants other images",
    Reason.WRONG_DIMENSIONS: "give the task images of its dimensions",
    Reason.MASK_MISSING: "export the mask too, or leave the image out",
    Reason.MASK_SUPERSEDED: "nothing to mend: a newer mask of the same image is used",
    Reason.STRUCTURE_MISSING: "name this hospital's structures in data.structures",
    Reason.IMAGE_MISSING: "export the image that it was drawn on",
    Reason.GEOMETRY_DIFFERS: "export image and mask of one frame of reference",
    Reason.LABEL_MISSING: "give it a line in data.labels",
    Reason.LABEL_UNKNOWN: "write a class of the task, or translate the word in data.label_names",
    Reason.LABEL_CONFLICT: "give it one label only",
    Reason.LOAD_FAILED: "look at it in a viewer; its header is sound and its pixels are not",
    Reason.NOT_FINITE: "export it again; it holds NaN or infinite values",
}


@dataclass(frozen=True)
class SetAside:
    """A file that is not used.

    `detail` is safe to show: it never holds an identifier or anything else read from the file but
    sizes and names of the standard. `path` may hold one (folders are named after patients), so it
    is for this hospital's eyes and stays out of `repr`.
    """

    path: Path = field(repr=False)
    reason: Reason
    detail: str = ""


class Unfit(Exception):
    """Raised by a reader on a file that serves no task; becomes a `SetAside`."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else str(reason))
        self.reason = reason
        self.detail = detail


# Libraries that log what they read: values of elements, names of patients.
_QUOTING = ("pydicom", "nibabel", "highdicom", "pylibjpeg", "openjpeg", "jpeg_ls")


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Keep what readers of files say out of the logs: pydicom and nibabel quote values.

    The switch is the process's, so wrap the whole work around threads, not the work inside one.
    """
    loggers = [logging.getLogger(name) for name in _QUOTING]
    before = [(logger.handlers, logger.propagate) for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            # Their modules' own loggers hand records up to here, and no further.
            logger.handlers, logger.propagate = [logging.NullHandler()], False
        try:
            yield
        finally:
            for logger, (handlers, propagate) in zip(loggers, before, strict=True):
                logger.handlers, logger.propagate = handlers, propagate
