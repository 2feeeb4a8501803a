"""A phantom whose answer is known, as a series, with a task and networks that find it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import torch
from monai.transforms import CenterSpatialCrop, Compose, Orientation, Spacing, SpatialPad
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from client_app.imaging.header import Kind
from client_app.imaging.image import Image
from client_app.prediction.model import Model
from federation.schema import Experiment, parse
from federation.tasks import Task
from tests.client_app.imaging import samples

CPU = torch.device("cpu")
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
CENTRES = {1: np.array([12.0, -8.0, 5.0]), 2: np.array([-10.0, 9.0, -4.0])}  # RAS mm
RADIUS, HEIGHT = 9.0, 1000.0
Volume = NDArray[Any]


def density(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values at RAS points in mm (..., 3): a bright blob and a dark one, half as high at RADIUS."""
    return sum(
        sign * HEIGHT * 0.5 ** (((points - CENTRES[c]) ** 2).sum(axis=-1) / RADIUS**2)
        for c, sign in ((1, 1.0), (2, -1.0))
    )


def centres(shape: tuple[int, ...], affine: Volume) -> NDArray[np.float64]:
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return np.asarray(voxels @ affine[:3, :3].T + affine[:3, 3])


def truth(shape: tuple[int, ...], affine: Volume) -> NDArray[np.uint8]:
    values = density(centres(shape, affine))
    return np.where(values > HEIGHT / 2, 1, np.where(values < -HEIGHT / 2, 2, 0)).astype(np.uint8)


class Threshold(nn.Module):
    """Class 1 above half the height, class 2 below minus half of it."""

    def __init__(self) -> None:
        super().__init__()
        self.steepness = nn.Parameter(torch.tensor(0.02))

    def forward(self, images: Tensor) -> Tensor:
        bright, dark = images - HEIGHT / 2, -images - HEIGHT / 2
        return self.steepness * torch.cat((torch.zeros_like(images), bright, dark), dim=1)


_SPATIAL = Compose(
    [
        Orientation("PLI", labels=None),  # unlike any source here
        Spacing(pixdim=(1.7, 1.3, 2.1), mode="bilinear", padding_mode="border"),
        CenterSpatialCrop((50, -1, -1)),
        SpatialPad((48, 64, 40)),
    ]
)


def segmentation_task(**fields: Any) -> Task:
    def load(item: dict[str, Any]) -> dict[str, Any]:
        assert item["label"].shape == item["image"].shape
        image = _SPATIAL(item["image"])
        return {"image": torch.as_tensor(image).float(), "label": torch.zeros(1)}

    task = samples.task("segmentation", load=load, **({"place": _SPATIAL} | fields))
    return replace(
        task,
        classes=("background", "bright", "dark"),
        infer=lambda network, images: network(images),
    )


class Means(nn.Module):
    """Two logits: 0, and the image's mean."""

    def forward(self, images: Tensor) -> Tensor:
        mean = images.mean(dim=tuple(range(1, images.ndim)))
        return torch.stack((torch.zeros_like(mean), mean), dim=1)


def classification_task(**fields: Any) -> Task:
    task = samples.task(
        "classification",
        load=lambda item: {"image": torch.as_tensor(item["image"]) / 4096, "label": item["label"]},
        **fields,
    )
    return replace(task, infer=lambda network, images: network(images))


def experiment(**changes: Any) -> Experiment:
    content = {
        "name": "test",
        "rounds": 3,
        "task": {"name": "hippocampus"},
        "model": {"name": "unet", "channels": [4, 8], "residual_units": 0},
        "strategy": {"name": "fedavg"},
        "training": {"local_steps": 1, "batch_size": 1, "learning_rate": 0.1},
        "participation": {"least": 1, "deadline": 10},
    }
    return parse(Experiment, content | changes)


def model(task: Task, network: nn.Module) -> Model:
    return Model("monday", 3, "ab" * 32, experiment(), task, network.eval(), CPU)


@dataclass(frozen=True)
class Series:
    folder: Path
    image: Image
    affine: Volume

    @property
    def datasets(self) -> list[Dataset]:
        return [pydicom.dcmread(file) for file in self.image.files]


def write_series(
    folder: Path,
    *,
    angles: tuple[float, float, float] = (0, 0, 0),
    shape: tuple[int, int, int] = (60, 48, 20),
    spacing: tuple[float, float, float] = (1.2, 1.5, 3.0),
) -> Series:
    """CT of the phantom, turned by angles in degrees about its middle."""
    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    lps = np.eye(4)
    lps[:3, :3] = turn * np.array(spacing)
    lps[:3, 3] = -lps[:3, :3] @ (np.array(shape) - 1) / 2
    affine = LPS_TO_RAS @ lps
    voxels = density(centres(shape, affine))
    uids = {name: generate_uid() for name in ("study", "series", "frame")}
    folder.mkdir(parents=True)
    files = []
    for number in range(shape[2]):
        item = Dataset()
        item.file_meta = FileMetaDataset()
        item.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        item.SOPClassUID, item.SOPInstanceUID = CTImageStorage, generate_uid()
        item.StudyInstanceUID, item.SeriesInstanceUID = uids["study"], uids["series"]
        item.FrameOfReferenceUID, item.Modality = uids["frame"], "CT"
        item.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        item.PatientID, item.PatientName, item.PatientSex = "P1", "Canary^Name", "F"
        item.PatientBirthDate = item.StudyDate = item.StudyTime = item.AccessionNumber = ""
        item.StudyID = item.ReferringPhysicianName = item.Manufacturer = ""
        item.SeriesNumber, item.InstanceNumber = 1, number + 1
        item.Rows, item.Columns = shape[1], shape[0]
        item.PixelSpacing = [spacing[1], spacing[0]]
        item.SliceThickness = spacing[2]
        item.ImageOrientationPatient = [round(v, 10) for v in (*turn[:, 0], *turn[:, 1])]
        item.ImagePositionPatient = [
            round(v, 8) for v in (lps @ [0, 0, number, 1])[:3]
        ]  # 16 characters is all that DS holds
        item.SamplesPerPixel, item.PhotometricInterpretation = 1, "MONOCHROME2"
        item.BitsAllocated, item.BitsStored, item.HighBit = 16, 16, 15
        item.PixelRepresentation, item.RescaleSlope, item.RescaleIntercept = 1, 1, 0
        item.RescaleType = "HU"
        item.PixelData = np.rint(voxels[:, :, number].T).astype(np.int16).tobytes()
        path = folder / f"{number:03}.dcm"
        item.save_as(path, enforce_file_format=True)
        files.append(path)
    image = Image(
        kind=Kind.PLANES,
        patient="p",
        files=tuple(files),
        shape=shape,
        modality="CT",
        series="s",
        planes=tuple((number, 0) for number in range(shape[2])),
        affine=tuple(map(tuple, affine.tolist())),
    )
    return Series(folder, image, affine)


def dice(one: Volume, other: Volume) -> float:
    return 2 * float((one & other).sum()) / float(one.sum() + other.sum())
