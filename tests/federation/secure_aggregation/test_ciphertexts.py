"""Altered ciphertexts are refused, and nothing on the coordinator's side opens them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from federation.messages import Reason, WireError
from federation.secure_aggregation import ciphertexts, ckks
from federation.secure_aggregation.ciphertexts import (
    MODULUS,
    RING,
    Packing,
    PublicContext,
)
from federation.secure_aggregation.ckks import Ckks, HospitalKey
from federation.secure_aggregation.scheme import Sum
from tests.federation.secure_aggregation.ckks_sums import (
    SCHEME,
    a_key,
    a_sum,
    encrypted,
    opened,
    reason,
    three,
    with_c0,
)

sealapi = pytest.importorskip("tenseal.sealapi", reason="the extra [ckks] is not installed")


# --- refused -------------------------------------------------------------------------------------


def test_the_coordinator_refuses_what_is_no_blob_of_this_hospital_for_this_sum() -> None:
    of, blobs, total = three()
    public = a_key().public.to_bytes()

    def adds(blob: bytes, hospital: int = 0, to: Sum = of) -> Callable[[], None]:
        return lambda: SCHEME.total(public, to).add(of.members[hospital], blob)

    blob = blobs[0]
    assert reason(adds(blob + b"\0")) == Reason.TOO_LARGE
    assert reason(adds(total)) == Reason.TOO_LARGE
    assert reason(adds(blob[:-1])) == Reason.MALFORMED
    assert reason(adds(b"")) == Reason.MALFORMED
    assert reason(adds(b"X" + blob[1:])) == Reason.MALFORMED
    assert reason(adds(blob, hospital=1)) == Reason.BAD_KEY
    for other in (
        replace(of, round=2),
        replace(of, run="another"),
        replace(of, name="figures"),
        replace(of, bits=15),
        replace(of, roster="1" * 64),
        replace(of, least=3),
    ):
        assert reason(adds(blob, to=other)) == Reason.WRONG_ROUND
    another = Ckks().make_key()
    foreign = Ckks().encrypt(another, of, of.members[0], np.zeros(100, np.int64))
    assert reason(adds(foreign)) == Reason.BAD_KEY
    modulus = with_c0(blob, of, lambda c0: np.full_like(c0, MODULUS))
    assert reason(adds(modulus)) == Reason.MALFORMED
    twice = SCHEME.total(public, of)
    twice.add(of.members[0], blob)
    assert reason(twice.add, of.members[0], blob) == Reason.REPLAYED


def test_a_refused_blob_leaves_the_total_as_it_was() -> None:
    of, blobs, whole = three()
    total = SCHEME.total(a_key().public.to_bytes(), of)
    total.add(of.members[0], blobs[0])
    spoilt = with_c0(blobs[1], of, lambda c0: np.where(np.arange(RING) == RING - 1, MODULUS, c0))
    assert reason(total.add, of.members[1], spoilt) == Reason.MALFORMED
    total.add(of.members[1], blobs[1])
    total.add(of.members[2], blobs[2])
    assert total.to_bytes() == whole


def test_hospitals_refuse_sums_of_too_few_of_another_round_or_with_swapped_seeds() -> None:
    of, blobs, total = three()
    assert reason(opened, of, blobs[0]) == Reason.TOO_FEW_HOSPITALS
    assert reason(opened, replace(of, round=2), total) == Reason.WRONG_ROUND
    head, c0 = len(ciphertexts.head(a_key().public, of, 1)), Packing.of(of).c0_bytes
    part = Packing.of(of).part_bytes
    parts = [total[head + c0 + place * part :][:part] for place in range(3)]
    front = total[: head + c0]
    assert reason(opened, of, front + parts[0] + parts[0] + parts[2]) == Reason.REPLAYED
    # member 1 under the tag of member 2
    swapped = parts[2][:34] + parts[1][34:]
    assert reason(opened, of, front + parts[0] + swapped + parts[1]) == Reason.BAD_SIGNATURE
    # a seed of this hospital from another round
    later = encrypted(replace(of, round=2), np.zeros(100, np.int64))[-part:]
    assert reason(opened, of, front + later + parts[1] + parts[2]) == Reason.BAD_SIGNATURE


def test_one_hospitals_update_cannot_be_shown_as_a_sum() -> None:
    """Its c0 with the seeds of three: the other two are not in it, so that only noise comes out."""
    of, blobs, total = three()
    head, c0 = len(ciphertexts.head(a_key().public, of, 1)), Packing.of(of).c0_bytes
    alone = total[:head] + blobs[0][head : head + c0] + total[head + c0 :]
    assert reason(opened, of, alone) == Reason.MALFORMED
    assert reason(opened, of, with_c0(total, of, np.zeros_like)) == Reason.MALFORMED


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_altered_bytes_are_refused_and_nothing_crashes(data: st.DataObject) -> None:
    of, blobs, total = three()
    source = data.draw(st.sampled_from([blobs[0], total]))
    blob = bytearray(source)
    for _ in range(data.draw(st.integers(1, 4))):
        blob[data.draw(st.integers(0, len(blob) - 1))] ^= data.draw(st.integers(1, 255))
    content = bytes(blob)[: data.draw(st.one_of(st.just(len(blob)), st.integers(0, len(blob))))]
    if content == source:
        return
    reason(opened, of, content)
    with suppress(WireError):  # a coordinator cannot tell an altered c0 from another one
        SCHEME.total(a_key().public.to_bytes(), of).add(of.members[0], content)


@settings(max_examples=300)
@given(st.binary(max_size=300))
def test_any_bytes_are_refused(content: bytes) -> None:
    of, _, _ = three()
    reason(opened, of, content)
    reason(SCHEME.total(a_key().public.to_bytes(), of).add, of.members[0], content)
    reason(PublicContext.from_bytes, content)
    reason(HospitalKey.from_bytes, content, a_key().public.to_bytes())


# --- what the coordinator holds ------------------------------------------------------------------


def test_the_key_is_small_and_only_the_named_one_is_taken() -> None:
    key = a_key()
    assert len(key.to_bytes()) == 96 and len(key.public.to_bytes()) < 64
    assert HospitalKey.from_bytes(key.to_bytes(), key.public.to_bytes()) == key
    another = SCHEME.make_key().public.to_bytes()
    assert reason(HospitalKey.from_bytes, key.to_bytes(), another) == Reason.BAD_KEY
    assert repr(key.seed) not in repr(key) and repr(key.run_key) not in repr(key)


def test_nothing_that_the_coordinator_holds_decrypts() -> None:
    of, blobs, total = three()
    public = a_key().public.to_bytes()
    packing = Packing.of(of)
    parsed = ciphertexts.Blob.parse(total, a_key().public, of)
    with closing(ckks._Seal(bytes(64), packing.scale)) as coordinator:  # a key of its own making
        with pytest.raises(ValueError, match="secret key is not valid"):
            sealapi.Decryptor(coordinator._context, sealapi.SecretKey())
        with pytest.raises(WireError):
            coordinator.decrypt(
                parsed.residues(slice(0, 1))[0], [part.seeds for part in parsed.parts]
            )
    # a key guessed from any 64 bytes that it sees is not the key
    seen = public + b"".join(part.tag + part.seeds for part in parsed.parts)
    for start in range(0, len(seen) - 95, 16):
        assert reason(HospitalKey.from_bytes, seen[start : start + 96], public) == Reason.BAD_KEY
    held = public + total + b"".join(blobs)
    key = a_key()
    secrets = [key.seed, key.run_key, key.seed[:16], key.run_key[:16]]
    assert not any(secret in held for secret in secrets)


def test_ciphertexts_look_uniform_and_unlike_the_plain_vector() -> None:
    size = 400_000
    of = a_sum(3, size, 16)
    values = np.full(size, 7)  # anything but random
    values[::2] = -30_000
    blob = encrypted(of, values)
    packing = Packing.of(of)
    parsed = ciphertexts.Blob.parse(blob, a_key().public, of)
    residues = parsed.residues(slice(0, packing.ciphertexts))
    # q is 2**60 - 16383: its residues' lower 56 bits are uniform to far below what is seen
    low = np.ascontiguousarray(residues).view(np.uint8).reshape(-1, 8)[:, :7]
    seeds = np.frombuffer(parsed.parts[0].seeds, np.uint8)
    for found in (*low.T, seeds):
        assert chisquare(np.bincount(found.ravel(), minlength=256)).pvalue > 1e-6
    flat = residues.ravel().astype(np.float64)[: size // 2]
    for plain in (values[: flat.size], packing.pack(values).ravel()[: flat.size]):
        if plain.std() > 0:
            assert abs(np.corrcoef(flat, plain)[0, 1]) < 5 / np.sqrt(flat.size)
    # the same vector twice has nothing in common
    again = ciphertexts.Blob.parse(encrypted(of, values), a_key().public, of)
    other = again.residues(slice(0, packing.ciphertexts)).ravel().astype(np.float64)
    assert abs(np.corrcoef(flat, other[: flat.size])[0, 1]) < 5 / np.sqrt(flat.size)
    assert not set(_seeds(parsed.parts[0].seeds)) & set(_seeds(again.parts[0].seeds))
    assert len(set(_seeds(parsed.parts[0].seeds))) == packing.ciphertexts


def _seeds(joined: bytes) -> list[bytes]:
    return [joined[start : start + 64] for start in range(0, len(joined), 64)]
