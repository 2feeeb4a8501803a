"""A hospital's side of an encrypted sum, against a coordinator that does not keep to the protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client_app import app
from client_app.patients import find_patients
from client_app.site import Policy
from federation import roster, wire
from federation.messages import Phase, Reason, Request, WireError
from federation.secure_aggregation import ciphertexts, ckks, letters, linear_mac, scheme, sealing
from federation.secure_aggregation.agreement import Signed
from federation.secure_aggregation.ciphertexts import MODULUS, RING, Packing, pack_residues
from federation.secure_aggregation.ckks import Ckks, HospitalKey
from federation.secure_aggregation.encryption import run_of
from federation.secure_aggregation.sealing import Meeting, SealingAdvert
from tests.encrypted import CKKS, Lead, Work, encrypted, held, home, model_file, refused, ring_file
from tests.hospitals import Hospitals, hospitals, train_quickly

sealapi = pytest.importorskip("tenseal.sealapi", reason="the extra [ckks] is not installed")
FOUR = ("east", "hill", "lake", "north")  # 3 of 4 are needed
_runs = iter(range(10_000))


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    return hospitals(tmp_path_factory.mktemp("four"), 4, patients=6)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    return train_quickly(monkeypatch)


@pytest.fixture
def lead(four: Hospitals, trained: list[tuple[str, int]]) -> Lead:
    """Of a new run each time."""
    return Lead(four, encrypted(), f"run-{next(_runs)}")


def test_two_rounds_by_the_protocol_can_be_opened(lead: Lead) -> None:
    """What the tests below take a step out of."""
    for _ in range(2):
        assert lead.whole_round()[0] > 0
    models = [held(lead.hospitals, name, lead.of, lead.run) for name in FOUR]
    for other in models[1:]:
        assert wire.pack(other.model) == wire.pack(models[0].model)
    assert wire.pack(models[0].model) != wire.pack(lead.model)


# --- the key --------------------------------------------------------------------------------------


def test_a_swapped_advert_gets_no_key(lead: Lead) -> None:
    """The coordinator puts a key of its own in the place of a hospital's, to have the run's sealed to
    it."""
    lead.advertise()
    told = letters.sealing_adverts_from_bytes(lead.adverts)
    meeting = Meeting(run_of(lead.run, lead.of), lead.hospitals.roster.sha256())
    _, own = sealing.advertise(Ed25519PrivateKey.generate(), "lake", 1, meeting)
    swaps = {
        "all its own": own,
        "its key": replace(told["lake"], key=own.key),
        "its size": replace(told["lake"], size=77),
        "another hospital's": replace(told["hill"], hospital="lake"),
    }
    for advert in swaps.values():
        letter = letters.join(b"", letters.sealing_adverts_to_bytes(told | {"lake": advert}))
        refused(
            lead,
            "east",
            Reason.BAD_SIGNATURE,
            lambda x=letter: lead.ask("east", Phase.SHARE, x),
        )
    stranger = letters.sealing_adverts_to_bytes(
        told | {"mallory": replace(own, hospital="mallory")}
    )
    refused(
        lead,
        "east",
        Reason.ROSTER_DIFFERS,
        lambda: lead.ask("east", Phase.SHARE, letters.join(b"", stranger)),
    )


def test_a_key_that_the_coordinator_made_is_not_taken(lead: Lead) -> None:
    """Sealed to the hospital by its own advert, in a hospital's name or in its own."""
    lead.advertise()
    told = letters.sealing_adverts_from_bytes(lead.adverts)
    meeting = Meeting(run_of(lead.run, lead.of), lead.hospitals.roster.sha256())
    made, own = Ckks().make_key(), Ed25519PrivateKey.generate()
    public = made.public.to_bytes()
    identities = lead.hospitals.roster.identities()
    for sealer, reason in (("east", Reason.BAD_SIGNATURE), ("mallory", Reason.ROSTER_DIFFERS)):
        one = {"hill": told["hill"]}
        box = sealing.seal_key(made.to_bytes(), public, one, identities, own, sealer, meeting)
        letter = letters.join(public, lead.adverts, sealer.encode(), box["hill"])
        refused(lead, "hill", reason, lambda x=letter: lead.ask("hill", Phase.WORK, x))
    assert not home(lead.hospitals, "hill", lead.run).ring(lead.of.sha256()).key


