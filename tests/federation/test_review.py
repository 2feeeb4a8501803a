"""Reviewers' signatures: Flower's message, one bundle's and one key's, and never an exception."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    SSHCertificateBuilder,
    SSHCertificateType,
)
from flwr.supercore.fab import Fab
from flwr.supercore.primitives.asymmetric_ed25519 import create_message_to_sign, verify_signature
from flwr.supernode.start_client_internal import _verify_fab
from hypothesis import given, settings
from hypothesis import strategies as st

from client_app import code_approval
from client_app.site import Policy
from federation import review, roster
from federation.schema import ConfigError, parse

ALICE, BOB, EVE = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2, 3))
BUNDLE, OTHER = b"PK the bundle", b"PK another one"
SHA256 = hashlib.sha256(BUNDLE).hexdigest()
AT = 1_790_000_000
TRUSTED = {"alice": ALICE.public_key(), "bob": BOB.public_key()}


def signed(private: Ed25519PrivateKey, bundle: bytes = BUNDLE) -> review.Signature:
    return review.sign(bundle, private, AT)


def carried(*signatures: review.Signature) -> dict[str, str]:
    """As Flower's SuperLink hands a hub's verifications on."""
    found = {"valid_license": "Valid"}
    for one in signatures:
        said = one.verification()
        found[str(said.pop("public_key_id"))] = json.dumps(said)
    return found


def line(private: Ed25519PrivateKey) -> str:
    return review.line(private.public_key())


# What Flower makes of it


def test_the_message_is_time_and_digest_and_the_same_as_flowers() -> None:
    message = AT.to_bytes(8, "big") + hashlib.sha256(BUNDLE).digest()
    assert message == create_message_to_sign(hashlib.sha256(BUNDLE).digest(), AT)
    one = signed(ALICE)
    raw = base64.urlsafe_b64decode(one.signature + "==")
    ALICE.public_key().verify(raw, message)
    assert verify_signature(ALICE.public_key(), message, raw)
    assert one.signature == (
        "UAZ3TMn1sdGPgTbXdaEFFS_T4426qmrR-h2S7AsHwe8EqP-Yv9BLYEpBxWXlrnyob5AEjNktuBOw0ON4m9MLCw"
    )  # Ed25519 is deterministic (RFC 8032): other bytes are another message


def test_a_keys_name_follows_from_the_key() -> None:
    raw = bytes.fromhex("8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c")
    assert review.line(ALICE.public_key()) == (
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIqI4910CfGV/VLbLTy6XXLKZwm/HZQSG/N0iAG0D29c"
    )
    assert review.key_id(ALICE.public_key()) == f"fpk_{hashlib.sha256(raw).hexdigest()[:32]}"
    assert review.key_id(ALICE.public_key()) == "fpk_34750f98bd59fcfc946da45aaabe933b"


def test_flowers_own_supernode_takes_it() -> None:
    entities = {review.key_id(ALICE.public_key()): line(ALICE)}
    assert _verify_fab(Fab(SHA256, BUNDLE, carried(signed(ALICE))), entities)
    assert not _verify_fab(Fab(SHA256, BUNDLE, carried(signed(BOB))), entities)
    assert not _verify_fab(Fab(SHA256, BUNDLE, carried(signed(ALICE, OTHER))), entities)
    assert not _verify_fab(Fab(SHA256, BUNDLE + b"\0", carried(signed(ALICE))), entities)


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=100), st.binary(min_size=32, max_size=32), st.integers(0, (1 << 40) - 1))
def test_what_we_hold_good_flower_does_too(bundle: bytes, seed: bytes, at: int) -> None:
    private = Ed25519PrivateKey.from_private_bytes(seed)
    one = review.sign(bundle, private, at)
    assert review.parse(one.content()) == one
    entities = {one.key_id: line(private)}
    assert _verify_fab(Fab(one.bundle, bundle, carried(one)), entities)
    assert review.signed_by(one.bundle, carried(one), {"a": private.public_key()}) == {"a": True}


# Whose signature holds


def test_each_reviewer_counts_for_what_was_signed() -> None:
    def by(*signatures: review.Signature) -> dict[str, bool]:
        return review.signed_by(SHA256, carried(*signatures), TRUSTED)

    assert by() == {}
    assert by(signed(EVE)) == {}  # not trusted, not looked at
    assert by(signed(ALICE)) == {"alice": True}
    assert by(signed(ALICE), signed(BOB)) == {"alice": True, "bob": True}
    assert by(signed(ALICE), signed(BOB, OTHER)) == {"alice": True, "bob": False}
    assert by(replace(signed(ALICE), signed_at=AT + 1)) == {"alice": False}
    # somebody else's signature in the name of her key
    assert by(replace(signed(EVE), reviewer=line(ALICE))) == {"alice": False}
    assert by(replace(signed(BOB), reviewer=line(ALICE)), signed(BOB)) == {
        "alice": False,
        "bob": True,
    }


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_one_other_bit_of_bundle_signature_or_key_is_refused(data: st.DataObject) -> None:
    def flip(content: bytes) -> bytes:
        changed = bytearray(content)
        changed[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        return bytes(changed)

    one = signed(ALICE)
    altered = hashlib.sha256(flip(BUNDLE)).hexdigest()
    assert review.signed_by(altered, carried(one), TRUSTED) == {"alice": False}
    raw = flip(base64.urlsafe_b64decode(one.signature + "=="))
    text = base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
    changed = replace(one, signature=text)
    assert review.signed_by(SHA256, carried(changed), TRUSTED) == {"alice": False}
    with pytest.raises(InvalidSignature):
        review.parse(changed.content())


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=100)
    | st.just(signed(ALICE).signature)
    | st.just(AT),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["signed_at", "signature", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)
MALFORMED = (
    st.text(max_size=200)
    | JSON.map(json.dumps)
    | st.builds(lambda at, of: json.dumps({"signed_at": at, "signature": of}), JSON, JSON)
    | st.sampled_from(
        [
            "", "null", "[]", "{", "\ud800", "[" * 3000, "1" * 4000, '{"signed_at": 1e400}',
            '{"signed_at": true, "signature": ""}', "x" * 100_000,
            json.dumps({"signed_at": -1, "signature": signed(ALICE).signature}),
            json.dumps({"signed_at": 1 << 64, "signature": signed(ALICE).signature}),
            json.dumps({"signed_at": float(AT), "signature": signed(ALICE).signature}),
            json.dumps({"signed_at": AT, "signature": signed(ALICE).signature + "=="}),
            json.dumps({"signed_at": AT, "signature": "é" * 86}),
        ]
    )
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(MALFORMED)
def test_no_malformed_verification_raises_or_holds_or_hides_a_good_one(text: str) -> None:
    good = json.loads(carried(signed(ALICE))[signed(ALICE).key_id])
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        said = None
    if isinstance(said, dict) and all(said.get(key) == good[key] for key in good):
        return  # hypothesis found the good one
    both = {**carried(signed(BOB)), signed(ALICE).key_id: text}
    assert review.signed_by(SHA256, both, TRUSTED) == {"alice": False, "bob": True}


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(max_size=40), MALFORMED, max_size=4))
def test_what_is_in_other_names_is_not_looked_at(others: dict[str, str]) -> None:
    assert review.signed_by(SHA256, others, TRUSTED) == {}


# A hospital's policy


def judged(policy: Policy, *signatures: review.Signature) -> str | None:
    return code_approval.judge(BUNDLE, policy, carried(*signatures)).refused


def test_k_of_n() -> None:
    three = {"alice": line(ALICE), "bob": line(BOB), "eve": line(EVE)}
    policy = Policy(code=[SHA256], reviewers=three, least_reviewers=2)
    assert judged(policy, signed(ALICE), signed(EVE)) is None
    assert judged(policy, signed(ALICE), signed(BOB), signed(EVE, OTHER)) is None
    for few in ([], [signed(ALICE)], [signed(ALICE), signed(ALICE)]):
        why = judged(policy, *few)
        assert why is not None and "and 2 must have signed" in why
    why = judged(policy, signed(ALICE), signed(BOB, OTHER))
    assert why is not None and why.endswith("wrong signatures in the name of: bob")


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        ({"reviewers": {"alice": line(ALICE), "bob": line(ALICE)}}, "one key"),
        ({"reviewers": {"alice": line(ALICE), "bob": line(ALICE) + " bob@home"}}, "one key"),
        ({"reviewers": {"alice": line(ALICE)}, "least_reviewers": 2}, "no code could run"),
        ({"least_reviewers": 2}, "no code could run"),
        ({"reviewers": {"alice": line(ALICE)}, "least_reviewers": 0}, "least_reviewers"),
        ({"code": "reviewed"}, "needs reviewers"),
        ({"code": "any", "reviewers": {"alice": line(ALICE)}}, "code: reviewed"),
        ({"reviewers": {"alice": "ssh-ed25519 AAAA"}}, "ssh-ed25519 AAAA…"),
        ({"reviewers": {"Alice B": line(ALICE)}}, "reviewers"),
    ],
)
def test_a_policy_that_means_nothing_is_refused(keys: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        parse(Policy, keys)


# Keys and files


def test_only_plain_ed25519_lines_are_reviewers() -> None:
    public = ALICE.public_key()
    same = (line(ALICE), f" {line(ALICE)} alice@home\n")
    assert {review.line(review.key(text)) for text in same} == {line(ALICE)}
    certificate = (
        SSHCertificateBuilder()
        .public_key(public)
        .type(SSHCertificateType.USER)
        .valid_principals([b"alice"])
        .valid_after(0)
        .valid_before(1)
        .sign(EVE)
        .public_bytes()
        .decode()
    )
    others = [
        key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
        for key in (
            ec.generate_private_key(ec.SECP256R1()).public_key(),
            rsa.generate_private_key(65537, 2048).public_key(),
        )
    ]
    weak = ["ssh-ed25519 " + _blob(raw) for raw in (bytes(32), b"\1" + bytes(31))]
    more = [f"{line(ALICE)}\n{line(BOB)}", "", "ssh-ed25519", "\ud800", "ssh-ed25519 é"]
    for text in [certificate, *others, *weak, *more]:
        with pytest.raises(ValueError):
            review.key(text)


def _blob(raw: bytes) -> str:
    fields = (b"ssh-ed25519", raw)
    return base64.b64encode(b"".join(len(f).to_bytes(4, "big") + f for f in fields)).decode()


def test_a_file_gives_back_what_was_signed(tmp_path: Path) -> None:
    path = tmp_path / "a.signature.json"
    path.write_bytes(signed(ALICE).content())
    assert review.read(path) == signed(ALICE)
    assert len(path.read_bytes()) < review.LARGEST
    path.write_bytes(replace(signed(ALICE), bundle="0" * 64).content())
    with pytest.raises(ConfigError, match="the signature in it is wrong"):
        review.read(path)
    path.write_bytes(bytes(review.LARGEST + 1))
    with pytest.raises(ConfigError, match="larger than"):
        review.read(path)
    path.write_bytes(b"-----BEGIN OPENSSH PRIVATE KEY-----")
    with pytest.raises(ConfigError, match="not a reviewer's signature"):
        review.read(path)
    with pytest.raises(ConfigError, match="there is no"):
        review.read(tmp_path / "none")
    with pytest.raises(ConfigError, match="not a file"):
        review.read(tmp_path)


@functools.cache
def fields() -> dict[str, Any]:
    return asdict(signed(ALICE))


@settings(max_examples=200, deadline=None)
@given(
    st.fixed_dictionaries({}, optional=dict.fromkeys(fields(), JSON)),
    st.dictionaries(st.text(max_size=5), JSON, max_size=1),
)
def test_a_malformed_file_is_one_kind_of_error(
    changed: dict[str, Any], more: dict[str, Any]
) -> None:
    content = fields() | changed | more
    if content == fields() and type(content["signed_at"]) is int:
        return
    with pytest.raises((ValueError, InvalidSignature)):
        review.parse(json.dumps(content).encode())


def test_one_key_has_one_spelling() -> None:
    """Or one reviewer's signature could be kept twice."""
    for text in (f"{line(ALICE)} comment", f" {line(ALICE)}"):
        with pytest.raises(ValueError, match="one spelling"):
            review.parse(replace(signed(ALICE), reviewer=text).content())
    assert roster.identity_text(review.key(line(ALICE))) == roster.identity_text(ALICE.public_key())
