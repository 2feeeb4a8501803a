"""The roster: what is signed, what is refused whoever signed it, and what two versions differ in."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from federation import roster
from federation.roster import Changes, Member, Roster
from federation.schema import ConfigError

COORDINATOR = Ed25519PrivateKey.generate()
PUBLIC = COORDINATOR.public_key()
P = 2**255 - 19


def member(name: str, **changes: str) -> Member:
    made = Member(
        name,
        roster.node_line(ec.generate_private_key(ec.SECP384R1()).public_key()),
        roster.identity_text(Ed25519PrivateKey.generate().public_key()),
    )
    return replace(made, **changes)


NORTH, EAST = member("north"), member("east")
FIRST = Roster("test", (NORTH, EAST))
SECOND = Roster("test", (NORTH,), 2, FIRST.sha256())


def test_what_is_signed_is_read_again(tmp_path: Path) -> None:
    for version in (FIRST, SECOND):
        path = tmp_path / "roster.json"
        path.write_bytes(roster.sign(version, COORDINATOR))
        found = roster.read(path, PUBLIC)
        assert found.sha256() == version.sha256()
        assert found.names() == version.names()


def test_sha256_is_of_the_canonical_json() -> None:
    """Against JSON that is put together here by hand."""
    entries = ",".join(
        f'{{"identity_key":"{m.identity_key}","name":"{m.name}","node_key":"{m.node_key}","succeeds":""}}'
        for m in (EAST, NORTH)
    )
    text = f'{{"federation":"test","members":[{entries}],"previous":"","version":1}}'
    assert FIRST.sha256() == hashlib.sha256(text.encode()).hexdigest()
    assert FIRST.sha256() == Roster("test", (EAST, NORTH)).sha256(), "whatever the order"


def test_the_sha256_tells_every_difference() -> None:
    others = [
        Roster("other", FIRST.members),
        Roster("test", FIRST.members, 2),
        Roster("test", FIRST.members, 1, "0" * 64),
        Roster("test", (NORTH,)),
        *(Roster("test", (NORTH, replace(EAST, **{field: "x"}))) for field in asdict(EAST)),
    ]
    assert len({version.sha256() for version in [FIRST, *others]}) == len(others) + 1


def test_identities_check_signatures() -> None:
    key = Ed25519PrivateKey.generate()
    own = member("south", identity_key=roster.identity_text(key.public_key()))
    identities = Roster("test", (NORTH, own)).identities()
    assert list(identities) == ["north", "south"]
    identities["south"].verify(key.sign(b"word"), b"word")
    with pytest.raises(InvalidSignature):
        identities["north"].verify(key.sign(b"word"), b"word")


def test_the_signature_has_a_domain_of_its_own() -> None:
    """A signature over the bare payload, which some other protocol might be tricked into, is none."""
    document = json.loads(roster.sign(FIRST, COORDINATOR))
    document["signature"] = base64.b64encode(COORDINATOR.sign(FIRST.payload())).decode()
    with pytest.raises(InvalidSignature):
        roster.parse(json.dumps(document).encode(), PUBLIC)


def small_order() -> list[str]:
    """All encodings of points whose order divides 8, from the curve's equation."""
    d = -121665 * pow(121666, -1, P) % P
    root = pow(2, (P - 1) // 4, P)

    def sqrt(value: int) -> int | None:
        candidate = pow(value, (P + 3) // 8, P)
        for one in (candidate, candidate * root % P):
            if one * one % P == value % P:
                return one
        return None

    # order 8: x² = -y² on doubling to order 4, so d y⁴ + 2y² - 1 = 0 (from -x² + y² = 1 + d x² y²)
    half = sqrt(1 + d)
    assert half is not None
    squares = [(-1 + sign * half) * pow(d, -1, P) % P for sign in (1, -1)]
    eighths = [y for square in squares if (y := sqrt(square)) is not None]
    assert len(eighths) == 1
    y8 = eighths[0]
    ys = [0, 1, P - 1, y8, P - y8, P, P + 1]
    return [
        base64.b64encode((y | sign << 255).to_bytes(32, "little")).decode()
        for y in ys
        for sign in (0, 1)
    ]


@pytest.mark.parametrize("key", small_order())
def test_a_point_under_which_anybody_can_sign_is_no_identity(key: str) -> None:
    with pytest.raises(ValueError, match="small order"):
        roster.identity_key(key)


def signed(**changes: Any) -> bytes:
    """A roster that the coordinator really signed, with something wrong in it."""
    content = json.loads(FIRST.payload()) | changes
    signature = COORDINATOR.sign(b"consilium roster\n" + roster.canonical(content))
    return json.dumps(
        {"roster": content, "signature": base64.b64encode(signature).decode()}
    ).encode()


def entries(*members: Member) -> list[dict[str, str]]:
    return [asdict(one) for one in sorted(members, key=lambda m: m.name)]


def test_signed_by_hand_is_read() -> None:
    assert roster.parse(signed(), PUBLIC).sha256() == FIRST.sha256()


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 0}, {"version": True}, {"version": "1"}, {"version": 1.0}, {"version": 2**31},
        {"version": 2}, {"previous": "0" * 64}, {"version": 2, "previous": "g" * 64},
        {"federation": 5}, {"members": []}, {"members": {}}, {"members": ["x"]},
        {"members": entries(NORTH) * 1001}, {"extra": 1},
        {"members": entries(NORTH, NORTH)},
        {"members": entries(NORTH, replace(EAST, name="north"))},
        {"members": entries(NORTH, replace(EAST, node_key=NORTH.node_key))},
        {"members": entries(NORTH, replace(EAST, identity_key=NORTH.identity_key))},
        {"members": entries(replace(NORTH, name="../north"))},
        {"members": entries(replace(NORTH, name="north\n"))},
        {"members": entries(replace(NORTH, identity_key=small_order()[0]))},
        {"members": entries(replace(NORTH, identity_key=NORTH.identity_key[:-4]))},
        {"members": entries(replace(NORTH, node_key=NORTH.node_key + " a comment"))},
        {"members": entries(replace(NORTH, node_key="ssh-ed25519 AAAA"))},
        {"members": entries(replace(NORTH, succeeds="AAAA"))},
        {"members": [asdict(NORTH) | {"more": ""}]},
    ],
)  # fmt: skip
def test_a_malformed_roster_is_refused_though_signed(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        roster.parse(signed(**changes), PUBLIC)


def test_a_weaker_curve_is_no_node_key() -> None:
    line = roster.node_line(ec.generate_private_key(ec.SECP256R1()).public_key())
    with pytest.raises(ValueError, match="P-384"):
        roster.node_key(line)


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 10_000), byte=st.integers(0, 255), cut=st.booleans())
def test_a_changed_byte_is_refused_or_changes_nothing(at: int, byte: int, cut: bool) -> None:
    content = bytearray(roster.sign(SECOND, COORDINATOR))
    at %= len(content)
    if cut:
        del content[at:]
    else:
        content[at] = byte
    try:
        found = roster.parse(bytes(content), PUBLIC)
    except (ValueError, InvalidSignature):
        return
    assert found.sha256() == SECOND.sha256()


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_noise_is_refused(content: bytes) -> None:
    with pytest.raises((ValueError, InvalidSignature)):
        roster.parse(content, PUBLIC)


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b"[]", b"null", b"", b'{"roster":{},"signature":""}', b"\xff\xfe"]
)
def test_a_file_that_is_none_is_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "roster.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="coordinator signed") as refused:
        roster.read(path, PUBLIC)
    assert "\n" not in str(refused.value)