def test_boxes_of_others_and_of_other_runs_are_refused(lead: Lead, trained: list[Any]) -> None:
    lead.advertise()
    lead.share()
    other = Lead(lead.hospitals, lead.of, lead.run + "-other")
    other.advertise()
    other.share()
    boxes = {"another hospital's": lead.boxes["lake"], "another run's": other.boxes["hill"]}
    for sealer, box in boxes.values():
        letter = letters.join(lead.public, lead.adverts, sealer.encode(), box)
        refused(
            lead, "hill", Reason.BAD_SIGNATURE, lambda x=letter: lead.ask("hill", Phase.WORK, x)
        )
    sealer, box = lead.boxes["hill"]
    swapped = letters.join(other.public, lead.adverts, sealer.encode(), box)
    refused(lead, "hill", Reason.BAD_SIGNATURE, lambda: lead.ask("hill", Phase.WORK, swapped))
    assert not trained


def test_a_box_opens_with_its_hospital_s_private_key_alone(lead: Lead) -> None:
    lead.advertise()
    lead.share()
    sealer, box = lead.boxes["hill"]
    meeting = Meeting(run_of(lead.run, lead.of), lead.hospitals.roster.sha256())
    maker = lead.hospitals.roster.identities()[sealer]
    rings = {name: home(lead.hospitals, name, lead.run).ring(lead.of.sha256()) for name in FOUR}

    def opened(name: str) -> bytes:
        private = sealing.X25519PrivateKey.from_private_bytes(rings[name].private)
        return sealing.open_key(box, lead.public, private, "hill", sealer, maker, meeting)

    assert opened("hill") == rings["east"].key
    for name in ("lake", "north"):
        with pytest.raises(sealing.WireError):
            opened(name)
    file = ring_file(lead.hospitals, "hill", lead.run)
    assert file.stat().st_mode & 0o077 == 0
    assert file.parent.stat().st_mode & 0o077 == 0


def test_one_key_serves_a_run(lead: Lead) -> None:
    """A second maker's is taken as long as nothing was encrypted under the first, and not after."""
    lead.advertise()
    lead.share("east")
    lead.work(["hill"])
    lead.share("lake")
    refused(
        lead, "hill", Reason.BAD_KEY, lambda: lead.ask("hill", Phase.WORK, lead.to_work("hill"))
    )
    lead.ask("east", Phase.WORK, lead.to_work("east"))  # it made one, and used none


def test_a_roster_that_differs_is_refused(lead: Lead) -> None:
    members, version = lead.hospitals.roster.members, lead.hospitals.roster.version
    letter = roster.Roster("a", members, version + 1).sha256().encode()
    refused(lead, "east", Reason.ROSTER_DIFFERS, lambda: lead.ask("east", Phase.ADVERTISE, letter))


def test_the_hospital_s_own_least_counts(lead: Lead, monkeypatch: pytest.MonkeyPatch) -> None:
    site = lead.hospitals.sites["east"]
    policy = Policy(code="any", least_hospitals=4, least_patients=1)
    strict = site.model_copy(update={"policy": policy})
    monkeypatch.setitem(lead.hospitals.sites, "east", strict)
    refused(
        lead,
        "east",
        Reason.TOO_FEW_HOSPITALS,
        lambda: lead.ask("east", Phase.ADVERTISE, lead.roster),
    )


# --- work -----------------------------------------------------------------------------------------


def test_one_vector_is_encrypted_for_a_round(lead: Lead, trained: list[Any]) -> None:
    """Not figures without an update, and none after it was signed with other hospitals' weights; of
    other weights before it is for another sum."""
    work = lead.work()
    assert len(trained) == 4
    letter = lead.to_work("east")
    lead.ask("east", Phase.WORK, letter)
    assert len(trained) == 4  # the same again is for nothing
    for changes in ({"train": False, "evaluate": True}, {"evaluate": True}):
        refused(
            lead,
            "east",
            Reason.REPLAYED,
            lambda c=changes: lead.ask("east", Phase.WORK, letter, **c),
        )
    told = letters.sealing_adverts_from_bytes(lead.adverts)
    del told["north"]
    fewer = letters.sealing_adverts_to_bytes(told)
    sealer, box = lead.boxes["east"]
    other = letters.join(lead.public, fewer, sealer.encode(), box)
    lead.sign(work.proposal(), ["hill"])
    theirs = lead.boxes["hill"]
    other = letters.join(lead.public, fewer, theirs[0].encode(), theirs[1])
    refused(lead, "hill", Reason.REPLAYED, lambda: lead.ask("hill", Phase.WORK, other))
    other = letters.join(lead.public, fewer, sealer.encode(), box)
    _, blob = lead.ask("east", Phase.WORK, other)
    with pytest.raises(WireError) as refusal:
        lead.summed({"east": blob})
    assert refusal.value.reason is Reason.WRONG_ROUND


