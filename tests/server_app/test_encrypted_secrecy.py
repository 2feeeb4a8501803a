"""What a coordinator of encrypted sums has, on the wire, on its disk and in memory: no update, no sum of
updates, no model and no key.

The search for arrays is that of `test_masked_secrecy`, which knows nothing of how they are hidden.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict
from numpy.typing import NDArray

from client_app import identity
from client_app.encrypted_sum import EncryptedSum
from federation import tasks, wire
from federation.messages import Phase, Protected, Reason, Request, WireError
from federation.schema import Experiment
from federation.secure_aggregation import ciphertexts, letters
from federation.secure_aggregation.ciphertexts import Packing, PublicContext
from federation.secure_aggregation.ckks import Ckks
from server_app.aggregation.encrypted import Encrypted
from server_app.aggregation.sealed_sums import SealedSum
from tests.encrypted import encrypted, held, home
from tests.hospitals import Hospitals
from tests.masked import kept
from tests.server_app.test_masked_secrecy import (
    codec_of,
    held_by,
    largest_correlation,
    numbers,
    readings,
    uniformity,
)

pytest.importorskip("tenseal")
Found = list[tuple[str, bytes]]


def test_nothing_it_has_looks_like_an_update_their_sum_or_the_model(
    five: Hospitals, trained: list[Any]
) -> None:
    of = encrypted(evaluation={"every": 1000})
    everything = what_a_coordinator_has(five, of, "secret")
    assert {"wire", "disk", "memory"} <= {where.split()[0] for where, _ in everything}
    assert strongest(five, of, "secret", everything) < 1


def test_one_update_in_the_open_would_be_found(
    five: Hospitals, trained: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutant: beside its ciphertext a hospital's answer has the integers."""
    real = EncryptedSum.encrypted

    def leaking(self: EncryptedSum, update: Any, counted: Any) -> Protected:
        protected = real(self, update, counted)
        return Protected(update.astype("<i2").tobytes(), protected.blob)

    monkeypatch.setattr(EncryptedSum, "encrypted", leaking)
    of = encrypted(evaluation={"every": 1000})
    assert strongest(five, of, "mutant", what_a_coordinator_has(five, of, "mutant")) > 5


def test_no_key_is_anywhere_at_the_coordinator(five: Hospitals, trained: list[Any]) -> None:
    """As bytes: the run's, what is drawn from it, and what boxes open with."""
    of = encrypted(evaluation={"every": 1000})
    everything = what_a_coordinator_has(five, of, "keys")
    secrets = set()
    for name in five.sites:
        ring = home(five, name, "keys").ring(of.sha256())
        secrets |= {ring.private, ring.key[:64], ring.key[64:], ring.key[:32]}
        own = identity.load(five.sites[name])
        secrets.add(own.key.private_bytes_raw())
    assert len(secrets) == 5 + 5 + 3
    assert any(ring.public in content_ for _, content_ in everything)  # what it may have is found
    for where, content_ in everything:
        for secret in secrets:
            assert secret not in content_, where


def test_ciphertexts_are_uniform_and_alike_in_nothing(five: Hospitals, trained: list[Any]) -> None:
    """χ² over the residues, scaled to bytes, of each hospital's part and of the sum."""
    of = encrypted(evaluation={"every": 1000})
    everything = what_a_coordinator_has(five, of, "uniform")
    unpacked = [numbers(c, "<f8") for where, c in everything if where.startswith("wire unpacked")]
    assert len(unpacked) == 5
    for one in unpacked:
        assert uniformity((one / ciphertexts.MODULUS * 256).astype("u1").tobytes()) > 1e-6
    for one, other in pairwise(unpacked):
        assert abs(np.corrcoef(one, other)[0, 1]) < 6 / math.sqrt(len(one))


