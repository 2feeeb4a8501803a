"""The cache: what is computed once, what is computed again, and what never gets in.

Most tests read images by a stand-in for `voxels`, numbers in a text file; those with processes read
NIfTI files, because a stand-in does not reach another process.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import pickle
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch.utils.data import DataLoader

from client_app.imaging import voxels
from client_app.imaging.cache import CachedCases, Entries, prune
from client_app.imaging.header import Kind
from client_app.imaging.image import Case, Image, Mask
from client_app.imaging.set_aside import Reason, Unfit


class Loads:
    """Stands for a task's transforms, which change nothing; counts its calls."""

    def __init__(self) -> None:
        self.calls = 0
        self.attributes: list[dict[str, str]] = []

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        self.calls += 1
        self.attributes.append(dict(item["attributes"]))
        return {"image": item["image"], "label": item["label"]}


def numbers(path: Path) -> torch.Tensor:
    return torch.tensor([float(word) for word in path.read_text().split()])


def read_image(image: Image) -> MetaTensor:
    if "unfit" in image.files[0].name:
        raise Unfit(Reason.TRUNCATED, "12 of 34 bytes")
    planes = [numbers(file) for file in image.files]
    return MetaTensor(torch.stack(planes), meta={"filename_or_obj": str(image.files[0])})


def read_mask(mask: Mask, image: Image) -> MetaTensor:
    return MetaTensor(numbers(mask.file).byte())


@pytest.fixture(autouse=True)
def text_files_are_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voxels, "read_image", read_image)
    monkeypatch.setattr(voxels, "read_mask", read_mask)


@pytest.fixture
def load() -> Loads:
    return Loads()


def image(*files: Path, **changes: Any) -> Image:
    """An image of these files."""
    given: dict[str, Any] = {"kind": Kind.PLANES, "patient": "p", "shape": (3,)}
    return Image(files=files, **{**given, **changes})


@pytest.fixture
def cases(tmp_path: Path) -> list[Case]:
    folder = tmp_path / "CANARY_patient"
    folder.mkdir()
    made = []
    for number in range(3):
        file, mask = folder / f"{number}.txt", folder / f"{number}_mask.txt"
        file.write_text(f"{number} 1.5 2")
        mask.write_text("0 1 2")
        label = Mask(Kind.MASK, mask) if number == 2 else number
        made.append(Case(image(file, patient=f"p{number}"), label))
    return made


def cache(
    cases: Sequence[Case], load: Loads, tmp_path: Path, fingerprint: str = "t"
) -> CachedCases:
    return CachedCases(cases, load, tmp_path / "cache", fingerprint)


def test_transforms_run_once(cases: list[Case], load: Loads, tmp_path: Path) -> None:
    dataset = cache(cases, load, tmp_path)
    told: list[tuple[int, int]] = []
    usable, set_aside = dataset.prepare(progress=lambda done, total: told.append((done, total)))
    assert (usable, set_aside, load.calls) == ([0, 1, 2], [], 3)
    assert told == [(1, 3), (2, 3), (3, 3)]
    for again in (dataset, cache(cases, load, tmp_path)):
        assert again.prepare(workers=2) == ([0, 1, 2], [])
        for number in range(3):
            item = again[number]
            assert item["image"].tolist() == [[number, 1.5, 2.0]]
            assert item["image"].dtype == torch.float32
            assert type(item["image"]) is torch.Tensor
        assert again[1]["label"].shape == ()
        assert again[1]["label"] == 1
        assert again[2]["label"].tolist() == [0, 1, 2]
    assert load.calls == 3


def test_batches(cases: list[Case], load: Loads, tmp_path: Path) -> None:
    dataset = cache(cases[:2], load, tmp_path)
    (batch,) = DataLoader(dataset, batch_size=2)
    assert batch["image"].shape == (2, 1, 3)
    assert batch["label"].tolist() == [0, 1]


def test_writing_into_a_tensor_stays_there(cases: list[Case], load: Loads, tmp_path: Path) -> None:
    dataset = cache(cases, load, tmp_path)
    item = dataset[2]
    item["image"].zero_()
    item["label"].zero_()
    assert dataset[2]["image"].tolist() == [[2.0, 1.5, 2.0]]
    assert dataset[2]["label"].tolist() == [0, 1, 2]
    assert load.calls == 1