def test_a_round_that_was_opened_is_over(lead: Lead, trained: list[Any]) -> None:
    lead.whole_round()
    lead.round = 1
    refused(
        lead, "east", Reason.REPLAYED, lambda: lead.ask("east", Phase.WORK, lead.to_work("east"))
    )


def test_no_round_is_worked_for_with_the_model_of_another(lead: Lead, trained: list[Any]) -> None:
    """A hospital that missed two rounds and caught up gives nothing to the older of them any more."""
    three = FOUR[:3]
    for _ in range(2):
        work = lead.work(three)
        signed = lead.sign(work.proposal())
        for name in three:
            lead.open(name, signed, work.parcel)
        lead.missed[lead.round] = (lead.adverts, signed.to_bytes(), work.parcel)
        lead.round += 1
    letter = lead.to_work("north")
    refused(lead, "north", Reason.NO_MODEL, lambda: lead.ask("north", Phase.WORK, letter))
    refused(lead, "north", Reason.NO_MODEL, lambda: lead.ask("north", Phase.WORK, letter, base=7))
    both = letters.join(*lead.missed[1], *lead.missed[2])
    swapped = letters.join(*lead.missed[2], *lead.missed[1])
    refused(
        lead,
        "north",
        Reason.BAD_SIGNATURE,
        lambda: lead.ask("north", Phase.WORK, letter, swapped, base=0),
    )
    cut = both[:-1]
    refused(
        lead, "north", Reason.MALFORMED, lambda: lead.ask("north", Phase.WORK, letter, cut, base=0)
    )
    lead.ask("north", Phase.WORK, letter, both, base=0)
    lead.round = 2
    refused(lead, "north", Reason.REPLAYED, lambda: lead.ask("north", Phase.WORK, letter, base=1))


def test_nothing_is_encrypted_without_a_key(lead: Lead, trained: list[Any]) -> None:
    lead.advertise()
    lead.share()
    ring_file(lead.hospitals, "hill", lead.run).unlink()
    letter = lead.to_work("hill")
    refused(lead, "hill", Reason.NO_KEYS, lambda: lead.ask("hill", Phase.WORK, letter))
    joined = letters.join(lead.public, lead.adverts)
    refused(lead, "hill", Reason.NO_KEYS, lambda: lead.ask("hill", Phase.SHARE, joined))
    assert not trained


# --- who is in the sum ----------------------------------------------------------------------------


@pytest.fixture
def worked(lead: Lead) -> tuple[Lead, Work]:
    return lead, lead.work()


@pytest.mark.parametrize(
    ("survivors", "reason"),
    [
        ((), Reason.TOO_FEW_HOSPITALS),
        (("east",), Reason.TOO_FEW_HOSPITALS),
        (FOUR[:2], Reason.TOO_FEW_HOSPITALS),
        (FOUR[1:], Reason.SURVIVORS_DIFFER),  # without the one that is asked
        ((*FOUR, "south"), Reason.SURVIVORS_DIFFER),
    ],
)
def test_lists_that_no_hospital_signs(
    survivors: tuple[str, ...], reason: Reason, worked: tuple[Lead, Work]
) -> None:
    lead, work = worked
    letter = replace(work.proposal(), survivors=survivors).to_bytes()
    refused(lead, "east", reason, lambda: lead.ask("east", Phase.SIGN, letter))


def test_a_hospital_signs_one_list_and_one_sum(worked: tuple[Lead, Work]) -> None:
    lead, work = worked
    proposal = work.proposal()
    first = lead.sign(proposal, ["east"])
    assert lead.sign(proposal, ["east"]) == first
    others = [
        replace(proposal, survivors=FOUR[:3]),
        replace(proposal, figures=bytes(32)),
        replace(proposal, update=bytes(32)),
    ]
    for other in others:
        refused(
            lead,
            "east",
            Reason.SURVIVORS_DIFFER,
            lambda x=other: lead.ask("east", Phase.SIGN, x.to_bytes()),
        )