def test_what_is_on_its_disk_opens_with_the_run_s_key_alone(
    five: Hospitals, trained: list[Any]
) -> None:
    of = encrypted(evaluation={"every": 1000})
    folder, conductor, start = five.conductor(of, "other-key")
    conductor.round(start)
    aggregation = conductor.aggregation
    assert isinstance(aggregation, Encrypted)
    made = SealedSum.load(folder, 1, training=True)
    assert made is not None
    request = Request(folder.name, 1, evaluate=False, train=True)
    vectors = aggregation._vectors(request, made.adverts)
    stranger = Ckks().make_key()
    for key_id in (
        stranger.public.key_id,
        PublicContext.from_bytes(aggregation.ring.public).key_id,
    ):
        other = type(stranger)(stranger.seed, stranger.run_key, PublicContext(key_id))
        with pytest.raises(WireError) as refusal:
            vectors.update_of(other, made.update)
        assert refusal.value.reason in (Reason.BAD_KEY, Reason.BAD_SIGNATURE)
    ring = home(five, "east", "other-key").ring(of.sha256())
    own = type(stranger).from_bytes(ring.key, ring.public)
    # and with the run's tags, but another secret: noise
    mixed = type(stranger)(stranger.seed, own.run_key, own.public)
    with pytest.raises(WireError) as refusal:
        vectors.update_of(mixed, made.update)
    assert refusal.value.reason is Reason.MALFORMED
    assert vectors.update_of(own, made.update)[1] == tuple(sorted(five.sites))


# --- what there is --------------------------------------------------------------------------------


def what_a_coordinator_has(made: Hospitals, of: Experiment, run: str) -> Found:
    """Of two rounds: all that came, the run's files, and memory as it is at each step."""
    found: dict[bytes, str] = {}
    folder, conductor, start = made.conductor(of, run)
    aggregation = conductor.aggregation
    assert isinstance(aggregation, Encrypted)

    def look(where: str) -> None:
        for content_ in held_by(aggregation):
            found.setdefault(content_, f"memory {where}")
        for file in folder.path.rglob("*"):
            if file.is_file():
                found.setdefault(file.read_bytes(), f"disk {where} {file.name}")

    def meddle(request: Request, records: RecordDict, answer: Any) -> Any:
        if request.round == 1:
            look(f"at {request.phase.value}")
        return answer(records)

    made.meddle = dict.fromkeys(made.sites, meddle)
    done = conductor.round(start)
    look("after the round")
    folder.save(done)
    look("after the commit")
    for name, phase, reply in made.heard:
        found.setdefault(wire.blob(reply), f"wire {phase.value} of {name}")
        found.setdefault(bytes(reply["head"].get("letter", b"")), f"wire {phase.value} of {name}")
    # residues have 60 bits, which no type has
    made_ = SealedSum.load(folder, 1, training=True)
    assert made_ is not None
    request = Request(run, 1, evaluate=False, train=True)
    vectors = aggregation._vectors(request, made_.adverts)
    for name, phase, reply in made.heard:
        if phase is Phase.WORK:
            blob = letters.split(wire.blob(reply), 2)[1]
            of_sum = vectors._update
            public = PublicContext.from_bytes(aggregation.ring.public)
            parsed = ciphertexts.Blob.parse(blob, public, of_sum)
            residues = parsed.residues(slice(0, Packing.of(of_sum).ciphertexts))
            found.setdefault(residues.ravel().astype("<f8").tobytes(), f"wire unpacked of {name}")
    return [(where, content_) for content_, where in found.items()]


def strongest(
    made: Hospitals, of: Experiment, run: str, everything: Iterable[tuple[str, bytes]]
) -> float:
    """The strongest correlation of a hospital's integers, or of their sum, with anything, in units of
    what chance would give once in a million such searches; and no array of the model is there."""
    codec = codec_of(of)
    first = codec.first_scales(of.training)
    wanted: list[NDArray[np.float64]] = []
    for name in made.sites:
        seed = tasks.seeded(of.seed, name, 1).initial_seed()
        update, _ = kept(made, name, of)
        encoded = codec.encode(update, None, first, round=1, seed=seed)
        wanted.append(encoded.values.astype(np.float64))
    wanted.append(np.sum(wanted, axis=0))
    state = held(made, "east", of, run)
    assert state.round == 1
    best, tried = 0.0, 0
    shortest = min(map(len, wanted))
    for _, content_ in everything:
        for series in readings(content_, shortest):
            tried += len(series)
            best = max(best, *(largest_correlation(series, one) for one in wanted))
        for array in state.model.values():  # no array of the model, as it is
            if array.size >= 8:
                assert array.tobytes() not in content_
    assert tried
    return best / math.sqrt(2 * math.log(len(wanted) * tried * 1e6) / shortest)