def test_a_huge_file_and_a_folder_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "roster.json"
    path.write_bytes(b" " * (roster.LARGEST + 1))
    with pytest.raises(ConfigError, match="larger than"):
        roster.read(path, PUBLIC)
    with pytest.raises(ConfigError, match="not a file"):
        roster.read(tmp_path, PUBLIC)
    with pytest.raises(ConfigError, match="there is no roster"):
        roster.read(tmp_path / "none", PUBLIC)


def test_another_coordinators_roster_is_refused() -> None:
    with pytest.raises(InvalidSignature):
        roster.parse(roster.sign(FIRST, Ed25519PrivateKey.generate()), PUBLIC)


def test_changes_are_by_name_and_by_either_key() -> None:
    west = member("west")
    for field in ("node_key", "identity_key"):
        swapped = replace(NORTH, **{field: getattr(west, field)})
        found = Changes.between(FIRST, Roster("test", (swapped, member("south")), 2))
        assert [m.name for m in found.added] == ["south"]
        assert [m.name for m in found.removed] == ["east"]
        assert found.keys == ((NORTH, swapped),)
    assert Changes.between(FIRST, FIRST) == Changes((), (), ())


def test_a_fingerprint_is_of_all_that_counts_and_readable() -> None:
    groups = NORTH.fingerprint().split(" ")
    assert [len(group) for group in groups] == [4] * 8
    changed = [
        replace(NORTH, **{f: getattr(EAST, f)}) for f in ("name", "node_key", "identity_key")
    ]
    assert len({m.fingerprint() for m in [NORTH, *changed]}) == 4
    text = roster.canonical(
        {"name": "north", "node_key": NORTH.node_key, "identity_key": NORTH.identity_key}
    )
    digest = hashlib.sha256(b"consilium hospital\n" + text).hexdigest()
    assert NORTH.fingerprint().replace(" ", "") == digest[:32]
    assert roster.same_fingerprint(digest[:32].upper(), NORTH.fingerprint())
    assert not roster.same_fingerprint(digest[:28], NORTH.fingerprint())
