"""One list of hospitals and one pair of sums a round, signed by more than two thirds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federation.messages import Reason, WireError
from federation.secure_aggregation import letters
from federation.secure_aggregation.agreement import Agreement, Proposal, Signed
from federation.secure_aggregation.keys import Occasion

SIX = ("a", "b", "c", "d", "e", "f")
KEYS = {name: Ed25519PrivateKey.generate() for name in SIX}
IDENTITIES = {name: key.public_key() for name, key in KEYS.items()}
AGREEMENT = Agreement(
    Occasion("run", 2, 0, "0" * 64), SIX, b"k" * 32, b"a" * 32, b"m" * 32, least=3
)
PROPOSAL = Proposal.of(SIX[:5], b"figures", b"update")


def signatures(agreement: Agreement, proposal: Proposal, by: Iterable[str]) -> dict[str, bytes]:
    return {name: agreement.sign(proposal, name, KEYS[name]) for name in by}


def reason(ask: Any, *given: Any) -> Reason:
    with pytest.raises(WireError) as refusal:
        ask(*given)
    return refusal.value.reason


def test_five_of_six_are_enough_and_four_are_not() -> None:
    assert [replace(AGREEMENT, members=SIX[:n]).threshold for n in (3, 4, 5, 6)] == [3, 3, 4, 5]
    told = signatures(AGREEMENT, PROPOSAL, SIX[:5])
    AGREEMENT.require(PROPOSAL, told, IDENTITIES)
    del told["a"]
    assert reason(AGREEMENT.require, PROPOSAL, told, IDENTITIES) == Reason.TOO_FEW_HOSPITALS


@pytest.mark.parametrize("members", [3, 4, 5, 6, 7, 8, 9, 10, 30])
def test_two_statements_never_both_have_enough(members: int) -> None:
    """While fewer than a third sign twice: the two sets of signers meet in an honest hospital."""
    names = tuple(f"h{number:02}" for number in range(members))
    threshold = replace(AGREEMENT, members=names).threshold
    corrupted = (members - 1) // 3
    for first, second in product(range(members + 1), repeat=2):
        honest = members - corrupted
        if first >= threshold and second >= threshold:
            assert first + second - 2 * corrupted > honest


def test_each_part_of_the_statement_is_signed() -> None:
    told = signatures(AGREEMENT, PROPOSAL, SIX[:5])
    others = [
        replace(AGREEMENT, occasion=replace(AGREEMENT.occasion, run="another")),
        replace(AGREEMENT, occasion=replace(AGREEMENT.occasion, round=3)),
        replace(AGREEMENT, occasion=replace(AGREEMENT.occasion, roster="1" * 64)),
        replace(AGREEMENT, members=SIX[:5]),
        replace(AGREEMENT, key_id=b"K" * 32),
        replace(AGREEMENT, adverts=b"A" * 32),
        replace(AGREEMENT, model=b"M" * 32),
    ]
    for other in others:
        assert reason(other.require, PROPOSAL, told, IDENTITIES) == Reason.BAD_SIGNATURE
    for proposal in (
        Proposal.of(SIX, b"figures", b"update"),
        Proposal.of(SIX[:5], b"other figures", b"update"),
        Proposal.of(SIX[:5], b"figures", b"another update"),
        Proposal.of(SIX[:5], b"update", b"figures"),
    ):
        assert reason(AGREEMENT.require, proposal, told, IDENTITIES) == Reason.BAD_SIGNATURE


def test_a_signature_counts_for_its_hospital_alone() -> None:
    told = signatures(AGREEMENT, PROPOSAL, SIX[:5])
    swapped = told | {"a": told["b"]}
    assert reason(AGREEMENT.require, PROPOSAL, swapped, IDENTITIES) == Reason.BAD_SIGNATURE
    stranger = told | {"g": told["a"]}
    assert reason(AGREEMENT.require, PROPOSAL, stranger, IDENTITIES) == Reason.BAD_SIGNATURE
    left_out = {**told, "f": AGREEMENT.sign(replace(PROPOSAL, survivors=SIX), "f", KEYS["f"])}
    assert reason(AGREEMENT.require, PROPOSAL, left_out, IDENTITIES) == Reason.BAD_SIGNATURE


@pytest.mark.parametrize(
    ("survivors", "signer", "why"),
    [
        (SIX[:4], "a", Reason.TOO_FEW_HOSPITALS),
        (SIX[:5], "f", Reason.SURVIVORS_DIFFER),
        (("b", "a", "c", "d", "e"), "a", Reason.SURVIVORS_DIFFER),
        (("a", "a", "b", "c", "d"), "a", Reason.SURVIVORS_DIFFER),
        ((*SIX[:5], "g"), "a", Reason.SURVIVORS_DIFFER),
    ],
)
def test_lists_that_are_not_signed(survivors: tuple[str, ...], signer: str, why: Reason) -> None:
    proposal = replace(PROPOSAL, survivors=survivors)
    assert reason(AGREEMENT.sign, proposal, signer, KEYS["a"]) == why


def test_a_hospital_s_own_least_counts() -> None:
    strict = replace(AGREEMENT, least=6)
    assert reason(strict.sign, PROPOSAL, "a", KEYS["a"]) == Reason.TOO_FEW_HOSPITALS
    told = signatures(AGREEMENT, PROPOSAL, SIX[:5])
    assert reason(strict.require, PROPOSAL, told, IDENTITIES) == Reason.TOO_FEW_HOSPITALS


def test_what_was_signed_is_what_is_opened() -> None:
    PROPOSAL.require_figures(b"figures")
    PROPOSAL.require_update(b"update")
    assert reason(PROPOSAL.require_figures, b"update") == Reason.BAD_SIGNATURE
    assert reason(PROPOSAL.require_update, b"") == Reason.BAD_SIGNATURE


def test_letters_have_one_spelling() -> None:
    assert Proposal.from_bytes(PROPOSAL.to_bytes()) == PROPOSAL
    signed = Signed(PROPOSAL, b"m" * 32, signatures(AGREEMENT, PROPOSAL, SIX[:5]))
    whole = signed.to_bytes()
    assert Signed.from_bytes(whole) == signed
    for broken in (b"", whole[:-1], whole + b"x", letters.join(b"", b"m" * 32, b"")):
        assert reason(Signed.from_bytes, broken) == Reason.MALFORMED
    short = letters.join(letters.names_to_bytes(SIX), b"m" * 32, b"m" * 31)
    assert reason(Proposal.from_bytes, short) == Reason.MALFORMED
    of_no_model = letters.join(PROPOSAL.to_bytes(), b"", letters.signatures_to_bytes({}))
    assert reason(Signed.from_bytes, of_no_model) == Reason.MALFORMED
