"""The run's key reaches the hospitals on the roster alone, in letters that fit one place."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.messages import Reason, WireError
from federation.secure_aggregation.sealing import (
    LARGEST_SECRET,
    Meeting,
    SealingAdvert,
    advertise,
    open_key,
    open_model,
    seal_key,
    seal_model,
)

MEETING = Meeting("run", "0" * 64)
SECRET, PUBLIC = bytes(range(96)), b"public context"
IDENTITIES = {name: Ed25519PrivateKey.generate() for name in ("a", "b", "c")}
ROSTER = {name: key.public_key() for name, key in IDENTITIES.items()}
RECEIVED = {name: advertise(IDENTITIES[name], name, 7, MEETING) for name in ("b", "c")}
PRIVATE = {name: private for name, (private, _) in RECEIVED.items()}
ADVERTS = {name: advert for name, (_, advert) in RECEIVED.items()}
LETTERS = seal_key(SECRET, PUBLIC, ADVERTS, ROSTER, IDENTITIES["a"], "a", MEETING)

RUN_KEY = bytes(range(32))
SMALL_ORDER = [  # of Curve25519: 0, 1, a point of order 8, p - 1, p, p + 1
    bytes(32),
    bytes([1]) + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    ((1 << 255) - 20).to_bytes(32, "little"),
    ((1 << 255) - 19).to_bytes(32, "little"),
    ((1 << 255) - 18).to_bytes(32, "little"),
]


def opened(letter: bytes = LETTERS["b"], **changes: Any) -> bytes:
    given: dict[str, Any] = {
        "public": PUBLIC,
        "private": PRIVATE["b"],
        "hospital": "b",
        "maker": "a",
        "maker_identity": ROSTER["a"],
        "meeting": MEETING,
    }
    return open_key(letter, **(given | changes))


def sealed(adverts: dict[str, SealingAdvert], meeting: Meeting = MEETING) -> dict[str, bytes]:
    return seal_key(SECRET, PUBLIC, adverts, ROSTER, IDENTITIES["a"], "a", meeting)


def reason(function: Callable[..., object], *given: Any, **named: Any) -> Reason:
    with pytest.raises(WireError) as failure:
        function(*given, **named)
    return failure.value.reason


def test_each_hospital_opens_its_own_letter_alone() -> None:
    assert set(LETTERS) == {"b", "c"}
    for name, letter in LETTERS.items():
        assert opened(letter, private=PRIVATE[name], hospital=name) == SECRET
        assert SECRET not in letter and len(letter) < 256
    assert reason(opened, LETTERS["c"]) == Reason.BAD_SIGNATURE
    assert reason(opened, private=X25519PrivateKey.generate()) == Reason.BAD_SIGNATURE


@pytest.mark.parametrize(
    "change",
    [
        {"public": b"another context"},
        {"maker": "c"},
        {"maker_identity": ROSTER["c"]},
        {"hospital": "c"},
        {"meeting": replace(MEETING, run="another")},
        {"meeting": replace(MEETING, roster="1" * 64)},
    ],
)
def test_a_letter_fits_one_run_roster_maker_receiver_and_context(change: dict[str, Any]) -> None:
    assert reason(opened, **change) == Reason.BAD_SIGNATURE


def test_the_coordinator_cannot_have_the_key_sealed_to_a_key_of_its_own() -> None:
    own = X25519PrivateKey.generate().public_key().public_bytes_raw()
    swapped = replace(ADVERTS["b"], key=own)
    assert reason(sealed, {"b": swapped}) == Reason.BAD_SIGNATURE
    assert reason(sealed, {"b": replace(ADVERTS["b"], size=8)}) == Reason.BAD_SIGNATURE
    by_itself = advertise(Ed25519PrivateKey.generate(), "b", 7, MEETING)[1]
    assert reason(sealed, {"b": by_itself}) == Reason.BAD_SIGNATURE
    stranger = advertise(Ed25519PrivateKey.generate(), "d", 7, MEETING)[1]
    assert reason(sealed, {"d": stranger}) == Reason.ROSTER_DIFFERS
    assert reason(sealed, {"b": ADVERTS["c"]}) == Reason.ROSTER_DIFFERS
    assert reason(sealed, {"b": replace(ADVERTS["c"], hospital="b")}) == Reason.BAD_SIGNATURE
    assert reason(sealed, ADVERTS, replace(MEETING, run="another")) == Reason.BAD_SIGNATURE
    assert reason(sealed, ADVERTS, replace(MEETING, roster="1" * 64)) == Reason.BAD_SIGNATURE


@pytest.mark.parametrize("point", SMALL_ORDER)
def test_points_of_small_order_are_refused(point: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """An advert that a hospital signed over such a key: the shared secret would be zero."""
    with monkeypatch.context() as patch:
        patch.setattr(
            "federation.secure_aggregation.sealing.X25519PrivateKey.generate", lambda: _Fixed(point)
        )
        advert = advertise(IDENTITIES["b"], "b", 7, MEETING)[1]
    assert advert.key == point
    assert reason(sealed, {"b": advert}) == Reason.BAD_KEY


class _Fixed:
    def __init__(self, point: bytes) -> None:
        self._point = point

    def public_key(self) -> _Fixed:
        return self

    def public_bytes_raw(self) -> bytes:
        return self._point


def test_a_letter_is_what_its_parts_give_when_computed_apart() -> None:
    """X25519, HKDF-SHA-256 and AES-256-GCM by hand, on the format as documented."""

    def fields(*values: bytes) -> bytes:
        return b"".join(len(value).to_bytes(4, "big") + value for value in values)

    letter = LETTERS["b"]
    ephemeral, body, signature = letter[5:37], letter[37:-64], letter[-64:]
    bound = fields(
        b"consilium masks 1", b"ckks letter", b"run", b"0" * 64, b"a", b"b",
        hashlib.sha256(PUBLIC).digest(), ADVERTS["b"].key, ephemeral,
    )  # fmt: skip
    ROSTER["a"].verify(signature, bound + body)
    shared = PRIVATE["b"].exchange(X25519PublicKey.from_public_bytes(ephemeral))
    info = fields(b"consilium masks 1", b"ckks key", bound)
    key = HKDF(SHA256(), 32, salt=None, info=info).derive(shared)
    assert AESGCM(key).decrypt(bytes(12), body, bound) == SECRET


def test_letters_and_adverts_of_other_lengths_are_refused_before_anything_else() -> None:
    assert reason(opened, LETTERS["b"] + bytes(LARGEST_SECRET)) == Reason.TOO_LARGE
    assert reason(opened, LETTERS["b"][:117]) == Reason.MALFORMED
    advert = ADVERTS["b"].to_bytes()
    assert SealingAdvert.from_bytes(advert, "b") == ADVERTS["b"]
    for wrong in (advert + b"\0", advert[:-1], b"", b"X" + advert[1:]):
        assert reason(SealingAdvert.from_bytes, wrong, "b") == Reason.MALFORMED
    for secret in (b"", bytes(LARGEST_SECRET + 1)):
        with pytest.raises(ValueError, match="secret"):
            seal_key(secret, PUBLIC, ADVERTS, ROSTER, IDENTITIES["a"], "a", MEETING)


def test_a_sealed_model_opens_for_its_run_and_round_alone() -> None:
    model = bytes(1000)
    one, two = (seal_model(RUN_KEY, "run", 3, model) for _ in range(2))
    assert one != two and model[:16] not in one
    assert open_model(RUN_KEY, "run", 3, one) == model
    for wrong in ((RUN_KEY, "run", 4), (RUN_KEY, "other", 3), (bytes(32), "run", 3)):
        assert reason(open_model, *wrong, one) == Reason.BAD_KEY
    assert reason(open_model, RUN_KEY, "run", 3, one[:20]) == Reason.MALFORMED
    with pytest.raises(ValueError, match="32 bytes"):
        seal_model(bytes(31), "run", 3, model)


@settings(max_examples=300)
@given(st.data())
def test_altered_bytes_are_refused(data: st.DataObject) -> None:
    model = seal_model(RUN_KEY, "run", 1, b"model")
    source = data.draw(st.sampled_from([LETTERS["b"], ADVERTS["b"].to_bytes(), model]))
    altered = bytearray(source)
    altered[data.draw(st.integers(0, len(source) - 1))] ^= data.draw(st.integers(1, 255))
    content = bytes(altered)[: data.draw(st.one_of(st.just(len(source)), st.integers(0, 200)))]
    reason(opened, content)
    reason(open_model, RUN_KEY, "run", 1, content)
    reason(_checked, content)


@settings(max_examples=300)
@given(st.binary(max_size=400))
def test_any_bytes_are_refused(content: bytes) -> None:
    reason(opened, content)
    reason(open_model, RUN_KEY, "run", 1, content)
    reason(_checked, content)


def _checked(content: bytes) -> None:
    SealingAdvert.from_bytes(content, "b").check(ROSTER["b"], MEETING)
