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
    """Why a file serves no task. The words are fixed and hold nothing of the file."""

    UNREADABLE = "unreadable"
    NOT_A_FILE = "not_a_file"
    EMPTY = "empty"
    CORRUPT = "corrupt"
    TRUNCATED = "truncated"
    NOT_DICOM = "not_dicom"
    NOT_NIFTI = "not_nifti"
    NOT_AN_IMAGE = "not_an_image"
    NOT_A_RADIOGRAPH = "not_a_radiograph"
    SEVERAL_FRAMES = "several_frames"
    COLOUR = "colour"
    NO_PATIENT = "no_patient"
    DUPLICATE = "duplicate"
    WRONG_DIMENSIONS = "wrong_dimensions"
    MASK_MISSING = "mask_missing"
    IMAGE_MISSING = "image_missing"
    GEOMETRY_DIFFERS = "geometry_differs"
    LABEL_MISSING = "label_missing"
    LABEL_UNKNOWN = "label_unknown"
    LABEL_CONFLICT = "label_conflict"
    LOAD_FAILED = "load_failed"
    NOT_FINITE = "not_finite"


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


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Keep what readers of files say out of the logs: pydicom and nibabel quote values.

    The switch is the process's, so wrap the whole work around threads, not the work inside one.
    """
    loggers = [logging.getLogger(name) for name in ("pydicom", "nibabel", "nibabel.global")]
    before = [logger.disabled for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.disabled = True
        try:
            yield
        finally:
            for logger, disabled in zip(loggers, before, strict=True):
                logger.disabled = disabled
