"""For all tests: Flower's messages want to know which task they are sent by."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.supercore.task_identity import TaskIdentity

from client_app import patients

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"


@pytest.fixture(autouse=True, scope="session")
def _task_identity() -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


@pytest.fixture(autouse=True, scope="session")
def _images_are_prepared_in_this_process() -> Iterator[None]:
    """Hundreds of tests begin with a hospital's first look, whose pool of processes takes seconds.

    Pools are tested by themselves (tests/client_app/imaging) and in real federations (tests/e2e).
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patients, "_decoding_processes", lambda: 1)
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real, openly licensed images beside the project; tests that need them skip without."""
    if not SHARED.is_dir():
        pytest.skip(f"the shared images are not at {SHARED}")
    return SHARED
