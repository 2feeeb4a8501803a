"""A hospital's side of a sum under masks, against a coordinator that does not keep to the protocol."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ConfigRecord, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client_app import app, masked_sum
from client_app.site import Policy
from federation import roster, wire
from federation.codec import packing
from federation.messages import Phase, Reason, Request
from federation.secure_aggregation import letters, masks
from federation.secure_aggregation.masks import Occasion
from tests.client_app.coordinator import Coordinator, Refusal, moved
from tests.hospitals import MASKS, Hospitals, content, hospitals, train_quickly

FOUR = ("east", "hill", "lake", "north")  # 3 of 4 are needed
_runs = iter(range(10_000))


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    return hospitals(tmp_path_factory.mktemp("four"), 4, patients=6)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    return train_quickly(monkeypatch)


@pytest.fixture
def lead(four: Hospitals, trained: list[tuple[str, int]]) -> Coordinator:
    """Of a new run each time."""
    return Coordinator(four, content(secure_aggregation=MASKS), f"run-{next(_runs)}")


def refused(lead: Coordinator, name: str, reason: Reason, ask: Callable[[], object]) -> None:
    """The hospital says no, for this reason; its log says so too, and still holds."""
    before = len(lead.log(name))
    with pytest.raises(Refusal) as refusal:
        ask()
    assert refusal.value.reason is reason
    assert lead.log(name)[before:] == [("request", None), ("refusal", reason.value)]


def test_a_round_by_the_protocol_can_be_opened(lead: Coordinator) -> None:
    """What the tests below take a step out of."""
    opened = lead.opened()
    assert all(set(one.seeds) == set(FOUR) and not one.mask_keys for one in opened.values())


# --- keys -----------------------------------------------------------------------------------------


def test_a_swapped_key_is_refused(lead: Coordinator) -> None:
    """The coordinator puts its own in the place of another hospital's."""
    adverts = bytearray(lead.advertise())
    at = adverts.index(b"north") + len(b"north") + 8
    adverts[at : at + 32] = masks.advertise(
        Occasion("x", 1, 1, "0" * 64), "north", 1, Ed25519PrivateKey.generate()
    )[1].mask_key
    for name in FOUR[:3]:
        refused(
            lead,
            name,
            Reason.BAD_SIGNATURE,
            lambda n=name: lead.ask(n, Phase.SHARE, bytes(adverts)),
        )


def test_a_hospital_that_is_not_on_the_roster_is_refused(lead: Coordinator) -> None:
    occasion = Occasion(lead.run, 1, 1, lead.hospitals.roster.sha256())
    _, advert = masks.advertise(occasion, "mallory", 1, Ed25519PrivateKey.generate())
    adverts = letters.adverts_from_bytes(lead.advertise())
    letter = letters.adverts_to_bytes([*adverts, advert])
    refused(lead, "east", Reason.ROSTER_DIFFERS, lambda: lead.ask("east", Phase.SHARE, letter))


def test_a_cohort_of_two_is_refused(lead: Coordinator) -> None:
    adverts = lead.advertise(FOUR[:2])
    refused(lead, "east", Reason.TOO_FEW_HOSPITALS, lambda: lead.ask("east", Phase.SHARE, adverts))