def test_nothing_is_signed_before_the_work(lead: Lead) -> None:
    work = lead.work(FOUR[1:])
    letter = replace(work.proposal(), survivors=FOUR).to_bytes()
    refused(lead, "east", Reason.NO_KEYS, lambda: lead.ask("east", Phase.SIGN, letter))


# --- opening --------------------------------------------------------------------------------------


def unopened(lead: Lead, name: str) -> None:
    """Nothing has been decrypted: neither the figures nor the model."""
    assert home(lead.hospitals, name, lead.run).state(lead.of.sha256()) is None


def test_nothing_is_opened_for_two_lists(worked: tuple[Lead, Work]) -> None:
    """A part signed one list and a part another: neither has 3 signatures, and theirs do not mix."""
    lead, work = worked
    fewer = lead.summed({name: work.blobs[name] for name in FOUR[:3]})
    one = lead.sign(work.proposal(), ["lake", "north"])
    two = lead.sign(fewer.proposal(), ["east", "hill"])
    mixed = {**one.signatures, **two.signatures}
    for name, signed, parcel, reason in (
        ("lake", one, work.parcel, Reason.TOO_FEW_HOSPITALS),
        ("east", two, fewer.parcel, Reason.TOO_FEW_HOSPITALS),
        ("lake", replace(one, signatures=mixed), work.parcel, Reason.BAD_SIGNATURE),
        ("lake", replace(two, signatures=mixed), fewer.parcel, Reason.SURVIVORS_DIFFER),
    ):
        refused(lead, name, reason, lambda n=name, s=signed, p=parcel: lead.open(n, s, p))
        unopened(lead, name)


def test_signatures_of_another_run_or_round_open_nothing(lead: Lead) -> None:
    lead.whole_round()
    old = Signed.from_bytes(lead.missed[1][1])
    work = lead.work()
    signed = lead.sign(work.proposal())
    other = Lead(lead.hospitals, lead.of, lead.run + "-other")
    theirs = other.work()
    others = other.sign(theirs.proposal())
    for signatures in (old.signatures, others.signatures):
        forged = replace(signed, signatures=signatures)
        refused(
            lead, "east", Reason.BAD_SIGNATURE, lambda s=forged: lead.open("east", s, work.parcel)
        )
    refused(lead, "east", Reason.SURVIVORS_DIFFER, lambda: lead.open("east", old, work.parcel))
    assert lead.open("east", signed, work.parcel)