@pytest.mark.parametrize("damage", [b"", b"garbage", b"\x93NUMPY\x01\x00", bytes(4096), None])
@pytest.mark.parametrize("part", ["image", "label"])
def test_damaged_entry_is_made_anew(
    cases: list[Case], load: Loads, tmp_path: Path, damage: bytes | None, part: str
) -> None:
    dataset = cache(cases, load, tmp_path)
    dataset.prepare()
    for path in (tmp_path / "cache").glob(f"*.{part}.npy"):
        path.write_bytes(path.read_bytes()[:-1] if damage is None else damage)
    assert dataset.prepare() == ([0, 1, 2], [])
    assert load.calls == 6
    assert dataset[2]["image"].tolist() == [[2.0, 1.5, 2.0]]
    assert dataset[2]["label"].tolist() == [0, 1, 2]


def test_pickled_objects_are_never_read(cases: list[Case], load: Loads, tmp_path: Path) -> None:
    dataset = cache(cases, load, tmp_path)
    dataset.prepare()
    for path in (tmp_path / "cache").glob("*.image.npy"):
        np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert dataset[0]["image"].tolist() == [[0.0, 1.5, 2.0]]


def test_what_changed_is_computed_again(cases: list[Case], load: Loads, tmp_path: Path) -> None:
    cache(cases, load, tmp_path).prepare()
    cases[0].image.files[0].write_text("7 7 7 7")
    os.utime(cases[1].image.files[0], ns=(5, 5))
    assert isinstance(cases[2].label, Mask)
    cases[2].label.file.write_text("1 1")
    dataset = cache(cases, load, tmp_path)
    dataset.prepare()
    assert load.calls == 6
    assert dataset[0]["image"].tolist() == [[7.0] * 4]
    assert dataset[2]["label"].tolist() == [1, 1]
    relabelled = [Case(cases[0].image, 1), *cases[1:]]
    cache(relabelled, load, tmp_path).prepare()
    assert load.calls == 7
    cache(cases, load, tmp_path, fingerprint="another size").prepare()
    assert load.calls == 10


@pytest.mark.parametrize(
    "change",
    [
        {"planes": ((1, 0), (0, 0))},
        {"tiles": 6},
        {"shape": (1, 3)},
        {"affine": ((2.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0,) * 4, (0.0,) * 4)},
        {"pixel_spacing": (0.2, 0.2)},
        {"volume": 1},
        {"kind": Kind.NIFTI},
        {"attributes": {"laterality": "left"}},
    ],
    ids=lambda change: str(*change),
)
def test_whatever_changes_an_image_has_an_entry_of_its_own(
    cases: list[Case], load: Loads, tmp_path: Path, change: dict[str, Any]
) -> None:
    cache(cases[:1], load, tmp_path).prepare()
    changed = Case(dataclasses.replace(cases[0].image, **change), cases[0].label)
    cache([changed], load, tmp_path).prepare()
    assert load.calls == 2
    assert load.attributes == [{}, change.get("attributes", {})]


def test_what_changes_no_voxel_keeps_the_entry(
    cases: list[Case], load: Loads, tmp_path: Path
) -> None:
    cache(cases[:1], load, tmp_path).prepare()
    renamed = dataclasses.replace(cases[0].image, patient="q", note="tilted", volumes=2)
    cache([Case(renamed, cases[0].label)], load, tmp_path).prepare()
    assert load.calls == 1


def test_every_file_of_a_series_counts(cases: list[Case], load: Loads, tmp_path: Path) -> None:
    files = [case.image.files[0] for case in cases]
    series = [Case(image(*files), 0)]
    dataset = cache(series, load, tmp_path)
    assert dataset[0]["image"].tolist() == [[number, 1.5, 2.0] for number in range(3)]
    cache([Case(image(*reversed(files)), 0)], load, tmp_path).prepare()
    assert load.calls == 2
    files[2].write_text("9 9 9")
    assert cache(series, load, tmp_path)[0]["image"][2].tolist() == [9.0] * 3
    mask = Mask(Kind.SEGMENTATION, files[0], classes=((0,), (1,)))
    other = Mask(Kind.SEGMENTATION, files[0], classes=((1,), (0,)))
    for drawn in (mask, mask, other):
        cache([Case(image(*files), drawn)], load, tmp_path).prepare()
    assert load.calls == 5


