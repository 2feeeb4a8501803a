"""For tests with processes that make batches."""

from __future__ import annotations

import time
from typing import Any

import pytest

from client_app.imaging.pool import Pool


@pytest.fixture
def all_made_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """No batch is made in this process while others start: all are theirs."""
    ready = Pool.ready.fget  # type: ignore[attr-defined]

    def wait(pool: Pool[Any, Any]) -> bool:
        while not ready(pool):
            time.sleep(0.02)
        return True

    monkeypatch.setattr(Pool, "ready", property(wait))
