"""A container's health is whether its work is done: that the other side answered, and lately."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import pytest

from client_app import health
from client_app.link import LINK_VARIABLE, open_link
from federation.heartbeat import VARIABLE, Heartbeat, age


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def beat(role: str, seconds_ago: float = 0) -> None:
    file = health.heartbeat_of(role)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    then = time.time() - seconds_ago
    os.utime(file, (then, then))


def test_nothing_has_answered_yet() -> None:
    assert health.unhealthy() == "nothing has answered yet"


def test_a_superexec_whose_supernode_answers_is_healthy_and_one_left_alone_is_not() -> None:
    beat("superexec")
    assert health.unhealthy() is None
    beat("superexec", seconds_ago=300)
    said = health.unhealthy()
    assert said is not None and said.startswith("the SuperNode has not answered for 300")


def test_a_supernode_needs_its_runtime_api_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "line").mkdir()
    open_link(tmp_path / "line")
    monkeypatch.setenv(LINK_VARIABLE, str(tmp_path / "line"))
    monkeypatch.setattr("client_app.link.HOST", "127.0.0.1")
    monkeypatch.setattr("client_app.link.PORT", 1)
    beat("supernode")
    said = health.unhealthy()
    assert said is not None and said.startswith("the Runtime API does not answer")
    beat("supernode", seconds_ago=90)
    said = health.unhealthy()
    assert said is not None and "SuperLink has not answered" in said


def test_a_heart_beats_only_where_it_is_asked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    Heartbeat().beat()
    file = tmp_path / "beats"
    assert age(file) is None
    monkeypatch.setenv(VARIABLE, str(file))
    heart = Heartbeat()
    heart.beat()
    assert age(file) is not None
    file.unlink()
    heart.beat()  # a loop that turns fifty times a second does not touch it as often
    assert age(file) is None
