"""Rounds whose sums only hospitals read, with real ClientApps."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from client_app.encrypted_state import EncryptedRun, State
from tests.hospitals import Hospitals, content, hospitals

pytest.importorskip("tenseal")
CKKS = {"name": "ckks", "least": 3}
MASKS = {"name": "masks", "least": 3}
WHOLE = {"quantise": {"name": "integers", "bits": 8}, "down": "full"}


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospitals]:
    yield hospitals(tmp_path_factory.mktemp("five"))


def held(made: Hospitals, name: str, run: str) -> State:
    state = EncryptedRun.of(made.sites[name].state, run).state()
    assert state is not None
    return state


def test_plain_masks_and_ckks_give_the_same_model(five: Hospitals) -> None:
    """Bit for bit, at the coordinator and at each hospital that holds it."""
    opened = five.conduct(content(codec=WHOLE), "open")
    masked = five.conduct(content(codec=WHOLE, secure_aggregation=MASKS), "masked")
    done = five.conduct(content(codec=WHOLE, secure_aggregation=CKKS), "encrypted")
    assert done.round == 3
    assert not done.model
    for name in five.sites:
        state = held(five, name, "encrypted")
        assert state.round == 3
        for array, values in opened.model.items():
            np.testing.assert_array_equal(state.model[array], values, err_msg=array)
            np.testing.assert_array_equal(masked.model[array], values, err_msg=array)