def test_the_hospital_s_own_least_counts(
    lead: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = lead.hospitals.sites["east"]
    strict = site.model_copy(
        update={"policy": Policy(code="any", least_hospitals=4, least_patients=1)}
    )
    monkeypatch.setitem(lead.hospitals.sites, "east", strict)
    roster_ = lead.hospitals.roster.sha256().encode()
    refused(
        lead, "east", Reason.TOO_FEW_HOSPITALS, lambda: lead.ask("east", Phase.ADVERTISE, roster_)
    )


def test_another_version_of_the_roster_is_refused(lead: Coordinator) -> None:
    other = roster.Roster("a", lead.hospitals.roster.members, lead.hospitals.roster.version + 1)
    letter = other.sha256().encode()
    refused(lead, "east", Reason.ROSTER_DIFFERS, lambda: lead.ask("east", Phase.ADVERTISE, letter))


def test_keys_of_another_run_or_round_are_refused(lead: Coordinator) -> None:
    elsewhere = Coordinator(lead.hospitals, lead.of, lead.run + "-other")
    theirs = {one.hospital: one for one in letters.adverts_from_bytes(elsewhere.advertise())}
    mine = {one.hospital: one for one in letters.adverts_from_bytes(lead.advertise())}
    mixed = letters.adverts_to_bytes([mine["east"], mine["hill"], theirs["lake"], mine["north"]])
    refused(lead, "east", Reason.BAD_SIGNATURE, lambda: lead.ask("east", Phase.SHARE, mixed))
    lead.round = 2
    later = lead.advertise()
    lead.round = 1
    refused(lead, "east", Reason.BAD_SIGNATURE, lambda: lead.ask("east", Phase.SHARE, later))


def test_shares_are_dealt_to_one_cohort(lead: Coordinator) -> None:
    """With shares of one key among two cohorts, each below the threshold could hold enough."""
    adverts = lead.advertise()
    first, _ = lead.ask("east", Phase.SHARE, adverts)
    assert lead.ask("east", Phase.SHARE, adverts)[0] == first  # the same letter, the same answer
    fewer = letters.adverts_to_bytes(letters.adverts_from_bytes(adverts)[:3])
    refused(lead, "east", Reason.REPLAYED, lambda: lead.ask("east", Phase.SHARE, fewer))


def test_an_older_attempt_is_gone(lead: Coordinator) -> None:
    roster_ = lead.hospitals.roster.sha256().encode()
    lead.attempt = 2
    adverts = lead.advertise()
    lead.attempt = 1
    refused(lead, "east", Reason.REPLAYED, lambda: lead.ask("east", Phase.ADVERTISE, roster_))
    refused(lead, "east", Reason.NO_KEYS, lambda: lead.ask("east", Phase.SHARE, adverts))


def test_a_round_long_past_is_gone(lead: Coordinator) -> None:
    roster_ = lead.hospitals.roster.sha256().encode()
    lead.round = 3
    lead.advertise()
    for round_, reason in ((2, None), (1, Reason.REPLAYED)):
        lead.round = round_
        if reason is None:
            lead.ask("east", Phase.ADVERTISE, roster_)
        else:
            refused(lead, "east", reason, lambda: lead.ask("east", Phase.ADVERTISE, roster_))


# --- work -----------------------------------------------------------------------------------------


def test_shares_for_another_are_refused(lead: Coordinator) -> None:
    shares = lead.share(lead.advertise())
    refused(lead, "east", Reason.BAD_SHARE, lambda: lead.ask("east", Phase.WORK, shares["hill"]))


def test_shares_of_two_are_not_worked_for(lead: Coordinator, trained: list[Any]) -> None:
    boxes = letters.sealed_from_bytes(lead.share(lead.advertise())["east"])
    few = letters.sealed_to_bytes({name: boxes[name] for name in FOUR[:2]})
    refused(lead, "east", Reason.TOO_FEW_HOSPITALS, lambda: lead.ask("east", Phase.WORK, few))
    assert not trained


def test_one_mask_covers_one_vector(lead: Coordinator, trained: list[Any]) -> None:
    """Two vectors under one mask could be subtracted. The same letter with another model, with other
    scales, or with nothing to train but figures, gets nothing."""
    shares = lead.share(lead.advertise())
    first = lead.ask("east", Phase.WORK, shares["east"])
    assert lead.ask("east", Phase.WORK, shares["east"]) == first
    assert trained == [("east", 1)]
    other = lead.chain.first_scales(lead.of.training) + np.int16(1)
    attacks: dict[str, dict[str, Any]] = {
        "model": {"model": moved(lead.model)},
        "scales": {"scales": other.astype("<i2").tobytes()},
        "figures": {"train": False, "evaluate": True},
        "both": {"evaluate": True},
    }
    for changes in attacks.values():
        refused(
            lead,
            "east",
            Reason.REPLAYED,
            lambda c=changes: lead.ask("east", Phase.WORK, shares["east"], **c),
        )
    boxes = letters.sealed_from_bytes(shares["east"])
    del boxes["north"]
    fewer = letters.sealed_to_bytes(boxes)
    refused(lead, "east", Reason.REPLAYED, lambda: lead.ask("east", Phase.WORK, fewer))


def test_the_same_work_in_two_attempts_has_two_masks(lead: Coordinator, trained: list[Any]) -> None:
    first = lead.worked()
    lead.attempt = 2
    second = lead.worked()
    size = packing.packed_length(lead.chain.length(round=1), bits(lead))
    for name in FOUR:
        one, two = (np.frombuffer(blobs[name][1][:size], np.uint8) for blobs in (first, second))
        assert np.mean(one == two) < 0.02  # chance is 1 / 256
    assert len(trained) == 4


def bits(lead: Coordinator) -> int:
    return masks.headroom(lead.chain.bits(round=1), len(FOUR))


def test_a_difference_to_a_model_that_is_not_held(lead: Coordinator) -> None:
    shares = lead.share(lead.advertise())
    refused(
        lead, "east", Reason.NO_MODEL, lambda: lead.ask("east", Phase.WORK, shares["east"], base=0)
    )
    lead.ask("east", Phase.WORK, shares["east"])  # and the whole one is taken after it


def test_runs_do_not_share_keys(lead: Coordinator) -> None:
    other = Coordinator(lead.hospitals, lead.of, lead.run + "-other")
    shares = lead.share(lead.advertise())
    refused(other, "east", Reason.NO_KEYS, lambda: other.ask("east", Phase.WORK, shares["east"]))
    other.advertise()
    with pytest.raises(Refusal):
        other.ask("east", Phase.WORK, shares["east"])


# --- who is in the sum ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("survivors", "reason"),
    [
        (("east",), Reason.TOO_FEW_HOSPITALS),
        (FOUR[:2], Reason.TOO_FEW_HOSPITALS),
        (FOUR[1:], Reason.SURVIVORS_DIFFER),  # without the one that is asked
        ((*FOUR, "south"), Reason.SURVIVORS_DIFFER),
    ],
)
def test_lists_that_no_hospital_signs(
    survivors: tuple[str, ...], reason: Reason, lead: Coordinator
) -> None:
    lead.worked()
    letter = lead.to_sign(survivors)
    refused(lead, "east", reason, lambda: lead.ask("east", Phase.SIGN, letter))


