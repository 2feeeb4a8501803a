"""Small DICOM and NIfTI files, and tasks without training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    generate_uid,
)

from federation.tasks import Task

KEY = bytes(range(32))
OTHER_KEY = bytes(range(32, 64))


def radiograph(path: Path, patient: str = "P1", *, edge: int = 8, **elements: Any) -> Dataset:
    """Write a small chest radiograph; `elements` replace or, being None, remove header elements."""
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.SOPClassUID = DigitalXRayImageStorageForPresentation
    header.SOPInstanceUID = generate_uid(entropy_srcs=["test", str(path)])
    header.Modality, header.PatientID, header.PatientName = "DX", patient, "Canary^Name"
    header.Rows = header.Columns = edge
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit = 16, 12, 11
    header.PixelRepresentation = 0
    pixels = np.random.default_rng(0).integers(0, 4096, size=(edge, edge), dtype=np.uint16)
    header.PixelData = pixels.tobytes()
    for name, value in elements.items():
        if value is None:
            delattr(header, name)
        else:
            setattr(header, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    header.save_as(path, enforce_file_format=True)
    return header


def volume(
    path: Path, shape: Sequence[int] = (4, 5, 6), *, dtype: type = np.int16, shift: float = 0.0
) -> None:
    """Write a small NIfTI file; `shift` moves it along x in mm."""
    affine = np.eye(4)
    affine[0, 3] = shift
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.ones(shape, dtype=dtype), affine), path)


def task(
    kind: Literal["classification", "segmentation"],
    *,
    spatial_dims: int | None = None,
    load: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    **fields: Any,
) -> Task:
    """A task that knows its kind, and nothing of training."""

    def never(*_: object) -> Any:
        raise AssertionError("the imaging package does not train")

    return Task(
        name="test",
        kind=kind,
        spatial_dims=spatial_dims or (2 if kind == "classification" else 3),
        in_channels=1,
        classes=("normal", "pneumonia") if kind == "classification" else ("background", "body"),
        load=load or never,
        augment=never,
        loss=never,
        infer=never,
        outcome=never,
        measure=never,
        metrics=(),
        headline="none",
        patch=(8, 8),
        **fields,
    )
