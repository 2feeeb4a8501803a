"""A hospital with phantom images, as its ClientApp sees it."""

from __future__ import annotations

from pathlib import Path

import pytest

from client_app.imaging import phantoms
from client_app.site import SITE_VARIABLE, Site
from federation.schema import parse
from tests.client_app import canary
from tests.client_app.canary_hospital import Hospital, make


@pytest.fixture(scope="session")
def phantom_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom")
    phantoms.write("chest_xray", folder / "data", patients=16, site=0, seed=1)
    return folder / "data"


@pytest.fixture
def site(phantom_folder: Path, tmp_path: Path) -> Site:
    # a fixed key, so that the same patients are held out in every run of the tests
    key = tmp_path / "state" / "pseudonym.key"
    key.parent.mkdir()
    key.touch(mode=0o600)
    key.write_bytes(bytes(range(32)))
    return parse(
        Site,
        {
            "hospital": "north",
            "kit": tmp_path / "kit",
            "state": tmp_path / "state",
            "device": "cpu",
            "threads": 1,
            "data": {
                "root": phantom_folder / "images",
                "layout": "dicom",
                "labels": phantom_folder / "labels.csv",
            },
            "policy": {"least_patients": 3, "smallest_group": 1},
        },
    )


@pytest.fixture
def canaries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Task and model of the canaries, dropped in as a researcher would."""
    (tmp_path / "dropped_in").mkdir()
    canary.install(tmp_path / "dropped_in", monkeypatch)


@pytest.fixture
def canary_hospital(canaries: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hospital:
    """300 patients, each a canary, and a ledger."""
    made = make(tmp_path / "north")
    monkeypatch.setenv(SITE_VARIABLE, str(made.site_file))
    return made


@pytest.fixture
def small(canaries: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hospital:
    """Fewer patients, for where the numbers do not matter."""
    made = make(tmp_path / "north", range(20))
    monkeypatch.setenv(SITE_VARIABLE, str(made.site_file))
    return made
