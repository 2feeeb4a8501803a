"""Letters: what was written comes back, one spelling each, and anything else is refused quickly."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.messages import Reason, WireError
from federation.secure_aggregation import letters, shamir
from federation.secure_aggregation.masks import Opening
from tests.federation.secure_aggregation.parties import Parties

FIVE = Parties.of(5)
NAMES = FIVE.cohort.names
SURVIVORS = NAMES[:4]

Write = Callable[[Any], bytes]
Read = Callable[[bytes], Any]


def content() -> dict[str, tuple[Any, Write, Read]]:
    opening = FIVE.open(NAMES[0], NAMES, SURVIVORS)
    signatures = {name: FIVE.sign(name, NAMES, SURVIVORS) for name in SURVIVORS}
    return {
        "advert": (FIVE.cohort.adverts[1], letters.advert_to_bytes, letters.advert_from_bytes),
        "adverts": (FIVE.cohort.adverts, letters.adverts_to_bytes, letters.adverts_from_bytes),
        "sealed": (FIVE.sealed[NAMES[0]], letters.sealed_to_bytes, letters.sealed_from_bytes),
        "names": (SURVIVORS, letters.names_to_bytes, letters.names_from_bytes),
        "signatures": (signatures, letters.signatures_to_bytes, letters.signatures_from_bytes),
        "opening": (opening, letters.opening_to_bytes, letters.opening_from_bytes),
    }


CONTENT = content()
GOOD = {kind: write(value) for kind, (value, write, _) in CONTENT.items()}
RECORD = {"advert": 168, "adverts": 168, "sealed": 94, "names": 0, "signatures": 64, "opening": 34}

kinds = pytest.mark.parametrize("kind", CONTENT)


def read(kind: str, letter: bytes) -> Any:
    return CONTENT[kind][2](letter)


def is_refused(kind: str, letter: bytes) -> bool:
    """Refused, or content that is spelt so and not otherwise."""
    try:
        value = read(kind, letter)
    except WireError as error:
        return error.reason in (Reason.MALFORMED, Reason.TOO_LARGE)
    assert CONTENT[kind][1](value) == letter
    return False


@kinds
def test_there_and_back(kind: str) -> None:
    value, _, _ = CONTENT[kind]
    assert read(kind, GOOD[kind]) == value
    hospitals = {"advert": 1, "names": 4, "signatures": 4}.get(kind, 5)
    assert len(GOOD[kind]) == 4 + hospitals * (1 + len(NAMES[0]) + RECORD[kind])


def test_a_letter_byte_by_byte() -> None:
    assert letters.names_to_bytes(["b", "a1"]) == b"\x01\x03\x00\x02" + b"\x02a1" + b"\x01b"
    share = (5).to_bytes(33)
    opening = Opening({"b": share}, {"a": share})
    assert letters.opening_to_bytes(opening) == (
        b"\x01\x05\x00\x02" + b"\x01a\x02" + share + b"\x01b\x01" + share
    )
    assert letters.join(b"xy", b"") == b"\0\0\0\x02xy\0\0\0\0"


@kinds
def test_every_truncation_is_refused(kind: str) -> None:
    for length in range(len(GOOD[kind])):
        assert is_refused(kind, GOOD[kind][:length])


@kinds
def test_more_than_is_announced_is_refused(kind: str) -> None:
    assert is_refused(kind, GOOD[kind] + b"\0")
    assert is_refused(kind, GOOD[kind] * 2)


@kinds
@pytest.mark.parametrize("count", [0, 1, 3, 6, 999, 1000, 1001, 65535])
def test_other_counts_are_refused(kind: str, count: int) -> None:
    good = GOOD[kind]
    if int.from_bytes(good[2:4]) != count:
        assert is_refused(kind, good[:2] + count.to_bytes(2) + good[4:])


@kinds
def test_letters_of_another_kind_or_version_are_refused(kind: str) -> None:
    for other, letter in GOOD.items():
        if {kind, other} == {"advert", "adverts"}:
            continue
        assert is_refused(kind, letter) or kind == other
    assert is_refused(kind, b"\x02" + GOOD[kind][1:])


@kinds
def test_hospitals_out_of_order_or_twice_are_refused(kind: str) -> None:
    size = 1 + len(NAMES[0]) + RECORD[kind]
    rows = [GOOD[kind][4 + i : 4 + i + size] for i in range(0, len(GOOD[kind]) - 4, size)]
    for changed in (rows[::-1], [rows[0], *rows], rows + rows[-1:], rows[:1] * 2):
        if changed != rows:
            head = GOOD[kind][:2] + len(changed).to_bytes(2)
            assert is_refused(kind, head + b"".join(changed))


@pytest.mark.parametrize("name", [b"", b"A", b"a b", b"\xc3\xa9", b"a" * 42, b"-a", b"a\n", b"a\0"])
def test_names_that_no_roster_holds_are_refused(name: bytes) -> None:
    assert is_refused("names", b"\x01\x03\x00\x01" + bytes([len(name)]) + name)


def test_the_longest_name_and_the_largest_roster() -> None:
    names = [f"h{place:039d}z" for place in range(1000)]
    largest = letters.signatures_to_bytes(dict.fromkeys(names, bytes(64)))
    assert set(letters.signatures_from_bytes(largest)) == set(names)
    assert len(letters.adverts_to_bytes(FIVE.cohort.adverts)) * 200 < 4 << 20
    with pytest.raises(ValueError, match="1000"):
        letters.names_to_bytes([*names, "one-more"])
    one_more = sorted([*names, "one-more"])
    rows = b"".join(bytes([len(name)]) + name.encode() for name in one_more)
    assert is_refused("names", b"\x01\x03" + (1001).to_bytes(2) + rows)


def test_shares_that_are_none_are_refused() -> None:
    row = b"\x01\x05\x00\x01\x01a"
    share = (5).to_bytes(33)
    for kind in (0, 3, 255):
        assert is_refused("opening", row + bytes([kind]) + share)
    assert is_refused("opening", row + b"\x01" + shamir.PRIME.to_bytes(33))
    assert not is_refused("opening", row + b"\x01" + share)


@pytest.mark.parametrize("size", [0, 2**40, 2**64 - 1])
def test_sizes_out_of_range_are_refused(size: int) -> None:
    start = 4 + 1 + len(NAMES[0])
    letter = GOOD["advert"][:start] + size.to_bytes(8) + GOOD["advert"][start + 8 :]
    assert is_refused("advert", letter)


def test_one_advert_is_one() -> None:
    assert is_refused("advert", GOOD["adverts"])
    assert is_refused("advert", b"\x01\x01\x00\x00")


def test_what_cannot_be_written() -> None:
    share = (5).to_bytes(33)
    with pytest.raises(ValueError, match="both shares"):
        letters.opening_to_bytes(Opening({"a": share}, {"a": share}))
    with pytest.raises(ValueError, match="two adverts"):
        letters.adverts_to_bytes([FIVE.cohort.adverts[0]] * 2)
    with pytest.raises(ValueError, match="length"):
        letters.sealed_to_bytes({"a": bytes(93)})
    with pytest.raises(ValueError, match="name"):
        letters.names_to_bytes(["A"])


# --- fuzz -------------------------------------------------------------------------------------------


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(CONTENT)), st.binary(max_size=400))
def test_noise(kind: str, noise: bytes) -> None:
    is_refused(kind, noise)
    is_refused(kind, GOOD[kind][:4] + noise)


@settings(max_examples=800, deadline=None)
@given(st.sampled_from(sorted(CONTENT)), st.data())
def test_a_letter_with_a_piece_changed(kind: str, data: st.DataObject) -> None:
    good = GOOD[kind]
    start = data.draw(st.integers(0, len(good)))
    end = data.draw(st.integers(start, len(good)))
    piece = data.draw(st.one_of(st.binary(max_size=12), st.just(b""), st.just(good[start:end] * 2)))
    is_refused(kind, good[:start] + piece + good[end:])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=20), max_size=4), st.binary(max_size=30), st.integers(0, 4))
def test_parts(parts: list[bytes], noise: bytes, count: int) -> None:
    assert list(letters.split(letters.join(*parts), len(parts))) == parts
    try:
        found = letters.split(noise, count)
    except WireError as error:
        assert error.reason is Reason.MALFORMED
    else:
        assert letters.join(*found) == noise
    with pytest.raises(WireError):
        letters.split(letters.join(*parts) + b"\0", len(parts))
    with pytest.raises(WireError):
        letters.split(letters.join(*parts), len(parts) + 1)


@kinds
def test_oversized_letters_cost_no_memory(kind: str) -> None:
    huge = GOOD[kind][:2] + b"\x03\xe8" + bytes(8 << 20)
    longest = b"\x01" + GOOD[kind][1:2] + b"\x03\xe8" + b"\x01a" * 20_000
    tracemalloc.start()
    for letter in (huge, longest, GOOD[kind] + bytes(100_000)):
        with pytest.raises(WireError) as error:
            read(kind, letter)
        if letter is huge:
            assert error.value.reason is Reason.TOO_LARGE
    with pytest.raises(WireError):
        letters.split(b"\xff\xff\xff\xff" + huge[:1000], 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