def bad_cases(cases: list[Case]) -> list[Case]:
    """Usable are 2 and 4."""
    folder = cases[0].image.files[0].parent
    cases[0].image.files[0].write_text("CANARY is no number")
    cases[1].image.files[0].write_text("nan 1")
    (folder / "empty.txt").touch()
    (folder / "unfit.txt").touch()
    return [
        *cases,
        Case(image(folder / "gone.txt"), 0),
        Case(cases[2].image, 1),
        Case(image(folder / "empty.txt"), 1),
        Case(image(folder / "unfit.txt"), 1),
    ]


def test_bad_case_is_dropped_and_named_without_identifier(
    cases: list[Case], load: Loads, tmp_path: Path
) -> None:
    cases = bad_cases(cases)
    dataset = cache(cases, load, tmp_path)
    usable, set_aside = dataset.prepare()
    assert usable == [2, 4]
    assert [(item.path, item.reason, item.detail) for item in set_aside] == [
        (cases[0].image.files[0], Reason.LOAD_FAILED, "ValueError"),
        (cases[1].image.files[0], Reason.NOT_FINITE, "the image has NaN or infinite values"),
        (cases[3].image.files[0], Reason.UNREADABLE, "a file has gone since it was indexed"),
        (cases[5].image.files[0], Reason.LOAD_FAILED, "the image has no elements"),
        (cases[6].image.files[0], Reason.TRUNCATED, "12 of 34 bytes"),
    ]
    assert "CANARY" not in repr(set_aside)
    with pytest.raises(Unfit) as unfit:
        dataset[0]
    assert "CANARY" not in str(unfit.value)


