"""Known answers: the standards' own vectors, and a whole sum computed once more by `independent`.

The frozen constants are what `independent` gave. One that changes means that hospitals of two versions
no longer understand each other: raise the version in `keys`.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from federation.codec import packing
from federation.secure_aggregation import keys, masks, stream
from federation.secure_aggregation.keys import Cohort, Occasion, Secrets
from federation.secure_aggregation.stream import Stream
from tests.federation.secure_aggregation import independent
from tests.federation.secure_aggregation.parties import vectors

NAMES = ("east", "north", "south", "west")
SHARERS = ("east", "north", "west")
SIZES = {"east": 12, "north": 1, "south": 4096, "west": 77}
WHEN = ("run-1", 3, 2, "0f" * 32)


def fixed(*what: str) -> bytes:
    return hashlib.sha256(" ".join(what).encode()).digest()


RAW = {n: (fixed(n, "mask"), fixed(n, "seal"), fixed(n, "seed")) for n in NAMES}
SECRETS = {n: Secrets(Occasion(*WHEN), n, SIZES[n], *RAW[n]) for n in NAMES}
IDENTITIES = {n: Ed25519PrivateKey.from_private_bytes(fixed(n, "identity")) for n in NAMES}
PUBLIC = {n: key.public_key() for n, key in IDENTITIES.items()}


@pytest.fixture(scope="module")
def by_hand() -> independent.Sum:
    return independent.Sum(WHEN, RAW, SIZES)


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    bodies = [SECRETS[name].body() for name in NAMES]
    adverts = [
        replace(one, signature=IDENTITIES[one.hospital].sign(one.statement(Occasion(*WHEN))))
        for one in bodies
    ]
    return masks.cohort(adverts, Occasion(*WHEN), PUBLIC, least=3)


# --- the standards' vectors: of what we use, and of `independent` -----------------------------------


def test_key_agreement_of_rfc_7748_section_6_1() -> None:
    alice = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    bob = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    public = "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    shared = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    assert keys.public_half(alice).hex() == public
    assert keys.agreed(keys.private_key(alice), keys.public_half(bob)).hex() == shared
    base = (9).to_bytes(32, "little")
    assert independent.x25519(alice, base).hex() == public
    assert independent.x25519(alice, independent.x25519(bob, base)).hex() == shared


def test_derivation_of_rfc_5869_appendix_a() -> None:
    secret = b"\x0b" * 22
    salt, info = bytes(range(13)), bytes(range(0xF0, 0xFA))
    first = "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    third = "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
    assert independent.hkdf(secret, info, salt, 42).hex() == first
    assert independent.hkdf(secret, b"", b"", 42).hex() == third


def test_derivation() -> None:
    ours = keys.derived(b"\x0b" * 32, "purpose", "name", 7, b"\x00raw")
    info = independent.spelt("purpose", "name", 7, b"\x00raw")
    assert ours == independent.hkdf(b"\x0b" * 32, info)
    assert info == (
        b"\0\0\0\x11consilium masks 1" + b"\0\0\0\x07purpose" + b"\0\0\0\x04name"
        b"\0\0\0\x08" + b"\0\0\0\0\0\0\0\x07" + b"\0\0\0\x04\x00raw"
    )
    assert ours.hex() == "d363b29be7650abe59cb921cf7b9c6e8c71ba84b30915612b30ee82b9045ba60"


def test_counter_mode_of_sp_800_38a_section_f_5_5() -> None:
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    plain = bytes.fromhex("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51")
    wanted = "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
    first = int.from_bytes(bytes(range(0xF0, 0x100)), "big")
    made = independent.ctr(key, 32, first)
    assert bytes(a ^ b for a, b in zip(made, plain, strict=True)).hex() == wanted
    library = Cipher(algorithms.AES(key), modes.CTR(first.to_bytes(16, "big"))).encryptor()
    assert library.update(plain).hex() == wanted


@pytest.mark.parametrize("bits", [1, 5, 8, 9, 16, 20, 32, 33, 64])
def test_the_stream_of_a_mask(bits: int) -> None:
    key = fixed("a key")
    made = np.zeros(1000, stream.word(bits))
    stream.add(made, bits, [Stream(key, 1)])
    assert made.tolist() == [w % 2**bits for w in independent.words(key, 1000, bits)]
    stream.add(made, bits, [Stream(key, -1)])
    assert not made.any()


def test_a_frozen_stream() -> None:
    made = np.zeros(4, np.uint32)
    stream.add(made, 32, [Stream(bytes(32), 1)])
    # AES-256 of the zero block under the zero key, as little-endian words
    assert made.astype("<u4").tobytes().hex() == "dc95c078a2408989ad48a21492842087"


# --- a whole sum ------------------------------------------------------------------------------------


def test_what_is_signed(cohort: Cohort, by_hand: independent.Sum) -> None:
    for advert in cohort.adverts:
        statement = by_hand.statements[advert.hospital]
        PUBLIC[advert.hospital].verify(advert.signature, statement)
    assert cohort.sha256 == by_hand.cohort
    assert cohort.sha256.hex() == "e550fea3b061b66e6fcf36f64149ad1529e7621ce9bf01ac2dda1256a3ba93d5"
    signature = masks.sign_survivors(
        SECRETS["east"], cohort, NAMES, SHARERS, IDENTITIES["east"], least=3
    )
    PUBLIC["east"].verify(signature, by_hand.survivors(NAMES, SHARERS))
    assert signature.hex() == (
        "0025f8672ffb65716c1edc0c4d4fc953a63d0118fa782e309002e23e377328a9"
        "1bfbdd1d6fa57709b2c223b9392547564b3e27829291eb511f5fffcc43241b0a"
    )


def test_sealed_shares(cohort: Cohort, by_hand: independent.Sum) -> None:
    sealed = {name: masks.share(SECRETS[name], cohort) for name in SHARERS}
    for sender in SHARERS:
        points: tuple[dict[int, int], dict[int, int]] = {}, {}
        for place, receiver in enumerate(NAMES, start=1):
            box = sealed[sender][receiver]
            key = by_hand.seal_key(sender, receiver)
            opened = AESGCM(key).decrypt(box[:12], box[12:], None)
            assert len(opened) == 66
            points[0][place] = int.from_bytes(opened[:33], "big")
            points[1][place] = int.from_bytes(opened[33:], "big")
        for kind, secret in ((0, RAW[sender][0]), (1, RAW[sender][2])):
            for missing in points[kind]:
                some = {x: y for x, y in points[kind].items() if x != missing}  # t = 3 of 4
                assert independent.interpolate(some) == int.from_bytes(secret, "big")
    assert (
        by_hand.seal_key("east", "west").hex()
        == "285df107bad14338ed9fc79ab7653460602f5f72df72be32e8e4831e87f39fee"
    )
    assert by_hand.seal_key("west", "east") != by_hand.seal_key("east", "west")


@pytest.mark.parametrize("bits", [8, 12, 20, 32, 64])
@pytest.mark.parametrize("part", ["update", "figures"])
def test_masked_input(cohort: Cohort, by_hand: independent.Sum, bits: int, part: str) -> None:
    plain = vectors(SHARERS, 67, bits)
    for name in SHARERS:
        masked = plain[name].copy()
        masks.mask(SECRETS[name], cohort, SHARERS, masked, bits, part=part)
        wanted = by_hand.masked(name, SHARERS, plain[name].tolist(), bits, part)
        assert masked.tolist() == wanted


def test_masked_and_packed_input_as_frozen(cohort: Cohort, by_hand: independent.Sum) -> None:
    bits, plain = 20, [0, 1, 2**20 - 1, 77, 500_000, 3, 3, 3]
    masked = np.array(plain, np.uint32)
    masks.mask(SECRETS["north"], cohort, SHARERS, masked, bits, part="update")
    wanted = by_hand.masked("north", SHARERS, plain, bits, "update")
    whole = sum(x << bits * place for place, x in enumerate(wanted))
    assert packing.pack(masked, bits) == whole.to_bytes(20, "little")
    assert packing.pack(masked, bits).hex() == "20c6a5994c7e3b86fa7d2bb8f08865d7f9c68d7f"


def test_a_wider_type_holds_the_same_numbers(cohort: Cohort) -> None:
    narrow, wide = np.arange(1000, dtype=np.uint16), np.arange(1000, dtype=np.uint32)
    for vector in (narrow, wide):
        masks.mask(SECRETS["east"], cohort, SHARERS, vector, 12, part="update")
    assert narrow.tolist() == wide.tolist()
