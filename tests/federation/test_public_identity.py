"""Public halves: all three proofs are needed, and nothing hostile gets past."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from federation import public_identity, roster
from federation.schema import ConfigError

OLD, NEW, THIEF = (Ed25519PrivateKey.generate() for _ in range(3))
NODE, OTHER_NODE = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
CREATED = public_identity.write("north", NEW, NODE)
ROTATED = public_identity.write("north", NEW, NODE, OLD)


def changed(content: bytes, **changes: str) -> bytes:
    return json.dumps(json.loads(content) | changes).encode()


def test_what_is_written_is_read() -> None:
    created, rotated = public_identity.parse(CREATED), public_identity.parse(ROTATED)
    assert created.member.name == rotated.member.name == "north"
    assert (created.previous, created.member.succeeds) == ("", "")
    assert rotated.previous == roster.identity_text(OLD.public_key())
    assert created.member.same_keys(rotated.member)


def test_the_signatures_are_over_the_statement_as_it_is_documented() -> None:
    said = json.loads(ROTATED)
    stated = (
        b"consilium public identity\n"
        + json.dumps(
            {
                "hospital": "north",
                "identity_key": said["identity_key"],
                "node_key": said["node_key"],
                "previous": said["previous"],
            },
            separators=(",", ":"),
        ).encode()
    )
    NEW.public_key().verify(base64.b64decode(said["signature"]), stated)
    OLD.public_key().verify(base64.b64decode(said["previous_signature"]), stated)
    NODE.public_key().verify(
        base64.b64decode(said["node_signature"]), stated, ec.ECDSA(hashes.SHA384())
    )


def resigned(field: str) -> bytes:
    """As the rotation, but one of its three signatures is by somebody who does not hold that key."""
    foreign = {
        "signature": public_identity.write("north", THIEF, NODE, OLD),
        "node_signature": public_identity.write("north", NEW, OTHER_NODE, OLD),
        "previous_signature": public_identity.write("north", NEW, NODE, THIEF),
    }[field]
    return changed(ROTATED, **{field: json.loads(foreign)[field]})


@pytest.mark.parametrize("field", ["signature", "node_signature", "previous_signature"])
def test_each_of_the_proofs_is_needed(field: str) -> None:
    with pytest.raises(InvalidSignature):
        public_identity.parse(resigned(field))


@pytest.mark.parametrize(
    "content",
    [
        changed(CREATED, hospital="east"),
        changed(
            CREATED, node_key=json.loads(public_identity.write("n", NEW, OTHER_NODE))["node_key"]
        ),
        changed(CREATED, identity_key=roster.identity_text(THIEF.public_key())),
        changed(ROTATED, previous=roster.identity_text(THIEF.public_key())),
        changed(
            ROTATED, previous="", previous_signature=""
        ),  # proofs of a rotation as of a first one
    ],
)
def test_a_swapped_field_is_refused(content: bytes) -> None:
    with pytest.raises(InvalidSignature):
        public_identity.parse(content)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"{}", b"[" * 20_000, b"\xff", b'{"hospital": NaN}',
        changed(CREATED, hospital="../../etc"),
        changed(CREATED, hospital="\x1b[31mnorth"),
        changed(CREATED, more="x"),
        changed(CREATED, previous=json.loads(ROTATED)["previous"]),
        changed(ROTATED, previous_signature=""),
        changed(ROTATED, previous=json.loads(ROTATED)["identity_key"]),
        public_identity.write("north", NEW, NODE, NEW),  # all signatures right, and nothing rotated
        changed(CREATED, signature="A" * 200),
        changed(CREATED, node_signature="é"),
        changed(CREATED, node_signature="A" * 10_000),
        changed(CREATED, identity_key="\ud800"),
        changed(CREATED, node_key="ecdsa-sha2-nistp384 AAAA"),
        json.dumps(json.loads(CREATED) | {"hospital": ["north"]}).encode(),
    ],
)  # fmt: skip
def test_hostile_files_are_refused(content: bytes) -> None:
    with pytest.raises((ValueError, InvalidSignature)):
        public_identity.parse(content)


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, 10_000), byte=st.integers(0, 255), cut=st.booleans())
def test_a_changed_byte_is_refused_or_changes_nothing(at: int, byte: int, cut: bool) -> None:
    content = bytearray(ROTATED)
    at %= len(content)
    if cut:
        del content[at:]
    else:
        content[at] = byte
    try:
        found = public_identity.parse(bytes(content))
    except (ValueError, InvalidSignature):
        return
    assert found == public_identity.parse(ROTATED)


def test_reading_a_file_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "north.identity.json"
    for content, words in (
        (b"{}", "hospital join"),
        (resigned("signature"), "a signature in it is wrong"),
        (b" " * (public_identity.LARGEST + 1), "larger than"),
    ):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=words) as refused:
            public_identity.read(path)
        assert "\n" not in str(refused.value)


def test_who_succeeds_whom_can_be_checked_by_the_other_hospitals() -> None:
    after = public_identity.parse(ROTATED).member
    before = public_identity.parse(public_identity.write("north", OLD, OTHER_NODE)).member
    assert public_identity.succeeds(after, before)
    stranger = public_identity.parse(public_identity.write("north", THIEF, OTHER_NODE)).member
    swapped = replace(after, identity_key=roster.identity_text(THIEF.public_key()))
    assert not public_identity.succeeds(after, stranger)
    assert not public_identity.succeeds(swapped, before), "the signature is for one key alone"
    assert not public_identity.succeeds(replace(after, node_key=before.node_key), before)
    assert not public_identity.succeeds(public_identity.without_succession(after), before)
    assert not public_identity.succeeds(replace(after, succeeds="x"), before)
    elsewhere = public_identity.parse(public_identity.write("east", OLD, OTHER_NODE)).member
    assert not public_identity.succeeds(after, elsewhere), "one hospital does not vouch for another"