def test_a_hospital_signs_one_list(lead: Coordinator) -> None:
    lead.worked()
    first = lead.sign(FOUR, ["east"])
    assert lead.sign(FOUR, ["east"]) == first
    other = lead.to_sign(FOUR[:3])
    refused(lead, "east", Reason.SURVIVORS_DIFFER, lambda: lead.ask("east", Phase.SIGN, other))


def test_nothing_is_signed_before_the_work(lead: Coordinator) -> None:
    adverts = lead.advertise()
    letter = lead.to_sign(FOUR)
    refused(lead, "east", Reason.NO_KEYS, lambda: lead.ask("east", Phase.SIGN, letter))
    shares = lead.share(adverts)
    refused(lead, "east", Reason.NO_KEYS, lambda: lead.ask("east", Phase.SIGN, letter))
    with pytest.raises(Refusal):  # joined, and then failed: nothing of its is in any sum
        lead.ask("east", Phase.WORK, shares["east"], base=0)
    refused(lead, "east", Reason.NO_KEYS, lambda: lead.ask("east", Phase.SIGN, letter))


def test_two_letters_at_once_are_not_both_the_first(
    lead: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes could both find that no list was signed, and sign one each."""
    lead.worked()
    real, signing, go_on = masks.sign_survivors, threading.Event(), threading.Event()

    def slowly(*args: Any, **kwargs: Any) -> bytes:
        signature = real(*args, **kwargs)
        if not signing.is_set():
            signing.set()
            go_on.wait(60)
        return signature

    monkeypatch.setattr(masked_sum.masks, "sign_survivors", slowly)
    told: dict[tuple[str, ...], object] = {}

    def ask(survivors: tuple[str, ...]) -> None:
        try:
            told[survivors] = lead.ask("east", Phase.SIGN, lead.to_sign(survivors))
        except Refusal as refusal:
            told[survivors] = refusal.reason

    threads = [threading.Thread(target=ask, args=(names,)) for names in (FOUR, FOUR[:3])]
    threads[0].start()
    assert signing.wait(60)
    threads[1].start()
    threads[1].join(0.5)  # without the lock it is through by now
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert isinstance(told[FOUR], tuple)
    assert told[FOUR[:3]] is Reason.SURVIVORS_DIFFER


# --- opening --------------------------------------------------------------------------------------


def test_nothing_is_opened_for_two_lists(lead: Coordinator) -> None:
    """A part signed one list and a part another: neither has 3 signatures, and theirs do not mix."""
    lead.worked()
    all_, fewer = FOUR, FOUR[:3]
    one = lead.sign(all_, ["lake", "north"])
    two = lead.sign(fewer, ["east", "hill"])
    for name, survivors, signatures, reason in (
        ("lake", all_, one, Reason.TOO_FEW_HOSPITALS),
        ("east", fewer, two, Reason.TOO_FEW_HOSPITALS),
        ("lake", all_, one | two, Reason.BAD_SIGNATURE),
        ("lake", fewer, one | two, Reason.SURVIVORS_DIFFER),
    ):
        letter = lead.to_open(survivors, signatures)
        refused(lead, name, reason, lambda n=name, x=letter: lead.ask(n, Phase.OPEN, x))


def test_old_signatures_open_nothing(lead: Coordinator) -> None:
    old = lead.signed()
    lead.attempt = 2
    lead.signed()
    letter = lead.to_open(FOUR, old)
    refused(lead, "east", Reason.BAD_SIGNATURE, lambda: lead.ask("east", Phase.OPEN, letter))


def test_signatures_of_another_run_open_nothing(lead: Coordinator) -> None:
    other = Coordinator(lead.hospitals, lead.of, lead.run + "-other").signed()
    lead.signed()
    letter = lead.to_open(FOUR, other)
    refused(lead, "east", Reason.BAD_SIGNATURE, lambda: lead.ask("east", Phase.OPEN, letter))


def test_both_shares_of_a_hospital_are_never_given(lead: Coordinator) -> None:
    """Even with good signatures over the other list, from hospitals that conspire."""
    signatures = lead.signed()
    whole = lead.to_open(FOUR, signatures)
    first = lead.open("east", whole)
    assert lead.open("east", whole) == first
    cohort, held = session_of(lead, "east")
    names = FOUR[:3]
    forged = {}
    for name in names:
        secrets = masks.Secrets.from_bytes(stored(lead, name).secrets)
        key = masked_sum.identity.load(lead.hospitals.sites[name]).key
        forged[name] = masks.sign_survivors(secrets, cohort, held.sharers, names, key, least=3)
    letter = lead.to_open(names, forged)
    refused(lead, "east", Reason.BOTH_SHARES, lambda: lead.ask("east", Phase.OPEN, letter))
    refused(lead, "hill", Reason.SURVIVORS_DIFFER, lambda: lead.ask("hill", Phase.OPEN, letter))


def stored(lead: Coordinator, name: str) -> Any:
    with masked_sum.Sessions.held(lead.hospitals.sites[name].state, lead.run) as sessions:
        return sessions.find(lead.round, lead.attempt)


def session_of(lead: Coordinator, name: str) -> tuple[masks.Cohort, masks.Held]:
    session = stored(lead, name)
    secrets = masks.Secrets.from_bytes(session.secrets)
    adverts = letters.adverts_from_bytes(session.cohort)
    identities = lead.hospitals.roster.identities()
    cohort = masks.cohort(adverts, secrets.occasion, identities, least=3)
    return cohort, masks.Held.from_bytes(session.held)


def test_an_opened_round_is_over(lead: Coordinator) -> None:
    """Neither a second attempt, nor its work again with another model; then the next goes on."""
    shares = lead.share(lead.advertise())
    lead.work(shares)
    signatures = lead.sign(FOUR)
    letter = lead.to_open(FOUR, signatures)
    for name in FOUR:
        lead.open(name, letter)
    roster_ = lead.hospitals.roster.sha256().encode()
    lead.attempt = 2
    refused(lead, "east", Reason.REPLAYED, lambda: lead.ask("east", Phase.ADVERTISE, roster_))
    lead.attempt = 1
    refused(
        lead,
        "east",
        Reason.REPLAYED,
        lambda: lead.ask("east", Phase.WORK, shares["east"], model=moved(lead.model)),
    )
    lead.round = 2
    assert lead.opened()
    lead.round = 1
    for phase, old in ((Phase.WORK, shares["east"]), (Phase.OPEN, letter)):
        refused(lead, "east", Reason.NO_KEYS, lambda p=phase, x=old: lead.ask("east", p, x))


def test_without_masks_no_step_of_them_is_answered(four: Hospitals) -> None:
    lead = Coordinator(four, content(), f"run-{next(_runs)}")
    for phase in set(Phase) - {Phase.WORK}:
        refused(lead, "east", Reason.BAD_EXPERIMENT, lambda p=phase: lead.ask("east", p, b"x"))


# --- what is on the disk --------------------------------------------------------------------------


def test_all_that_is_remembered_is_on_the_disk(
    lead: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each message in a process of its own, which then ends; at the end the sum is the right one."""
    respond = app.respond

    def elsewhere(*args: Any) -> Any:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                with os.fdopen(writing, "wb") as pipe:
                    pickle.dump(dict(respond(*args)["head"]), pipe)
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            head = pickle.load(pipe)
        os.waitpid(child, 0)
        return RecordDict({"head": ConfigRecord(head)})

    monkeypatch.setattr(app, "respond", elsewhere)
    work = lead.worked()
    letter = lead.to_open(FOUR, lead.sign(FOUR))
    openings = {name: lead.open(name, letter) for name in FOUR}
    monkeypatch.setattr(app, "respond", respond)
    cohort, held = session_of(lead, "east")
    rebuilt = masks.rebuild(cohort, held.sharers, FOUR, openings)
    length = lead.chain.length(round=1)
    size = packing.packed_length(length, bits(lead))
    total = np.zeros(length, np.uint32)
    for _, blob in work.values():
        total += packing.unpack(blob[:size], bits(lead), length)
    masks.unmask(total, rebuilt, bits(lead), part="update")
    summed = packing.signed(total, bits(lead))
    mean, _ = lead.chain.decode(
        summed, 4, lead.chain.first_scales(lead.of.training), round=1
    )  # which refuses what no four integers add up to
    assert any(np.any(array) for array in mean.values())


@pytest.mark.parametrize("fault", ["deleted", "cut off", "overwritten", "another's"])
@pytest.mark.parametrize("before", [Phase.SHARE, Phase.WORK, Phase.SIGN, Phase.OPEN])
def test_without_its_memory_a_hospital_refuses(
    fault: str, before: Phase, lead: Coordinator
) -> None:
    adverts = lead.advertise()
    letter = adverts
    if before is not Phase.SHARE:
        shares = lead.share(adverts)
        letter = shares["east"]
        if before is not Phase.WORK:
            lead.work(shares)
            letter = lead.to_sign(FOUR)
        if before is Phase.OPEN:
            letter = lead.to_open(FOUR, lead.sign(FOUR))
    damage(fault, lead)
    refused(lead, "east", Reason.NO_KEYS, lambda: lead.ask("east", before, letter))


def damage(fault: str, lead: Coordinator) -> None:
    file = session_file(lead, "east")
    if fault == "deleted":
        file.unlink()
    elif fault == "cut off":
        file.write_bytes(file.read_bytes()[:-20])
    elif fault == "overwritten":
        file.write_bytes(b'{"opened": 0, "sessions": [{"round": 1}]}')
    else:
        file.write_bytes(session_file(lead, "hill").read_bytes())


def session_file(lead: Coordinator, name: str) -> Path:
    folder = lead.hospitals.sites[name].state / "secure"
    return max(folder.glob("*.json"), key=lambda file: file.stat().st_mtime_ns)


def test_what_it_remembers_nobody_else_may_read(lead: Coordinator) -> None:
    lead.advertise()
    file = session_file(lead, "east")
    assert file.stat().st_mode & 0o077 == 0
    assert file.parent.stat().st_mode & 0o077 == 0


# --- nonsense -------------------------------------------------------------------------------------

BYTES = st.one_of(st.binary(max_size=200), st.binary(min_size=4, max_size=60).map(lambda b: b * 9))


@pytest.fixture(scope="module")
def midway(four: Hospitals) -> Iterator[tuple[Coordinator, dict[Phase, bytes]]]:
    """A round that has been worked for, and a good letter of each step."""
    with pytest.MonkeyPatch.context() as patch:
        train_quickly(patch)
        lead = Coordinator(four, content(secure_aggregation=MASKS), "midway")
        adverts = lead.advertise()
        shares = lead.share(adverts)
        lead.work(shares)
        lead.round = 2  # where nothing was answered yet but the keys that came ahead
        good = {Phase.ADVERTISE: four.roster.sha256().encode(), Phase.SHARE: lead.advertise()}
        yield lead, good | {Phase.WORK: shares["east"], Phase.SIGN: lead.to_sign(FOUR)}


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_whatever_comes_gets_a_reason(
    data: st.DataObject,
    midway: tuple[Coordinator, dict[Phase, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lead, good = midway
    monkeypatch.setattr("client_app.plain_round._train", must_not_train)
    phase = data.draw(st.sampled_from(list(Phase)))
    letter = data.draw(BYTES)
    if phase in good and data.draw(st.booleans()):
        whole = good[phase]
        cut = data.draw(st.integers(0, len(whole) - 1))
        letter = data.draw(
            st.sampled_from([whole[:cut], whole + b"\0", flipped(whole, cut), whole[cut:] + b"x"])
        )
    request = Request(
        lead.run,
        data.draw(st.sampled_from([0, 1, 2, 3, 4, 5, 2**31, -1])),
        data.draw(st.booleans()),
        data.draw(st.booleans()),
        base=data.draw(st.sampled_from([None, 0, 1, 2**31 - 1])),
        scales=data.draw(BYTES),
        phase=phase,
        attempt=data.draw(st.sampled_from([0, 1, 2, 2**31 - 1])),
        letter=letter,
    )
    records = wire.request_to_records(request, data.draw(BYTES))
    config = {"experiment": lead.of.canonical(), "experiment-sha256": lead.of.sha256()}
    errors = lead.hospitals.sites["east"].state / "errors.jsonl"
    reply = app.respond(records, config, lead.hospitals.sites["east"])
    reason = str(reply["head"]["refused"])
    assert reason in {*Reason, ""}
    assert reason != Reason.INTERNAL_ERROR, errors.read_text()
    if reason == "":
        assert phase is Phase.ADVERTISE  # with the right roster
        assert letter == good[Phase.ADVERTISE]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(scales=BYTES, base=st.sampled_from([None, 0, 1, 7]), blob=BYTES, cut=st.integers(0, 4000))
def test_whatever_comes_with_a_good_letter_gets_a_reason(
    scales: bytes,
    base: int | None,
    blob: bytes,
    cut: int,
    midway: tuple[Coordinator, dict[Phase, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lead, good = midway
    monkeypatch.setattr("client_app.plain_round._train", must_not_train)
    whole = wire.pack(lead.model)
    config = {"experiment": lead.of.canonical(), "experiment-sha256": lead.of.sha256()}
    for content_ in (blob, whole[:-cut], flipped(whole, cut)[:-1], whole):
        if content_ == whole and base is None and len(scales) == 2 * lead.chain.voters:
            continue
        request = Request(
            lead.run, 1, False, True, base=base, scales=scales, attempt=1, letter=good[Phase.WORK]
        )
        records = wire.request_to_records(request, content_)
        reply = app.respond(records, config, lead.hospitals.sites["east"])
        assert reply["head"]["refused"] in {"malformed", "no_model", "too_large", "wrong_names"}


def must_not_train(*_: Any) -> Any:
    raise AssertionError("it worked for a letter that was nonsense")


def flipped(whole: bytes, at: int) -> bytes:
    return whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
