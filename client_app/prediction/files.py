"""A predicted segmentation as files that other software reads; each says which model made it."""

from __future__ import annotations

import gzip
import io
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from client_app.imaging.image import Image
from client_app.imaging.masks import segmentation, structure_set
from client_app.imaging.set_aside import Reason, Unfit, silenced
from client_app.prediction import NOTICE
from client_app.prediction.model import Model

_LO = (
    64  # characters of DICOM's short text (PS3.5, table 6.2-1); a SHA-256 in hexadecimal just fits
)
_NIFTI_TEXT = 79  # of NIfTI's `descrip`


def software() -> str:
    """Name and version of this program."""
    try:
        return f"Consilium {version('consilium')}"
    except PackageNotFoundError:
        return "Consilium"


def dicom_files(
    model: Model, classes: NDArray[np.uint8], image: Image
) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """SEG and RTSTRUCT that refer to the image's series, and what could not be written and why.

    Args:
        classes: class indices, (columns, rows, slices).

    Raises:
        Unfit: the source's headers cannot be read, or neither format can refer to them.
    """
    with silenced():
        source = [_header(path) for path in image.files]
        files, remarks = {}, []
        for name, write in (
            ("segmentation.dcm", segmentation.write),
            ("structures.dcm", structure_set.write),
        ):
            try:
                made = write(
                    classes,
                    source,
                    planes=image.planes,
                    names=model.task.classes[1:],
                    algorithm=f"Consilium {model.task.name}"[:_LO],
                    version=model.sha256,
                )
            except Unfit as unfit:
                remarks.append(f"no {name}: {unfit}")
                continue
            except ValueError:  # a mosaic: its one frame holds all slices
                remarks.append(f"no {name}: the series' frames are not its slices")
                continue
            sign(made, model)
            file = io.BytesIO()
            made.save_as(file, enforce_file_format=True)
            files[name] = file.getvalue()
    if not files:
        raise Unfit(Reason.NOT_SUPPORTED, "; ".join(remarks))
    return files, tuple(remarks)


def sign(dataset: Dataset, model: Model) -> None:
    """Say in a DICOM object what made it, in full, and that it is for research.

    In ContributingEquipmentSequence (PS3.3 C.12.1.1.5), whose description holds 1,024 characters.
    """
    equipment = Dataset()
    equipment.PurposeOfReferenceCodeSequence = Items([_code(codes.DCM.ProcessingEquipment)])
    equipment.Manufacturer = "Consilium"
    equipment.ManufacturerModelName = model.experiment.model.name
    equipment.SoftwareVersions = [software(), model.sha256]
    said = "; ".join(f"{name} {value}" for name, value in model.identity().items())
    equipment.ContributionDescription = f"{NOTICE} {said}"[:1024]
    before = list(dataset.get("ContributingEquipmentSequence", []))
    dataset.ContributingEquipmentSequence = Items([*before, equipment])
    dataset.SeriesDescription = f"Research use only: {model.task.name}"[:_LO]


def nifti_file(model: Model, classes: NDArray[np.uint8], image: Image) -> bytes:
    """Class indices as gzipped NIfTI on the image's own voxels."""
    mask = nibabel.Nifti1Image(classes, np.asarray(image.affine, dtype=np.float64))
    mask.header.set_xyzt_units("mm")
    mask.header["descrip"] = f"Research use only; model {model.sha256}"[:_NIFTI_TEXT].encode()
    content: bytes = gzip.compress(mask.to_bytes(), mtime=0)
    return content


def _header(path: Any) -> Dataset:
    try:
        return dcmread(path, stop_before_pixels=True, force=True)
    except Exception as error:  # what pydicom raises may quote the file
        raise Unfit(Reason.CORRUPT, type(error).__name__) from None


def _code(code: Code) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator = code.value, code.scheme_designator
    item.CodeMeaning = code.meaning
    return item
