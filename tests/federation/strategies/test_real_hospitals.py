"""Rules for single updates with real ClientApps, networks with BatchNorm, and the codec."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict

from federation import wire
from federation.messages import Arrays, Request, Shape
from server_app.state import Checkpoint
from tests.hospitals import Hospitals, content, hospitals

BAD = "lake"


@pytest.fixture(scope="module")
def _five(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    return hospitals(tmp_path_factory.mktemp("strategies"), patients=6)


@pytest.fixture
def five(_five: Hospitals) -> Hospitals:
    return _five.fresh()


def run(five: Hospitals, name: str, rounds: int = 2, **changes: Any) -> Checkpoint:
    strategy = {"name": name} | changes.pop("strategy", {})
    of = content(strategy=strategy, least=5, **changes)
    label = f"{name}-{len(list(five.folder.glob('runs/*')))}"
    return five.conduct(of, label, rounds=rounds)


def bytes_of(done: Checkpoint) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in done.model.items()}


@pytest.mark.parametrize("codec", [None, content().codec])
def test_no_trimming_is_fedavg_to_the_bit(codec: Any, five: Hospitals) -> None:
    mean = run(five, "fedavg", codec=codec)
    trimmed = run(five, "trimmed_mean", codec=codec, strategy={"byzantine": 0})
    assert bytes_of(mean) == bytes_of(trimmed)
    assert mean.codec.keys() == trimmed.codec.keys()


def test_the_mixture_goes_on_beside_the_codecs_memory(five: Hospitals) -> None:
    done = run(five, "afl", strategy={"mixture_learning_rate": 0.5})
    parts = {n: float(a) for n, a in done.codec.items() if n.startswith("combination/")}
    assert set(parts) == {f"combination/{name}" for name in five.sites}
    assert sum(parts.values()) == pytest.approx(1)
    assert len(set(parts.values())) == 5
    assert "scales" in done.codec


def poisoned(shape: Shape) -> Callable[[Request, RecordDict, Callable[..., RecordDict]], Any]:
    """What the hospital's ClientApp trained, times 100, its running variances and counters too."""

    def meddler(
        request: Request, records: RecordDict, answer: Callable[[RecordDict], RecordDict]
    ) -> RecordDict:
        reply = answer(records)
        update: Arrays = {
            name: (array * -100).astype(array.dtype)
            for name, array in wire.unpack(wire.blob(reply), shape).items()
        }
        fields = {k: v for k, v in reply.config_records["head"].items() if k != "blob"}
        return wire._message(fields, wire.pack(update))

    return meddler


@pytest.mark.parametrize("name", ["coordinate_median", "trimmed_mean", "krum", "norm_bound"])
def test_a_poisoned_network_does_not_get_in(name: str, five: Hospitals) -> None:
    _, _, start = five.conductor(content(codec=None), "start")
    five.meddle[BAD] = poisoned(Shape.of(start.model))
    done = run(five, name, rounds=1, codec=None)
    mean = run(five, "fedavg", rounds=1, codec=None)
    assert min(a.min() for n, a in mean.model.items() if n.endswith("running_var")) < 0
    for key, array in done.model.items():
        assert np.isfinite(array).all()
        if key.endswith("running_var"):
            assert array.min() >= 0, key
        if key.endswith("num_batches_tracked"):
            assert array == start.model[key] + 1  # of one local step
    moved = {
        n: float(np.linalg.norm(a.astype(np.float64) - start.model[n].astype(np.float64)))
        for n, a in done.model.items()
        if n.endswith("conv.weight") or n.endswith("fc.weight")
    }
    carried = {
        n: float(np.linalg.norm(mean.model[n].astype(np.float64) - start.model[n])) for n in moved
    }
    assert moved
    assert all(moved[n] < carried[n] / 5 for n in moved), (moved, carried)
