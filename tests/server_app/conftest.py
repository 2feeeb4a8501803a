"""Hospitals for rounds under masks; those of a file are made once."""

from __future__ import annotations

import pytest

from tests.hospitals import Hospitals, hospitals, silence, train_quickly


@pytest.fixture(scope="module")
def _five(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    return hospitals(tmp_path_factory.mktemp("five"), patients=(8, 10, 12, 14, 16))


@pytest.fixture(scope="module")
def _seven(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    return hospitals(tmp_path_factory.mktemp("seven"), 7, patients=6)


@pytest.fixture
def five(_five: Hospitals) -> Hospitals:
    return _five.fresh()


@pytest.fixture
def seven(_seven: Hospitals) -> Hospitals:
    return _seven.fresh()


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    return train_quickly(monkeypatch)


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    return silence(monkeypatch)