def test_no_other_total_than_the_signed_one_is_decrypted(
    worked: tuple[Lead, Work], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each altered total would ask one question about the key: refused, or not?"""
    lead, work = worked
    signed = lead.sign(work.proposal())
    decrypted: list[Any] = []
    real = Ckks.partial_decrypt

    def counting(self: Ckks, *args: Any) -> Any:
        decrypted.append(args)
        return real(self, *args)

    monkeypatch.setattr(Ckks, "partial_decrypt", counting)
    alone = lead.summed({"hill": work.blobs["hill"]})
    for figures, update in (
        (shifted(lead, work.figures, "_figures"), work.update),
        (alone.figures, work.update),
        (alone.figures, alone.update),
    ):
        parcel = letters.join(figures, update)
        refused(lead, "east", Reason.BAD_SIGNATURE, lambda p=parcel: lead.open("east", signed, p))
    assert not decrypted
    for update in (shifted(lead, work.update, "_update"), alone.update, b""):
        parcel = letters.join(work.figures, update)
        refused(lead, "east", Reason.BAD_SIGNATURE, lambda p=parcel: lead.open("east", signed, p))
    assert len(decrypted) == 3  # the figures alone, which were signed
    unopened(lead, "east")
    lead.open("east", signed, work.parcel)
    assert held(lead.hospitals, "east", lead.of, lead.run).round == 1


def lying(lead: Lead, work: Work, which: str) -> Work:
    """What a coordinator could have signed in place of the sum."""
    alone = {"hill": work.blobs["hill"]}
    if which == "one hospital's, as it is":
        return lead.summed(alone)
    one, whole = lead.summed(alone), work
    if which == "one hospital's, under a header with all":
        return replace(
            work,
            figures=with_c0_of(lead, whole.figures, one.figures, "_figures"),
            update=with_c0_of(lead, whole.update, one.update, "_update"),
        )
    if which == "the sum of three, under a header with all":
        both = lead.summed({n: work.blobs[n] for n in FOUR[:3]})
        return replace(work, figures=with_c0_of(lead, whole.figures, both.figures, "_figures"))
    if which == "the sum, shifted by a constant":
        return replace(
            work,
            figures=shifted(lead, work.figures, "_figures"),
            update=shifted(lead, work.update, "_update"),
        )
    return replace(work, update=shifted(lead, work.update, "_update"))


@pytest.mark.parametrize(
    ("which", "reason"),
    [
        ("one hospital's, as it is", Reason.TOO_FEW_HOSPITALS),
        ("one hospital's, under a header with all", Reason.MALFORMED),
        ("the sum of three, under a header with all", Reason.MALFORMED),
        ("the sum, shifted by a constant", Reason.BAD_SIGNATURE),
        ("the update alone, shifted by a constant", Reason.BAD_SIGNATURE),
    ],
)
def test_a_signed_lie_is_not_opened_and_ends_the_run(
    which: str, reason: Reason, worked: tuple[Lead, Work]
) -> None:
    """Hospitals sign digests and cannot know what is in them. What comes out of a ciphertext that is
    not the sum is noise, or has no tag; no figure leaves, and no other sum of the round is opened."""
    lead, work = worked
    lie = lying(lead, work, which)
    signed = lead.sign(lie.proposal(FOUR))
    for name in ("east", "hill"):
        refused(lead, name, reason, lambda n=name: lead.open(n, signed, lie.parcel))
        unopened(lead, name)
    letter = work.proposal().to_bytes()
    refused(lead, "east", Reason.SURVIVORS_DIFFER, lambda: lead.ask("east", Phase.SIGN, letter))
    lead.round = 2
    behind = letters.join(lead.adverts, signed.to_bytes(), lie.parcel)
    if which.startswith("the sum of three"):
        return  # its update is the true one
    refused(
        lead,
        "east",
        reason,
        lambda: lead.ask("east", Phase.WORK, lead.to_work("east"), behind, base=0),
    )


def test_the_mutant_without_tags_would_open_a_shifted_sum(
    worked: tuple[Lead, Work], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it is the tag that refuses it, and nothing by chance."""
    lead, work = worked
    lie = lying(lead, work, "the sum, shifted by a constant")
    signed = lead.sign(lie.proposal(FOUR))
    monkeypatch.setattr(linear_mac, "expected", lambda *_: 0)
    monkeypatch.setattr(linear_mac, "of_digits", lambda *_: 0)
    told = np.frombuffer(lead.open("east", signed, lie.parcel), "<i8")
    own = [figures_of(lead, name, work.blobs[name]) for name in FOUR]
    np.testing.assert_array_equal(told - np.sum(own, axis=0), [7] + [0] * (len(told) - 1))


def figures_of(lead: Lead, name: str, blob: bytes) -> Any:
    """What a hospital that conspires could read of another: one blob, by the run's key alone."""
    ring = home(lead.hospitals, "east", lead.run).ring(lead.of.sha256())
    key = HospitalKey.from_bytes(ring.key, ring.public)
    vectors = replace(lead.vectors(), members=lead.names)
    of = vectors._figures
    figures, _ = letters.split(blob, 2)
    parsed = ciphertexts.Blob.parse(figures, key.public, of)
    packing = Packing.of(of)
    seal = ckks._Seal(key.seed, packing.scale)
    try:
        seeds = parsed.parts[0].seeds
        work = (parsed.residues(slice(0, packing.ciphertexts)), [seeds])
        limbs = packing.unpack(ckks._decrypt_rows(seal, work))
    finally:
        seal.close()
    size = of.size - linear_mac.length(of.bits)
    return np.array(scheme.from_limbs(limbs[:size]), np.int64)


def test_any_hospital_that_conspires_can_read_another_s_work(worked: tuple[Lead, Work]) -> None:
    """What ckks does not promise, so that nobody believes that it does."""
    lead, work = worked
    for name in FOUR:
        cohort = find_patients(lead.hospitals.sites[name], lead.of).cohort
        assert figures_of(lead, name, work.blobs[name])[0] == cohort.training_patients


def test_nothing_is_opened_that_was_not_signed_here(worked: tuple[Lead, Work]) -> None:
    lead, work = worked
    signed = lead.sign(work.proposal(), FOUR[:3])
    refused(lead, "north", Reason.SURVIVORS_DIFFER, lambda: lead.open("north", signed, work.parcel))
    lead.sign(work.proposal(), ["north"])
    lead.open("north", signed, work.parcel)  # three signatures are enough for it too


def test_after_opening_no_other_list_is_opened(worked: tuple[Lead, Work]) -> None:
    """Even with good signatures over the other list, from hospitals that conspire."""
    lead, work = worked
    signed = lead.sign(work.proposal())
    first = lead.open("east", signed, work.parcel)
    assert lead.open("east", signed, work.parcel) == first
    fewer = lead.summed({name: work.blobs[name] for name in FOUR[:3]})
    forged = replace(signed, proposal=fewer.proposal())
    refused(lead, "east", Reason.BOTH_SHARES, lambda: lead.open("east", forged, fewer.parcel))
    refused(lead, "hill", Reason.SURVIVORS_DIFFER, lambda: lead.open("hill", forged, fewer.parcel))


def test_figures_do_not_go_out_of_a_model_that_is_not_the_others(lead: Lead) -> None:
    """A hospital whose disk gives another model than it was: found before it moves, and mended."""
    lead.whole_round()
    run = home(lead.hospitals, "lake", lead.run)
    own = held(lead.hospitals, "lake", lead.of, lead.run)
    other = {n: a + np.float32(0.5) if a.dtype.kind == "f" else a for n, a in own.model.items()}
    run.keep_state(replace(own, model=other))
    work = lead.work()
    told = {
        name: letters.split(lead.ask(name, Phase.SIGN, work.proposal().to_bytes())[0], 2)
        for name in FOUR
    }
    assert told["lake"][0] != told["east"][0]
    most = {name: signature for name, (model, signature) in told.items() if name != "lake"}
    signed = Signed(work.proposal(), told["east"][0], most)
    forged = replace(signed, model=bytes(32))
    refused(lead, "lake", Reason.BAD_SIGNATURE, lambda: lead.open("lake", forged, work.parcel))
    assert model_file(lead.hospitals, "lake", lead.run).exists()  # nothing was proven
    refused(lead, "lake", Reason.NO_MODEL, lambda: lead.open("lake", signed, work.parcel))
    lead.open("east", signed, work.parcel)
    lead.missed[2] = (lead.adverts, signed.to_bytes(), work.parcel)
    lead.round = 3
    both = letters.join(*lead.missed[1], *lead.missed[2])
    lead.ask("lake", Phase.WORK, lead.to_work("lake"), both, base=0)
    mended, good = (held(lead.hospitals, n, lead.of, lead.run) for n in ("lake", "east"))
    assert wire.pack(mended.model) == wire.pack(good.model)


# --- whose rules ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"rounds": 1},
        {"secure_aggregation": CKKS | {"release": "coordinator"}},
        {"strategy": {"name": "fedadam"}},
        {"weighting": "examples"},
    ],
)
def test_a_run_has_one_experiment(
    changes: dict[str, Any], lead: Lead, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model of a longer run, or of one that keeps its model, is not to be had by the rules of
    another experiment under the same name."""
    lead.whole_round()
    site = lead.hospitals.sites["east"]
    policy = Policy(code="any", least_patients=1, release="coordinator")
    monkeypatch.setitem(lead.hospitals.sites, "east", site.model_copy(update={"policy": policy}))
    other = encrypted(**changes)
    for phase, letter in ((Phase.RELEASE, b""), (Phase.ADVERTISE, lead.roster)):
        refused(
            lead,
            "east",
            Reason.REFUSED_EXPERIMENT,
            lambda p=phase, x=letter: lead.ask("east", p, x, of=other, train=False),
        )


def test_hospitals_with_different_rules_do_not_meet(lead: Lead) -> None:
    """One is given another experiment under the run's name: its key and its part are of another run."""
    lead.advertise()
    told = letters.sealing_adverts_from_bytes(lead.adverts)
    other = Lead(lead.hospitals, encrypted(weighting="examples"), lead.run + "-b")
    strange = SealingAdvert.from_bytes(other.ask("lake", Phase.ADVERTISE, lead.roster)[0], "lake")
    mixed = letters.sealing_adverts_to_bytes(told | {"lake": strange})
    refused(
        lead,
        "east",
        Reason.BAD_SIGNATURE,
        lambda: lead.ask("east", Phase.SHARE, letters.join(b"", mixed)),
    )
    assert run_of("a", lead.of) != run_of("a", other.of)


@pytest.mark.parametrize("round_", [1, 2, 3])
def test_the_model_leaves_after_the_last_round_where_all_say_so(
    round_: int, four: Hospitals, trained: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    of = encrypted(rounds=2, secure_aggregation=CKKS | {"release": "coordinator"})
    lead = Lead(four, of, f"run-{next(_runs)}")
    open_policy = Policy(code="any", least_patients=1, release="coordinator")
    for name, site in list(four.sites.items()):
        monkeypatch.setitem(four.sites, name, site.model_copy(update={"policy": open_policy}))
    for _ in range(round_ - 1):
        lead.whole_round()
    if round_ < 3:
        refused(
            lead,
            "east",
            Reason.REFUSED_RELEASE,
            lambda: lead.ask("east", Phase.RELEASE, b"", train=False),
        )
        return
    _, blob = lead.ask("east", Phase.RELEASE, b"", train=False)
    assert blob == wire.pack(held(four, "hill", of, lead.run).model)
    closed = Policy(code="any", least_patients=1)
    site = four.sites["east"]
    monkeypatch.setitem(four.sites, "east", site.model_copy(update={"policy": closed}))
    refused(
        lead,
        "east",
        Reason.REFUSED_RELEASE,
        lambda: lead.ask("east", Phase.RELEASE, b"", train=False),
    )


def test_a_model_that_was_not_to_leave_does_not(lead: Lead) -> None:
    for _ in range(3):
        lead.whole_round()
    refused(
        lead,
        "east",
        Reason.REFUSED_RELEASE,
        lambda: lead.ask("east", Phase.RELEASE, b"", train=False),
    )


# --- what is on the disk --------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["cut off", "a bit", "nothing", "no json"])
def test_a_damaged_model_is_none(fault: str, lead: Lead) -> None:
    lead.whole_round()
    file = model_file(lead.hospitals, "east", lead.run)
    whole = file.read_bytes()
    middle = len(whole) // 2
    file.write_bytes(
        {
            "cut off": whole[:-5],
            "a bit": flipped(whole, middle),
            "nothing": b"",
            "no json": b"{" * 500,
        }[fault]
    )
    assert home(lead.hospitals, "east", lead.run).state(lead.of.sha256()) is None
    letter = lead.to_work("east")
    refused(lead, "east", Reason.NO_MODEL, lambda: lead.ask("east", Phase.WORK, letter))
    lead.ask("east", Phase.WORK, letter, letters.join(*lead.missed[1]), base=0)
    mended, good = (held(lead.hospitals, n, lead.of, lead.run) for n in ("east", "hill"))
    assert mended.round == 1
    assert wire.pack(mended.model) == wire.pack(good.model)


# --- nonsense -------------------------------------------------------------------------------------

BYTES = st.one_of(st.binary(max_size=200), st.binary(min_size=4, max_size=60).map(lambda b: b * 9))


@pytest.fixture(scope="module")
def midway(four: Hospitals) -> Iterator[tuple[Lead, dict[Phase, tuple[bytes, bytes]]]]:
    """A second round that all but one worked for, and a good letter and blob of each step."""
    with pytest.MonkeyPatch.context() as patch:
        train_quickly(patch)
        lead = Lead(four, encrypted(), "midway")
        lead.whole_round()
        work = lead.work(FOUR[:3])
        signed = lead.sign(work.proposal())
        for name in FOUR[1:3]:
            lead.open(name, signed, work.parcel)
        late = letters.join(*lead.missed[1])
        good = {
            Phase.ADVERTISE: (lead.roster, b""),
            Phase.SHARE: (letters.join(lead.public, lead.adverts), b""),
            Phase.WORK: (lead.to_work("north"), late),
            Phase.SIGN: (work.proposal().to_bytes(), b""),
            Phase.OPEN: (signed.to_bytes(), work.parcel),
        }
        yield lead, good


def broken(data: st.DataObject, whole: bytes) -> bytes:
    if not whole:
        return data.draw(BYTES)
    cut = data.draw(st.integers(0, len(whole) - 1))
    return data.draw(
        st.sampled_from(
            [whole[:cut], whole + b"\0", flipped(whole, cut), whole[cut:] + b"x", whole * 2]
        )
    )


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_whatever_comes_gets_a_reason(
    data: st.DataObject,
    midway: tuple[Lead, dict[Phase, tuple[bytes, bytes]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lead, good = midway
    monkeypatch.setattr("client_app.plain_round._train", must_not_train)
    phase = data.draw(st.sampled_from(list(Phase)))
    name = data.draw(st.sampled_from(["east", "north"]))  # one is to open, one to work
    letter, blob = data.draw(BYTES), data.draw(BYTES)
    if phase in good and data.draw(st.booleans()):
        letter, blob = good[phase]
        which = data.draw(st.sampled_from(["letter", "blob", "both", "neither"]))
        if which in ("letter", "both"):
            letter = broken(data, letter)
        if which in ("blob", "both"):
            blob = broken(data, blob)
    request = Request(
        lead.run,
        data.draw(st.sampled_from([0, 1, 2, 2, 2, 3, 4, 5, 2**31, -1])),
        data.draw(st.booleans()),
        data.draw(st.booleans()),
        base=data.draw(st.sampled_from([None, 0, 1, 2**31 - 1])),
        scales=data.draw(BYTES),
        phase=phase,
        attempt=data.draw(st.sampled_from([0, 1, 2**31 - 1])),
        letter=letter,
    )
    records = wire.request_to_records(request, blob)
    config = {"experiment": lead.of.canonical(), "experiment-sha256": lead.of.sha256()}
    errors = lead.hospitals.sites[name].state / "errors.jsonl"
    written = errors.read_text() if errors.exists() else ""
    reply = app.respond(records, config, lead.hospitals.sites[name])
    reason = str(reply["head"]["refused"])
    assert reason in {*Reason, ""}
    trained = errors.exists() and "must_not_train" in errors.read_text()[len(written) :]
    if reason == Reason.INTERNAL_ERROR:
        assert trained and phase is Phase.WORK
        well = good[Phase.WORK]
        # sealer and box of the key are read by a hospital without one alone
        assert letters.split(letter, 4)[:2] == letters.split(well[0], 4)[:2]
        assert blob == well[1]
    elif reason == "" and phase is not Phase.WORK:
        assert letter == good[phase][0]


def must_not_train(*_: Any) -> Any:
    raise AssertionError("it worked for a letter that was nonsense")


# --- blobs made by hand ---------------------------------------------------------------------------


def flipped(whole: bytes, at: int) -> bytes:
    return whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]


def with_c0(lead: Lead, total: bytes, which: str, change: Callable[[Any, Packing], Any]) -> bytes:
    """A total with other residues, and the seeds as they were."""
    of = getattr(lead.vectors(), which)
    public = ciphertexts.PublicContext.from_bytes(lead.public)
    packing = Packing.of(of)
    parsed = ciphertexts.Blob.parse(total, public, of)
    c0 = change(parsed.residues(slice(0, packing.ciphertexts)), packing)
    start = len(ciphertexts.head(public, of, 1))
    return total[:start] + pack_residues(c0) + total[start + packing.c0_bytes :]


def with_c0_of(lead: Lead, total: bytes, other: bytes, which: str) -> bytes:
    of = getattr(lead.vectors(), which)
    public = ciphertexts.PublicContext.from_bytes(lead.public)
    parsed = ciphertexts.Blob.parse(other, public, of)
    return with_c0(
        lead, total, which, lambda _, packing: parsed.residues(slice(0, packing.ciphertexts))
    )


def shifted(lead: Lead, total: bytes, which: str) -> bytes:
    """7 more in the first number: SEAL encodes it without a key, and anybody can add it."""

    def change(c0: Any, packing: Packing) -> Any:
        seal, plain = ckks._Seal(bytes(64), packing.scale), sealapi.Plaintext()
        try:
            seal._encoder.encode([7.0], packing.scale, plain)
        finally:
            seal.close()
        shift = np.zeros_like(c0)
        shift[0] = [plain.data(place) for place in range(RING)]
        return (c0 + shift) % np.uint64(MODULUS)

    return with_c0(lead, total, which, change)
