"""SCAFFOLD and FedDyn over real hospitals: both sides agree, whatever becomes of an answer."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import RecordDict

from client_app import app
from client_app.imaging.pseudonym import load_key
from client_app.ledger import Ledger, cohort_id
from client_app.outbox import Outbox
from client_app.patients import find_patients
from client_app.training import loop
from federation import models, strategies, tasks, wire
from federation.codec import chain as chains
from federation.messages import Arrays, Phase, Reason, Request, Shape
from federation.privacy import accounting
from federation.schema import ConfigError, Experiment
from federation.secure_aggregation.combinations import require_summable
from tests import hospitals as in_process
from tests.control_variates import (
    CHOICES,
    RATE,
    STEPS,
    TRAINING,
    kept,
    network_of,
    of,
    parameters,
    require_agreement,
    state,
)
from tests.hospitals import MASKS, SMALL, Hospitals, hospitals
from tests.masked import CRASH, rows, same


@pytest.fixture(scope="module")
def _three(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    return hospitals(tmp_path_factory.mktemp("three"), 3, patients=[5, 8, 6])


@pytest.fixture
def three(_three: Hospitals) -> Hospitals:
    return _three.fresh()


# --- against the papers ---------------------------------------------------------------------------


def replay(
    made: Hospitals, name: str, of: Experiment, model: Arrays, round_: int, correct: Any
) -> Any:
    """A hospital's update, by its own loop with a correction from elsewhere."""
    torch.set_num_threads(1)
    task, site = tasks.build(of.task), made.sites[name]
    network = models.build(of.model, task, seed=of.seed)
    for array, own in models.arrays_of(network).items():
        own[...] = model[array]
    loop.train(
        network,
        task,
        find_patients(site, of).training,
        of.training,
        device=torch.device("cpu"),
        seed=tasks.seeded(of.seed, name, round_).initial_seed(),
        learning_rate=RATE * of.training.learning_rate_decay ** (round_ - 1),
        correct=correct,
    )
    return {n: array - model[n] for n, array in models.arrays_of(network).items()}


def test_scaffold_is_the_papers_algorithm(three: Hospitals) -> None:
    """Karimireddy et al. 2020, algorithm 1, option II, with the changes of all cₖ sent to the server."""
    experiment = of("scaffold", codec=None, training=TRAINING | {"learning_rate_decay": 0.5})
    _, _, start = three.conductor(experiment, "published")
    x, names = dict(start.model), parameters(experiment)
    c = {n: np.zeros(x[n].shape) for n in names}
    own = {h: {n: np.zeros(x[n].shape) for n in names} for h in three.sites}
    for number in (1, 2):
        updates, changes = [], []
        for hospital in three.sites:
            towards = {n: torch.from_numpy(c[n] - own[hospital][n]).float() for n in names}
            delta = replay(
                three, hospital, experiment, x, number, lambda n, _, towards=towards: towards[n]
            )
            gone = STEPS * RATE * 0.5 ** (number - 1)
            plus = {n: own[hospital][n] - c[n] - delta[n] / gone for n in names}
            changes.append({n: plus[n] - own[hospital][n] for n in names})
            updates.append(delta)
            own[hospital] = plus
        x = {
            n: (a + np.mean([u[n] for u in updates], axis=0)).astype(a.dtype) for n, a in x.items()
        }
        c = {n: c[n] + np.mean([change[n] for change in changes], axis=0) for n in names}
    done = three.conduct(experiment, "published", rounds=2)
    for name in names:
        np.testing.assert_allclose(done.model[name], x[name], rtol=1e-4, atol=5e-5)
        np.testing.assert_allclose(done.strategy["down/" + name], c[name], atol=1e-3)
        for hospital in three.sites:
            mine = kept(three, hospital, "published")[name]
            np.testing.assert_allclose(mine, own[hospital][name], atol=1e-3)
    assert max(np.abs(c[n]).max() for n in names) > 0.1


