"""What cannot be summed in secret is refused in one line with a way out, before anything is sent."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from federation import strategies
from federation.schema import ConfigError, Experiment
from server_app import compose

SECRET = ("masks", "ckks")


def composed(secure: str, *overrides: str) -> Experiment:
    return compose.experiment([f"secure_aggregation={secure}", *overrides])


@pytest.mark.parametrize("secure", SECRET)
@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("codec=int8",),
        ("codec=[rand_k,int8]",),
        ("codec=[head,int4]",),
        ("codec=[adapters,int8]",),
        ("strategy=fedadam",),
        ("strategy=norm_bound", "strategy.bound=1.0"),
        ("strategy=fednova",),
        ("participation.largest_update_norm=1.0",),
        ("privacy=patient_dp", "codec=int8"),
    ],
)
def test_what_can_be_summed_is_taken(secure: str, overrides: tuple[str, ...]) -> None:
    taken = composed(secure, *overrides)
    assert taken.secure_aggregation is not None
    assert taken.secure_aggregation.name == secure
    assert taken.codec is not None  # by itself: integers of 16 bits


@pytest.mark.parametrize("secure", SECRET)
@pytest.mark.parametrize(
    ("overrides", "wrong", "way_out"),
    [
        (("codec=none",), "has none", "choose codec=int16 or int8"),
        (
            ("codec=fp16",),
            "cannot add up what codec.quantise=fp16",
            "choose codec=int16, int8 or int4",
        ),
        (("codec=[top_k,int8]",), "cannot add up what codec.sparsify=top_k", "rand_k or adapters"),
        (("strategy=norm_bound",), "looks at single updates", "strategy.bound=NUMBER"),
        (("strategy=qfedavg",), "powers of losses, which have no bound", "fedavg or fednova"),
        (("evaluation.leave_out=north",), "asks one hospital", "leave it null"),
        (("participation.hospitals=[a,b]",), "names 2", "name more"),
        (
            ("participation.hospitals=[a,b,c]", "secure_aggregation.least=4"),
            "needs 4 hospitals",
            "lower secure_aggregation.least",
        ),
    ],
)
def test_what_cannot_is_refused(
    secure: str, overrides: tuple[str, ...], wrong: str, way_out: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        composed(secure, *overrides)
    said = str(refused.value)
    assert wrong in said
    assert way_out in said
    assert "\n" not in said


@pytest.mark.parametrize("secure", SECRET)
def test_strategies_that_look_at_single_updates(
    secure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strategies, "needs_single_updates", lambda experiment: True)
    with pytest.raises(ConfigError, match="strategy=fedavg, which looks at single updates, which"):
        composed(secure)


def test_an_encrypted_run_has_no_mean_of_models() -> None:
    private: tuple[str, ...] = ("privacy=patient_dp", "codec=int8", "privacy.ema=0.9")
    assert composed("masks", *private).privacy is not None
    with pytest.raises(ConfigError, match=r"privacy\.ema averages the models.*privacy\.ema=0"):
        composed("ckks", *private)


def test_a_masked_run_has_nothing_to_release() -> None:
    assert composed("ckks", "secure_aggregation.release=coordinator")
    with pytest.raises(ConfigError, match=r"'release' is not an option of what was chosen there"):
        composed("masks", "secure_aggregation.release=coordinator")
    with pytest.raises(
        ConfigError, match=r"release.* which under secure_aggregation=masks the coord"
    ):
        composed("masks", "+secure_aggregation.release=coordinator")


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> Any:
        return None if name == "tenseal" else find(name, package)

    monkeypatch.setattr("federation.secure_aggregation.combinations.find_spec", without)
    assert composed("masks")
    with pytest.raises(ConfigError, match=r"needs TenSEAL, which is not installed here"):
        composed("ckks")