def test_a_failure_is_remembered_for_a_day(
    cases: list[Case], load: Loads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = bad_cases(cases)
    first = cache(cases, load, tmp_path).prepare()
    tried: list[Image] = []

    def watched(image: Image) -> MetaTensor:
        tried.append(image)
        return read_image(image)

    monkeypatch.setattr(voxels, "read_image", watched)
    again = cache(cases, load, tmp_path)
    assert again.prepare() == first
    with pytest.raises(Unfit, match="truncated: 12 of 34 bytes"):
        again[6]
    assert tried == []
    markers = sorted((tmp_path / "cache").glob("*.bad"))
    assert len(markers) == 4  # what has gone has no content to be remembered by
    for marker in markers:
        assert b"CANARY" not in marker.read_bytes()
    yesterday = time.time() - 25 * 3600
    os.utime(markers[0], (yesterday, yesterday))
    markers[1].write_bytes(b"[")
    markers[2].write_bytes(json.dumps(["no_such_reason", ""]).encode())
    assert cache(cases, load, tmp_path).prepare() == first
    assert len(tried) == 3
    cases[6].image.files[0].with_name("unfit.txt").write_text("1 2")  # exported again: tried again
    cache(cases, load, tmp_path).prepare()
    assert len(tried) == 4


def test_what_may_pass_is_tried_each_time(
    cases: list[Case], load: Loads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(image: Image) -> MetaTensor:
        raise Unfit(Reason.UNREADABLE, "the file server is away")

    monkeypatch.setattr(voxels, "read_image", offline)
    usable, set_aside = cache(cases, load, tmp_path).prepare()
    assert usable == []
    assert {item.reason for item in set_aside} == {Reason.UNREADABLE}
    monkeypatch.setattr(voxels, "read_image", read_image)
    assert cache(cases, load, tmp_path).prepare() == ([0, 1, 2], [])


def test_no_identifier_on_disk(cases: list[Case], load: Loads, tmp_path: Path) -> None:
    cache(cases, load, tmp_path).prepare()
    files = list((tmp_path / "cache").iterdir())
    assert len(files) == 6, "no drafts are left behind"
    for path in files:
        assert b"CANARY" not in path.read_bytes()
        assert "CANARY" not in path.name
        assert len(path.name.split(".")[0]) == 64


def test_pruning_keeps_what_is_named(cases: list[Case], load: Loads, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    first, second = cache(cases[:1], load, tmp_path), cache(cases[1:2], load, tmp_path)
    cache(cases, load, tmp_path).prepare()
    for name in ("a.image.npy.0f.tmp", "b.image.npy.0f.tmp", "a.bad", "b.bad"):
        (folder / name).touch()
        if name.startswith("a"):  # the others may be at work on theirs
            os.utime(folder / name, (0, 0))
    cases[1].image.files[0].unlink()  # withdrawn
    assert prune(folder, (first, second)) == 6
    assert first.prepare() == ([0], [])
    assert load.calls == 3
    left = {path.name for path in folder.iterdir()}
    assert left == first.files() | {"b.image.npy.0f.tmp", "b.bad"}


# --- other processes ----------------------------------------------------------------------------


def test_another_process_gets_names_and_neither_cases_nor_transforms(
    cases: list[Case], load: Loads, tmp_path: Path
) -> None:
    dataset = cache(cases, load, tmp_path)
    dataset.prepare()
    pickled = pickle.dumps(dataset)
    assert b"CANARY" not in pickled
    entries = pickle.loads(pickled)
    assert isinstance(entries, Entries)
    assert len(entries) == len(pickle.loads(pickle.dumps(entries))) == 3
    for number in range(3):
        assert torch.equal(entries[number]["image"], dataset[number]["image"])
        assert torch.equal(entries[number]["label"], dataset[number]["label"])
    assert isinstance(copy.copy(dataset), Entries)
    (tmp_path / "cache").joinpath(f"{entries.keys[0]}.image.npy").unlink()
    with pytest.raises(FileNotFoundError):
        entries[0]


def test_a_subset_looks_at_no_file_again(cases: list[Case], load: Loads, tmp_path: Path) -> None:
    dataset = cache(cases, load, tmp_path)
    dataset.prepare()
    cases[2].image.files[0].unlink()
    subset = dataset.subset([2, 0])
    assert [case.patient for case in subset.cases] == ["p2", "p0"]
    assert subset[0]["image"].tolist() == [[2.0, 1.5, 2.0]]
    assert subset.files() <= dataset.files()
    assert load.calls == 3


def crashing(item: dict[str, Any]) -> dict[str, Any]:
    """What a decoder in C may do to the process it runs in."""
    voxel = int(item["image"].flatten()[0])
    if voxel == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if voxel == 5:
        raise ValueError("CANARY")
    return {"image": item["image"] * 2, "label": item["label"]}


def volumes(tmp_path: Path, count: int) -> list[Case]:
    """NIfTI files whose voxels are their number."""
    made = []
    for number in range(count):
        path = tmp_path / f"{number}.nii"
        nibabel.save(nibabel.Nifti1Image(np.full((2, 3, 4), number, np.int16), np.eye(4)), path)
        affine = tuple(tuple(row) for row in np.eye(4).tolist())
        made.append(Case(image(path, kind=Kind.NIFTI, shape=(2, 3, 4), affine=affine), 1))
    return made


def test_processes_prepare_and_a_crash_costs_one_image(tmp_path: Path) -> None:
    cases = volumes(tmp_path, 8)
    told: list[tuple[int, int]] = []
    dataset = CachedCases(cases, crashing, tmp_path / "cache", "t")
    usable, set_aside = dataset.prepare(
        workers=2, progress=lambda done, total: told.append((done, total))
    )
    assert usable == [0, 1, 2, 4, 6, 7]
    assert [(item.path, item.reason, item.detail) for item in set_aside] == [
        (
            cases[3].image.files[0],
            Reason.LOAD_FAILED,
            "the process that loaded it crashed or was stuck",
        ),
        (cases[5].image.files[0], Reason.LOAD_FAILED, "ValueError"),
    ]
    assert told == [(done, 8) for done in range(1, 9)]
    # The same in this process; number 3 would take it along, were it not remembered.
    again = CachedCases(cases, crashing, tmp_path / "cache", "t")
    assert again.prepare() == (usable, set_aside)
    for position in usable:
        assert again[position]["image"].unique().tolist() == [2.0 * position]
