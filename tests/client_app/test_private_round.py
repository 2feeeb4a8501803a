"""A private request at a real ClientApp: what it costs, what is refused, and what never leaves."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import RecordDict
from scipy import stats

from client_app import group_counts, local_part, private_round
from client_app.audit import Audit
from client_app.site import SITE_VARIABLE
from federation import messages, tasks, wire
from federation.fairness.layout import Layout
from federation.messages import Reason, Request
from federation.schema import Experiment, Fairness
from federation.tasks import Prediction
from tests.client_app import canary
from tests.client_app.canary_hospital import (
    CLIP,
    LEARNING_RATE,
    NOISE,
    PUBLIC_SIZE,
    RATE,
    STEPS,
    Hospital,
    content,
    make,
    read,
    start,
    training,
)  # fmt: skip


def two_hours_from_now() -> str:
    hour = datetime.now().hour
    return f"{(hour + 2) % 24:02}:00-{(hour + 3) % 24:02}:00"


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("privacy", "policy", "reason"),
    [
        ({"noise_multiplier": NOISE / 2}, {"least_noise_multiplier": NOISE}, "refused_privacy"),
        ({"clipping_norm": 2 * CLIP}, {"most_clipping_norm": CLIP}, "refused_privacy"),
        ({"sampling_rate": 0.4}, {"most_sampling_rate": RATE}, "refused_privacy"),
        ({"images_per_patient": 3}, {"most_images_per_patient": 2}, "refused_privacy"),
        ({}, {"most_local_steps": STEPS - 1}, "refused_privacy"),
        (
            {"metrics": "noisy", "metrics_noise_multiplier": 0.6},
            {"least_noise_multiplier": NOISE},
            "refused_privacy",
        ),
        ({}, {"most_rounds": 4}, "refused_rounds"),
        ({}, {"most_epsilon_a_run": 0.5}, "budget_spent"),
        ({}, {"experiments": ["0" * 64]}, "refused_experiment"),
        ({}, {"least_patients": PUBLIC_SIZE + 1}, "too_few_patients"),
        ({}, {"secure_aggregation": "required"}, "secure_aggregation_required"),
        ({}, {"hours": [two_hours_from_now()]}, "outside_hours"),
    ],
)
def test_what_goes_beyond_the_policy_is_refused_uncharged(
    privacy: dict[str, Any],
    policy: dict[str, Any],
    reason: str,
    small: Hospital,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(private_round, "find_patients", must_not_be_called)
    small.edit(policy=policy)
    of = content(**privacy)
    refused_with(small.ask(of, training(1)), of, training(1), reason)
    assert small.charges() == 0
    assert small.events() == ["request", "refusal"]


def must_not_be_called(*_: Any, **__: Any) -> Any:
    raise AssertionError("the patients were looked at")


def refused_with(records: RecordDict, of: Experiment, request: Request, reason: str) -> None:
    answer = read(records, of, request)
    assert answer.refused == Reason(reason)
    assert set(records) == {"head"}
    assert set(records["head"]) == {"round", "refused"}


def test_more_rounds_than_the_experiment_has_are_refused(small: Hospital) -> None:
    of = content(rounds=2)
    refused_with(small.ask(of, training(3)), of, training(3), "refused_rounds")
    assert small.charges() == 0


def test_an_evaluation_that_was_not_agreed_tells_nothing(
    small: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client_app.training.loop.evaluate", must_not_be_called)
    of = content(held_out=0.4)
    request = Request("run", 1, evaluate=True, train=True)
    answer = read(small.ask(of, request), of, request)
    assert answer.refused is None
    assert (answer.evaluated, answer.tallied) == (None, None)


def test_exact_runs_are_refused_where_a_budget_is_kept(small: Hospital) -> None:
    of = content().model_copy(update={"privacy": None})
    records = small.ask(of, training(1))
    assert records["head"]["refused"] == "privacy_required"
    assert set(records["head"]) == {"round", "refused"}


def test_private_runs_are_refused_where_none_is(small: Hospital) -> None:
    small.edit(privacy=None)
    refused_with(small.ask(content(), training(1)), content(), training(1), "no_ledger")


@pytest.mark.parametrize("fault", ["missing", "another cohort", "truncated", "key gone"])
def test_without_a_sound_ledger_nothing_is_touched(
    fault: str, small: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(private_round, "find_patients", must_not_be_called)
    ledger = small.state / "ledger.sqlite"
    if fault == "missing":
        for file in small.state.glob("ledger*"):
            file.unlink()
    elif fault == "another cohort":
        (small.state / "pseudonym.key").write_bytes(bytes(32))
    elif fault == "key gone":
        (small.state / "pseudonym.key").unlink()
    else:
        ledger.write_bytes(ledger.read_bytes()[:1000])
    reason = "no_ledger" if fault == "missing" else "ledger_unusable"
    refused_with(small.ask(content(), training(1)), content(), training(1), reason)


def test_an_older_copy_of_the_whole_state_is_refused(small: Hospital, tmp_path: Path) -> None:
    of = content()
    read(small.ask(of, training(1)), of, training(1))
    snapshot = tmp_path / "snapshot"
    shutil.copytree(small.state, snapshot)
    answer = read(small.ask(of, training(2)), of, training(2))
    assert answer.spent is not None
    shutil.rmtree(small.state)
    shutil.copytree(snapshot, small.state)
    request = replace(training(3), lodged=answer.spent.lodged)
    refused_with(small.ask(of, request), of, request, "ledger_unusable")
    # and without the coordinator's word the older copy passes: that is what it is lodged for
    assert read(small.ask(of, training(3)), of, training(3)).refused is None


# --- what it costs --------------------------------------------------------------------------------


def test_the_same_request_gets_the_same_bytes_for_nothing(small: Hospital) -> None:
    of = content()
    first = small.ask(of, training(1))
    spent = read(first, of, training(1)).spent
    assert spent is not None
    again = small.ask(of, replace(training(1), lodged=spent.lodged))
    assert wire.blob(again) == wire.blob(first)
    assert dict(again["head"]) == dict(first["head"])
    assert small.charges() == 1
    assert small.events() == ["request", "charge", "answer", "request", "repeat"]


def test_a_replay_with_another_model_is_refused(small: Hospital) -> None:
    of = content()
    read(small.ask(of, training(1)), of, training(1))
    other = start(of)
    other["layer.weight"] = other["layer.weight"] + np.float32(1)
    refused_with(small.ask(of, training(1), other), of, training(1), "replayed")
    read(small.ask(of, training(2)), of, training(2))
    for file in (small.state / "answers").iterdir():
        file.unlink()
    refused_with(small.ask(of, training(1)), of, training(1), "replayed")
    assert small.charges() == 2


def test_an_answer_that_was_lost_is_made_anew_for_a_new_charge(small: Hospital) -> None:
    small.edit(policy={"most_attempts": 3})
    of = content()
    blobs = set()
    for _ in range(3):
        blobs.add(wire.blob(small.ask(of, training(1))))
        for file in (small.state / "answers").iterdir():
            file.unlink()
    assert len(blobs) == 3  # fresh noise each time
    assert small.charges() == 3
    refused_with(small.ask(of, training(1)), of, training(1), "replayed")


def test_the_hospital_refuses_when_the_budget_is_spent(small: Hospital) -> None:
    """ε against Google's accountant, and not one round more than fits."""
    from dp_accounting import (
        GaussianDpEvent,
        PoissonSampledDpEvent,
        SelfComposedDpEvent,
    )
    from dp_accounting.pld import PLDAccountant

    def exact(steps: int) -> float:
        accountant = PLDAccountant(value_discretization_interval=1e-3)
        accountant.compose(
            SelfComposedDpEvent(PoissonSampledDpEvent(RATE, GaussianDpEvent(NOISE)), steps)
        )
        return float(accountant.get_epsilon(1e-5))

    budget = 6.0
    small.edit(privacy={"epsilon": budget, "delta": 1e-5})
    of = content(rounds=50)
    for round_ in range(1, 50):
        answer = read(small.ask(of, training(round_)), of, training(round_))
        if answer.refused:
            break
        assert answer.spent is not None
        assert answer.spent.epsilon == pytest.approx(exact(round_ * STEPS), abs=0.03)
        assert answer.spent.epsilon <= budget
    assert answer.refused is Reason.BUDGET_SPENT
    assert exact((round_ - 1) * STEPS) <= budget < exact(round_ * STEPS) + 0.03
    again = training(1, run="another run, after a restart")
    refused_with(small.ask(of, again), of, again, "budget_spent")