def test_feddyn_is_the_papers_algorithm(three: Hospitals) -> None:
    """Acar et al. 2021, algorithm 1, of the devices' models θₖ."""
    alpha = 0.5
    experiment = of("feddyn", codec=None)
    _, _, start = three.conductor(experiment, "published-dyn")
    theta, names = dict(start.model), parameters(experiment)
    h = {n: np.zeros(theta[n].shape) for n in names}
    slopes = {k: {n: np.zeros(theta[n].shape) for n in names} for k in three.sites}
    for number in (1, 2, 3):
        updates = []
        for k in three.sites:
            at = {n: torch.from_numpy(theta[n].copy()) for n in names}
            linear = {n: torch.from_numpy(slopes[k][n]).float() for n in names}
            delta = replay(
                three, k, experiment, theta, number,
                lambda n, y, at=at, linear=linear: alpha * (y - at[n]) - linear[n],
            )  # fmt: skip
            slopes[k] = {n: slopes[k][n] - alpha * delta[n] for n in names}
            updates.append(delta)
        mean = {n: np.mean([u[n] for u in updates], axis=0) for n in theta}
        h = {n: h[n] - alpha * mean[n] for n in names}
        theta = {
            n: (a + mean[n] - (h[n] / alpha if n in h else 0)).astype(a.dtype)
            for n, a in theta.items()
        }
    done = three.conduct(experiment, "published-dyn", rounds=3)
    for name in names:
        np.testing.assert_allclose(done.model[name], theta[name], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(done.strategy[name], h[name], atol=1e-4)
        mine = kept(three, "east", "published-dyn")[name]
        np.testing.assert_allclose(mine, slopes["east"][name], atol=1e-4)


# --- however updates are summed, and models sent ---------------------------------------------------


@pytest.mark.parametrize("name", CHOICES)
def test_under_masks_it_is_the_same_to_the_bit(name: str, three: Hospitals) -> None:
    plain = three.conduct(of(name), f"open-{name}", rounds=3)
    secret = three.conduct(of(name, secure_aggregation=MASKS), f"masked-{name}", rounds=3)
    same(secret.model, plain.model)
    same(secret.strategy, plain.strategy)
    for hospital in three.sites:
        same(kept(three, hospital, f"masked-{name}"), kept(three, hospital, f"open-{name}"))


@pytest.mark.parametrize("name", CHOICES)
def test_what_quantising_loses_parts_the_sums_by_what_is_still_to_come(
    name: str, three: Hospitals
) -> None:
    """Up and down."""
    experiment, run = of(name), f"residuals-{name}"
    done = three.conduct(experiment, run, rounds=4)
    assert require_agreement(three, done, experiment, run) > 1e-3


@pytest.mark.parametrize("name", CHOICES)
def test_it_goes_on_after_a_restart_as_if_nothing_had_been(name: str, three: Hospitals) -> None:
    """The coordinator's, which then sends whole models, and a hospital's, which lost the one it held."""
    through = three.conduct(of(name), f"through-{name}", rounds=4)
    three.conduct(of(name), f"broken-{name}", rounds=2)
    shutil.rmtree(three.sites["hill"].state / "models")
    again = three.conduct(of(name), f"broken-{name}", rounds=2)
    same(again.model, through.model)
    same(again.strategy, through.strategy)
    same(again.codec, through.codec)


def test_a_hospital_without_the_model_gets_c_with_the_whole_one(three: Hospitals) -> None:
    """In the middle of a run of differences."""
    experiment = of("scaffold")
    folder, conductor, done = three.conductor(experiment, "lost-model")
    for number in (1, 2, 3):
        if number == 3:
            shutil.rmtree(three.sites["hill"].state / "models")
        three.asked.clear()
        sent, done = done, conductor.round(done)
        folder.save(done)
    whole = [
        (name, blob)
        for name, request, blob in three.asked
        if name == "hill" and request.base is None
    ]
    assert len(whole) == 1
    assert whole[0][1] == wire.pack(sent.model | strategies.sent_down(sent.strategy))
    assert all(o["status"] == "ok" for o in rows(three, "lost-model")[-1]["hospitals"].values())
    through = three.conduct(experiment, "kept-model", rounds=3)
    same(done.model, through.model)


# --- whatever becomes of an answer -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "secure"), [("scaffold", None), ("feddyn", None), ("scaffold", MASKS)], ids=str
)
def test_an_answer_that_never_came_is_forgotten_at_the_hospital(
    name: str, secure: Any, three: Hospitals, tmp_path: Path
) -> None:
    """It trained and remembered; the sums agree again all the same."""
    made = three if secure is None else hospitals(tmp_path, 4, patients=5)  # three are left
    experiment = of(
        name, secure_aggregation=secure, least=2, codec=of(name).codec if secure else None
    )
    run = f"late-{name}"

    def lost(request: Request, records: RecordDict, answer: Any) -> Any:
        reply = answer(records)
        return CRASH if request.round == 2 and request.phase is Phase.WORK else reply

    made.meddle["hill"] = lost
    done = made.conduct(experiment, run, rounds=4)
    counted = {
        r.round: r.counted for n, r, _ in made.asked if n == "hill" and r.phase is Phase.WORK
    }
    assert counted == {1: None, 2: 1, 3: 1, 4: 3}
    assert {n: int(a) for n, a in done.strategy.items() if n.startswith("counted/")} == {
        f"counted/{hospital}": 4 for hospital in made.sites
    }
    require_agreement(made, done, experiment, run)


@pytest.mark.parametrize("name", CHOICES)
def test_a_hospital_that_lost_its_memory_says_so_and_stays_out(name: str, three: Hospitals) -> None:
    run, experiment = f"lost-{name}", of(name, least=2, codec=None)
    three.conduct(experiment, run, rounds=1)
    shutil.rmtree(state(three, "lake", run).folder)
    done = three.conduct(experiment, run, rounds=2)
    last = rows(three, run)[-1]["hospitals"]
    assert {h: row["reason"] for h, row in last.items()} == {
        "east": None, "hill": None, "lake": Reason.NO_STATE.value,
    }  # fmt: skip
    assert int(done.strategy["counted/lake"]) == 1
    for parameter in parameters(experiment):
        assert np.isfinite(done.model[parameter]).all()


