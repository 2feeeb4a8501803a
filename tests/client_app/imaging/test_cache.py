from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch.utils.data import DataLoader

from client_app.imaging.cache import CachedCases, prune
from client_app.imaging.set_aside import Reason, Unfit
from federation.tasks import Case


class Loads:
    """Stands for a task's transforms: numbers in a text file become a tensor; counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        self.calls += 1
        image = MetaTensor(
            torch.tensor([float(word) for word in Path(item["image"]).read_text().split()])[None],
            meta={"filename_or_obj": item["image"]},
        )
        label = item["label"]
        if isinstance(label, str):
            label = torch.tensor([int(word) for word in Path(label).read_text().split()])
        return {"image": image, "label": label}


@pytest.fixture
def load() -> Loads:
    return Loads()


@pytest.fixture
def cases(tmp_path: Path) -> list[Case]:
    folder = tmp_path / "CANARY_patient"
    folder.mkdir()
    made = []
    for number in range(3):
        image, mask = folder / f"{number}.txt", folder / f"{number}_mask.txt"
        image.write_text(f"{number} 1.5 2")
        mask.write_text("0 1 2")
        made.append(Case(f"p{number}", image, mask if number == 2 else number))
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
    cases[0].image.write_text("7 7 7 7")
    os.utime(cases[1].image, ns=(5, 5))
    assert isinstance(cases[2].label, Path)
    cases[2].label.write_text("1 1")
    dataset = cache(cases, load, tmp_path)
    dataset.prepare()
    assert load.calls == 6
    assert dataset[0]["image"].tolist() == [[7.0] * 4]
    assert dataset[2]["label"].tolist() == [1, 1]
    relabelled = [Case("p0", cases[0].image, 1), *cases[1:]]
    cache(relabelled, load, tmp_path).prepare()
    assert load.calls == 7
    cache(cases, load, tmp_path, fingerprint="another size").prepare()
    assert load.calls == 10


def test_bad_case_is_dropped_and_named_without_identifier(
    cases: list[Case], load: Loads, tmp_path: Path
) -> None:
    cases[0].image.write_text("CANARY is no number")
    cases[1].image.write_text("nan 1")
    cases.append(Case("p3", cases[2].image.with_name("gone.txt"), 0))
    cases.append(Case("p4", cases[2].image, 1))
    empty = cases[2].image.with_name("empty.txt")
    empty.touch()
    cases.append(Case("p5", empty, 1))
    dataset = cache(cases, load, tmp_path)
    usable, set_aside = dataset.prepare()
    assert usable == [2, 4]
    assert [(item.path, item.reason) for item in set_aside] == [
        (cases[0].image, Reason.LOAD_FAILED),
        (cases[1].image, Reason.NOT_FINITE),
        (cases[3].image, Reason.UNREADABLE),
        (cases[5].image, Reason.LOAD_FAILED),
    ]
    assert set_aside[0].detail == "ValueError"
    assert "CANARY" not in repr(set_aside)
    with pytest.raises(Unfit) as unfit:
        dataset[0]
    assert "CANARY" not in str(unfit.value)


def test_no_identifier_on_disk(cases: list[Case], load: Loads, tmp_path: Path) -> None:
    cache(cases, load, tmp_path).prepare()
    files = list((tmp_path / "cache").iterdir())
    assert len(files) == 6, "no drafts are left behind"
    for path in files:
        assert b"CANARY" not in path.read_bytes()
        assert "CANARY" not in path.name
        assert len(path.name.split(".")[0]) == 64


def test_pruning_keeps_what_is_named(cases: list[Case], load: Loads, tmp_path: Path) -> None:
    first, second = cache(cases[:1], load, tmp_path), cache(cases[1:2], load, tmp_path)
    cache(cases, load, tmp_path).prepare()
    (tmp_path / "cache" / "left.npy.0f.tmp").touch()
    cases[1].image.unlink()  # withdrawn
    assert prune(tmp_path / "cache", (first, second)) == 5
    assert first.prepare() == ([0], [])
    assert load.calls == 3
    assert len(list((tmp_path / "cache").iterdir())) == 2