def test_whatever_fails_after_the_charge_has_one_word(
    small: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, error in enumerate((MemoryError(), ValueError("P00007 is odd"), KeyError("x")), 1):

        def broken(*_: Any, error: Exception = error, **__: Any) -> Any:
            raise error

        monkeypatch.setattr(private_round, "find_patients", broken)
        of = content()
        refused_with(small.ask(of, training(number)), of, training(number), "internal_error")
        assert small.charges() == number
    log = (small.state / "errors.jsonl").read_text()
    assert "ValueError" in log
    assert "P00007" not in log


def test_answers_leave_at_a_fixed_pace(small: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    clock = iter([100.0, 103.2, 200.0, 211.0])
    monkeypatch.setattr(private_round.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(private_round.time, "sleep", slept.append)
    private_round._wait_for_next_departure(next(clock), 5.0)
    private_round._wait_for_next_departure(next(clock), 5.0)
    assert slept == pytest.approx([1.8, 4.0])


# --- metrics --------------------------------------------------------------------------------------


def test_noisy_metrics_are_charged_and_say_their_noise(small: Hospital) -> None:
    of = content(metrics="noisy", metrics_noise_multiplier=20.0, held_out=0.4)
    request = Request("run", 1, evaluate=True, train=True)
    answer = read(small.ask(of, request), of, request)
    assert answer.tallied is not None
    assert answer.tallied.noise == 20.0
    with small.ledger() as ledger:
        (charge,) = ledger.charges()
    assert {(m.noise_multiplier, m.sampling_rate, m.steps) for m in charge.mechanisms} == {
        (20.0, 1.0, 1),
        (NOISE, RATE, STEPS),
    }


def counting(noise: float = 20.0, **privacy: Any) -> Experiment:
    """With counts by group, of which there are few."""
    made = content(held_out=0.4, **{"metrics": "noisy"} | privacy)
    fairness = Fairness(attributes=("sex",), score_bins=8, noise_multiplier=noise)
    return made.model_copy(update={"fairness": fairness})


def counts_of(records: RecordDict, of: Experiment, request: Request) -> Any:
    task = tasks.build(of.task)
    expected = messages.Expected(
        messages.Shape.of(start(of)),
        frozenset({"share"}),
        private=True,
        tally=2,
        counts=Layout.of_experiment(of, task),
    )
    return wire.answer_from_records(records, request, expected).counts


def test_counts_by_group_have_the_noise_that_was_charged(
    small: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    of, request = counting(), Request("run", 1, evaluate=True, train=True)
    seen: list[str] = []

    def predict(network: Any, task: Any, case: Any, item: Any, device: Any) -> Prediction:
        assert small.charges() == 1  # before anybody was looked at
        seen.append(case.patient)
        return Prediction(case.patient, torch.tensor([0.0, 9.0]), torch.tensor(1), {"sex": "male"})

    monkeypatch.setattr(group_counts, "predict", predict)
    records = small.ask(of, request)
    counts = counts_of(records, of, request)
    with small.ledger() as ledger:
        (charge,) = ledger.charges()
    assert sorted((m.noise_multiplier, m.sampling_rate, m.steps) for m in charge.mechanisms) == (
        sorted([(10.0, 1.0, 1), (20.0, 1.0, 1), (NOISE, RATE, STEPS)])
    )
    layout = Layout.of_experiment(of, tasks.build(of.task))
    assert layout is not None
    exact = np.zeros(layout.shape, np.int64)
    male = [g.name for g in layout.groups].index("sex=male")
    exact[[0, male], 0, 1, layout.bins - 1] = len(set(seen))
    sigma = 20 * math.sqrt(2)  # of two tables
    p = stats.kstest((counts - exact.reshape(-1)) / sigma, "norm").pvalue
    assert p > 1e-4
    # the same request again: the same counts, for nothing
    np.testing.assert_array_equal(counts_of(small.ask(of, request), of, request), counts)
    assert small.charges() == 1
    assert not (small.state / "counted").exists()


def test_counts_with_less_noise_than_the_policy_wants_are_refused(
    small: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(private_round, "find_patients", must_not_be_called)
    small.edit(policy={"least_noise_multiplier": NOISE})
    of, request = counting(NOISE / 2), Request("run", 1, evaluate=True, train=False)
    records = small.ask(of, request)
    assert records["head"]["refused"] == "refused_privacy"
    assert small.charges() == 0


def test_exact_metrics_are_of_public_images(tmp_path: Path, small: Hospital) -> None:
    """All private patients are absent, one of four public ones is present."""
    canary.write_patients(tmp_path / "public", [0, 1, 2, 3], present=[2])
    public = {
        "root": str(tmp_path / "public/images"),
        "layout": "dicom",
        "labels": str(tmp_path / "public/labels.csv"),
    }
    small.edit(privacy={"public": public})
    of = content(metrics="public", held_out=0.4)
    request = Request("run", 1, evaluate=True, train=False)
    answer = read(small.ask(of, request), of, request)
    assert answer.evaluated is not None
    assert answer.evaluated.metrics == {"share": 0.25}
    assert answer.evaluated.patients == 4
    assert small.charges() == 0


# --- odd hospitals --------------------------------------------------------------------------------


@pytest.mark.parametrize("patients", [[], [5]])
def test_a_hospital_of_one_patient_or_none_sends_noise_like_any_other(
    patients: list[int], canaries: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(tmp_path / "tiny", patients)
    monkeypatch.setenv(SITE_VARIABLE, str(made.site_file))
    of = content(metrics="noisy")
    request = Request("run", 1, evaluate=True, train=True)
    answer = read(made.ask(of, request), of, request)
    assert answer.trained is not None
    assert answer.trained.patients == PUBLIC_SIZE
    moved = answer.trained.update["layer.weight"] / LEARNING_RATE * RATE * PUBLIC_SIZE
    spread = math.sqrt(STEPS) * NOISE * CLIP
    noise = np.delete(moved.ravel(), 5)
    assert stats.kstest(noise / spread, "norm").pvalue > 1e-3
    assert made.charges() == 1


def test_the_door_lets_nothing_exact_out(small: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer that forgets itself and moves a buffer, or a count that slips in, does not pass."""
    real = local_part.update_of

    def with_buffer(received: Any) -> messages.Arrays:
        return real(received) | {"version": np.array(3)}

    monkeypatch.setattr(local_part, "update_of", with_buffer)
    of = content()
    refused_with(small.ask(of, training(1)), of, training(1), "internal_error")

    monkeypatch.setattr(local_part, "update_of", real)
    trained = messages.Trained
    monkeypatch.setattr(
        private_round, "Trained", lambda **given: trained(**given, examples=20, loss=0.5)
    )
    refused_with(small.ask(of, training(2)), of, training(2), "internal_error")


def test_nothing_in_the_log_names_a_patient(small: Hospital) -> None:
    of = content(metrics="noisy", held_out=0.3)
    request = Request("run", 1, evaluate=True, train=True)
    small.ask(of, request)
    log = (small.state / "audit.jsonl").read_text()
    assert "P000" not in log
    assert "Canary" not in log
    for line in log.splitlines():
        assert json.loads(line)
    Audit(small.state / "audit.jsonl").verify()


def test_the_experiment_that_came_is_the_one_that_was_charged(small: Hospital) -> None:
    of = content()
    small.ask(of, training(1))
    with small.ledger() as ledger:
        (charge,) = ledger.charges()
    assert charge.experiment == of.sha256()
    audit = list(Audit(small.state / "audit.jsonl").entries())
    assert charge.audit_head == audit[0].hash
    assert audit[1].fields["head"] == charge.hash
