"""For all tests: Flower's messages want to know which task they are sent by."""

from __future__ import annotations

from pathlib import Path

import pytest
from flwr.supercore.task_identity import TaskIdentity

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"


@pytest.fixture(autouse=True, scope="session")
def _task_identity() -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real, openly licensed images beside the project; tests that need them skip without."""
    if not SHARED.is_dir():
        pytest.skip(f"the shared images are not at {SHARED}")
    return SHARED
