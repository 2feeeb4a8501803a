"""Who has a hospital's node key logs in as it; without its identity key it is in no secure sum."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from client_app import masked_sum
from client_app.identity import Identity
from federation.messages import Phase
from tests.hospitals import Hospitals, hospitals, train_quickly
from tests.masked import masked, rows

THIEF = "north"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    return hospitals(tmp_path_factory.mktemp("stolen"), 4, patients=6)


@pytest.fixture
def four(made: Hospitals, monkeypatch: pytest.MonkeyPatch) -> Hospitals:
    train_quickly(monkeypatch)
    return made.fresh()


def thief_at(four: Hospitals, folder: Path) -> None:
    """The thief's machine answers as the hospital: its node key, and an identity of the thief's own."""
    own = four.sites[THIEF]
    state = folder / "state"
    shutil.copytree(own.state, state, ignore=shutil.ignore_patterns("secure", "answers"))
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (state / "identity" / "identity.key").write_bytes(pem)
    four.sites[THIEF] = own.model_copy(update={"state": state})


def others(four: Hospitals) -> list[str]:
    return sorted(set(four.sites) - {THIEF})


def assert_not_in_the_sum(four: Hospitals, run: str) -> None:
    row = next(row for row in rows(four, run) if row["kind"] == "round")
    assert row["summed"]["hospitals"] == others(four)
    assert row["hospitals"][THIEF]["status"] == "left out"
    assert {phase for name, phase, _ in four.heard if name == THIEF} <= {Phase.ADVERTISE}
    for name, request, _ in four.asked:
        if name == THIEF:
            assert request.phase is Phase.ADVERTISE, "it is given no share and no signature"


def test_our_own_program_does_not_work_with_it(
    four: Hospitals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, conductor, done = four.conductor(masked(rounds=1), "honest-program")  # logs in as north
    monkeypatch.setitem(four.sites, THIEF, four.sites[THIEF])
    thief_at(four, tmp_path)
    conductor.round(done)
    assert_not_in_the_sum(four, "honest-program")


def test_nor_does_a_program_that_signs_with_another_key(
    four: Hospitals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thief's program passes its own identity off as the roster's."""
    of = masked(rounds=1)
    _, conductor, done = four.conductor(of, "forged")
    real = masked_sum.identity.load
    monkeypatch.setitem(four.sites, THIEF, four.sites[THIEF])
    key = Ed25519PrivateKey.generate()

    def forged(site: Any) -> Identity:
        own = real(site)
        return own if site.hospital != THIEF else Identity(THIEF, key, own.node_key, own.roster)

    monkeypatch.setattr(masked_sum.identity, "load", forged)
    conductor.round(done)
    assert_not_in_the_sum(four, "forged")
    row = next(row for row in rows(four, "forged") if row["kind"] == "round")
    assert row["hospitals"][THIEF]["reason"] == "bad_signature"