@pytest.mark.parametrize("name", CHOICES)
def test_kill_9_between_remembering_and_answering(
    name: str, three: Hospitals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The round is asked again, and starts from the memory before it."""
    experiment, run = of(name, codec=None, attempts=2), f"killed-{name}"
    config = {"experiment": experiment.canonical(), "experiment-sha256": experiment.sha256()}
    killed: list[int] = []

    def kill_first(request: Request, records: RecordDict, answer: Any) -> Any:
        if request.round != 2 or killed:
            return answer(records)
        with in_process._ONE_AT_A_TIME:
            child = os.fork()
            if child == 0:
                signal.alarm(60)
                kill = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
                Outbox.answer = kill  # type: ignore[method-assign]
                app.respond(records, config, three.sites["hill"])
                os._exit(0)
            killed.append(os.WTERMSIG(os.waitpid(child, 0)[1]))
        assert state(three, "hill", run).rounds() == [1, 2]
        return CRASH

    through = three.conduct(experiment, f"whole-{name}", rounds=3)
    three.meddle["hill"] = kill_first
    again = three.conduct(experiment, run, rounds=3)
    assert killed == [signal.SIGKILL]
    same(again.model, through.model)
    same(again.strategy, through.strategy)
    same(kept(three, "hill", run), kept(three, "hill", f"whole-{name}"))


def test_policies_that_cut_steps_leave_the_sums_equal(three: Hospitals) -> None:
    experiment, run = of("scaffold", codec=None), "cut"
    site = three.sites["hill"]
    three.sites["hill"] = site.model_copy(
        update={"policy": site.policy.model_copy(update={"most_local_steps": 1})}
    )
    try:
        done = three.conduct(experiment, run, rounds=3)
    finally:
        three.sites["hill"] = site
    assert [o["status"] for o in rows(three, run)[-1]["hospitals"].values()] == ["ok"] * 3
    require_agreement(three, done, experiment, run)


# --- with privacy ----------------------------------------------------------------------------------

PRIVATE = {"noise_multiplier": 1.0, "sampling_rate": 0.5, "ema": 0.5}


@pytest.fixture(scope="module")
def _private(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    promise = {"patients": 8, "epsilon": 900.0, "answer_every": 0}
    return hospitals(tmp_path_factory.mktemp("private"), 2, patients=5, privacy=[promise] * 2)


@pytest.mark.parametrize("name", CHOICES)
def test_with_privacy_what_is_kept_is_made_of_what_was_sent(name: str, _private: Hospitals) -> None:
    """The noised updates that left, and what came: nothing else of a hospital is in its memory; and
    the ledger is charged for the training alone."""
    private, memory = _private.fresh(), dict[str, Arrays]()
    experiment = of(
        name, model=SMALL | {"norm": "group"}, privacy=PRIVATE, codec=None, rounds=3, least=2
    )
    folder, conductor, done = private.conductor(experiment, name)
    for _ in range(2):
        came = strategies.sent_down(done.strategy)
        private.heard.clear()
        done = conductor.round(done)
        folder.save(done)
        for hospital, _, reply in private.heard:
            memory[hospital] = remembered(experiment, memory.get(hospital, {}), came, reply)
    assert any(array.startswith("mean/") for array in done.strategy)
    assert len(memory) == 2
    for hospital, site in private.sites.items():
        found = kept(private, hospital, name)
        assert found.keys() == memory[hospital].keys()
        for array, expected in memory[hospital].items():
            np.testing.assert_allclose(found[array], expected, rtol=1e-5, atol=1e-5)
        assert max(np.abs(array).max() for array in found.values()) > 0.01
        key = load_key(site.state / "pseudonym.key")
        with Ledger.open(site.state / "ledger.sqlite", cohort_id(key, hospital)) as ledger:
            charged = [charge.mechanisms for charge in ledger.charges() if charge.run == name]
        assert experiment.privacy is not None
        training = accounting.of_training(experiment.privacy, experiment.training)
        assert [list(one) for one in charged] == [[training], [training]]


def remembered(experiment: Experiment, before: Arrays, came: Arrays, reply: RecordDict) -> Arrays:
    network = network_of(experiment)
    sent = wire.unpack(wire.blob(reply), Shape.of(models.arrays_of(network)))
    after = {}
    for array in parameters(experiment):
        own = before.get(array, np.zeros_like(sent[array]))
        if experiment.strategy.name == "scaffold":
            after[array] = own - came["down/" + array] - sent[array] / (STEPS * RATE)
        else:
            after[array] = own - 0.5 * sent[array]
    return after


# --- who is in a mean ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHOICES)
def test_with_models_at_the_hospitals_it_is_refused_by_name(name: str) -> None:
    experiment = of(name, secure_aggregation={"name": "ckks", "least": 3})
    chain = chains.build(experiment.codec, network_of(experiment), seed=0)
    with pytest.raises(ConfigError, match=f"strategy={name}.*secure_aggregation=masks"):
        require_summable(experiment, chain)
    masked = of(name, secure_aggregation=MASKS)
    assert require_summable(masked, chain) is chain
