"""No test here asserts on time, hypothesis's own ones neither."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings


@pytest.fixture(scope="package", autouse=True)
def no_deadline() -> Iterator[None]:
    before = settings.default
    settings.register_profile("no_deadline", deadline=None)
    settings.load_profile("no_deadline")
    yield
    settings.register_profile("before", before)
    settings.load_profile("before")
