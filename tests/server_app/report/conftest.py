"""A finished run to report on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.server_app.report.synthetic_run import write_run


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A completed run of 20 rounds by 4 hospitals."""
    write_run(tmp_path / "run")
    return tmp_path / "run"
