"""Layers and models that stay at hospitals, with real ClientApps: nothing of them is on the wire."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch

from client_app import encrypted_sum, masked_sum, private_round
from client_app.local_part import LocalPart, kept_here
from client_app.patients import find_patients
from client_app.received import update_of
from client_app.training import loop, private, tallies
from federation import models, strategies, tasks, wire
from federation.codec import chain as chains
from federation.messages import Arrays, Request, Shape
from federation.schema import Experiment
from server_app.aggregation import untrained
from tests.encrypted import CKKS, held
from tests.hospitals import MASKS, SMALL, Hospitals, content, hospitals
from tests.masked import rows

RUN = "monday"
GROUP = SMALL | {"norm": "group"}
INT8 = {"quantise": {"name": "integers", "bits": 8}}
WHOLE = INT8 | {"down": "full"}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def reporting(made: Hospitals) -> Hospitals:
    """The same, with metrics of the few patients of a phantom."""
    for name, site in made.sites.items():
        policy = site.policy.model_copy(update={"smallest_group": 1})
        made.sites[name] = site.model_copy(update={"policy": policy})
    return made


@pytest.fixture(scope="module")
def _three(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    return reporting(hospitals(tmp_path_factory.mktemp("three"), 3))


@pytest.fixture
def three(_three: Hospitals) -> Hospitals:
    return _three.fresh()


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Arrays]:
    """Updates as hospitals put them into a secret sum, read before they were hidden."""
    read: list[Arrays] = []
    real = masked_sum.integers_of

    def watched(asked: Any, received: Any, answer: Any, share: float) -> Any:
        update, bits, counted = real(asked, received, answer, share)
        if answer.trained is not None:
            scales = received.chain.scales_from_bytes(asked.request.scales)
            total = update.astype(np.int64)
            read.append(received.chain.decode(total, 1, scales, round=asked.request.round)[0])
        return update, bits, counted

    for module in (masked_sum, encrypted_sum):
        monkeypatch.setattr(module, "integers_of", watched)
    return read


def read_from_wire(made: Hospitals, of: Experiment) -> list[Arrays]:
    """Updates of the answers that came back, in the open."""
    network = network_of(of)
    shape, found = Shape.of(models.arrays_of(network)), []
    requests = {(name, request.round): request for name, request, _ in made.asked}
    for name, _, records in made.heard:
        blob = wire.blob(records)
        if not blob:  # an evaluation
            continue
        request = requests[name, int(records.config_records["head"]["round"])]
        if of.codec is None:
            found.append(wire.unpack(blob, shape))
        else:
            chain = chains.build(of.codec, network, seed=of.seed)
            scales = chain.scales_from_bytes(request.scales)
            encoded = chain.from_bytes(blob, round=request.round)
            found.append(chain.decode_one(encoded, scales, round=request.round))
    return found


def network_of(of: Experiment) -> torch.nn.Module:
    return models.build(of.model, tasks.build(of.task), seed=of.seed)


def require_nothing_sent(updates: list[Arrays], of: Experiment) -> None:
    """That what stays is exactly 0 in each update, and all else is not."""
    stays = strategies.kept_at_hospitals(of, network_of(of))
    assert stays
    assert updates
    for update in updates:
        for name, array in update.items():
            if name in stays:
                assert np.count_nonzero(array) == 0, name
        moved = [name for name in update.keys() - stays if np.count_nonzero(update[name])]
        assert moved or not update.keys() - stays


def described(name: str, secure: Any = None, codec: Any = None, **more: Any) -> Experiment:
    norm = {"model": SMALL}
    training = {"training": {"local_steps": 2, "batch_size": 2, "learning_rate": 0.05}}
    return content(
        **norm | training | {"strategy": {"name": name}, "rounds": 2, "codec": codec,
                             "secure_aggregation": secure} | more
    )  # fmt: skip


CASES: dict[str, tuple[str, Any, Any]] = {
    "fedbn": ("fedbn", None, None),
    "fedbn, int8": ("fedbn", None, INT8),
    "fedper, int8": ("fedper", None, INT8),
    "local_only, int8": ("local_only", None, INT8),
    "fedper, all_but_normalisation": (
        "fedper", None, INT8 | {"exchange": {"name": "all_but_normalisation"}},
    ),
    "fedper, masks": ("fedper", MASKS, INT8),
    "fedbn, ckks": ("fedbn", CKKS, WHOLE),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_stays_is_not_on_the_wire(case: str, three: Hospitals, sent: list[Arrays]) -> None:
    name, secure, codec = CASES[case]
    if secure is CKKS and find_spec("tenseal") is None:
        pytest.skip("TenSEAL is not installed")
    of, run = described(name, secure, codec), case.replace(", ", "-")
    done = three.conduct(of, run)
    updates = sent if secure else read_from_wire(three, of)
    assert len(updates) == 2 * 3
    require_nothing_sent(updates, of)

    network = network_of(of)
    stays = strategies.kept_at_hospitals(of, network)
    start = untrained(of.model_copy(update={"secure_aggregation": None}), network).model
    model = held(three, "east", of, run).model if secure is CKKS else done.model
    for key, array in model.items():
        if key in stays:
            assert array.tobytes() == start[key].tobytes(), key
    own = {site: kept_here(three.sites[site].state, run, of, network) for site in three.sites}
    assert all(arrays is not None and arrays.keys() == stays for arrays in own.values())
    trained = {
        b"".join(arrays[key].tobytes() for key in sorted(arrays))
        for arrays in own.values()
        if arrays
    }
    assert len(trained) == 3


@pytest.mark.parametrize("case", ["fedbn", "fedper, int8", "fedper, masks"])
def test_a_hospital_that_sends_its_layers_is_found(
    case: str, three: Hospitals, sent: list[Arrays], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, secure, codec = CASES[case]
    of = described(name, secure, codec)
    finish = LocalPart.finish

    def leaking(part: LocalPart, steps: int, personal: Arrays) -> Arrays:
        finish(part, steps, personal)
        return update_of(part.received)

    monkeypatch.setattr(LocalPart, "finish", leaking)
    three.conduct(of, f"leaking-{case.replace(', ', '-')}", rounds=1)
    with pytest.raises(AssertionError):
        require_nothing_sent(sent if secure else read_from_wire(three, of), of)


def measure(made: Hospitals, name: str, of: Experiment, arrays: Arrays) -> dict[str, float]:
    """A model on a hospital's held-out patients, computed here."""
    network, task = network_of(of), tasks.build(of.task)
    network.load_state_dict({key: torch.from_numpy(array) for key, array in arrays.items()})
    held_out = find_patients(made.sites[name], of).held_out
    return loop.evaluate(network, task, held_out.cases, held_out, device=torch.device("cpu"))


@pytest.mark.parametrize("name", ["fedper", "fedbn", "ditto"])
def test_metrics_are_of_each_hospitals_own_model(name: str, three: Hospitals) -> None:
    of = described(name)
    run = f"metrics-{name}"
    done = three.conduct(of, run)
    last = [row for row in rows(three, run) if row["kind"] == "evaluation"][-1]
    assert last["round"] == 2
    for site in three.sites:
        told = last["hospitals"][site]["metrics"]
        own = kept_here(three.sites[site].state, run, of, network_of(of))
        assert own is not None
        alone = measure(three, site, of, done.model)
        mixed = measure(three, site, of, done.model | own)
        assert alone != mixed
        if name == "ditto":
            expected = alone | {f"personal_{key}": value for key, value in mixed.items()}
        else:
            expected = mixed
        assert told == pytest.approx(expected, rel=1e-4, abs=1e-6)
    headline = tasks.build(of.task).headline
    worst = {headline, f"personal_{headline}"} if name == "ditto" else {headline}
    assert set(last["worst"]) <= worst
    assert headline in last["worst"]


def test_personal_metrics_are_summed_in_secret(three: Hospitals) -> None:
    of = described("ditto", MASKS, INT8)
    three.conduct(of, "ditto-masks")
    last = [row for row in rows(three, "ditto-masks") if row["kind"] == "evaluation"][-1]
    names = tasks.build(of.task).metrics
    assert any(f"personal_{name}" in last["overall"] for name in names)
    before = rows(three, "ditto-masks")[0]  # the personal model is the global one then
    for name in names:
        if name in before["overall"]:
            assert before["overall"][f"personal_{name}"] == pytest.approx(before["overall"][name])


def test_a_run_goes_on_after_everybody_was_restarted(three: Hospitals) -> None:
    of = described("fedper", None, INT8)
    once = three.conduct(of, "once")
    three.conduct(of, "twice", rounds=1)
    twice = three.conduct(of, "twice")
    assert {n: a.tobytes() for n, a in once.model.items()} == {
        n: a.tobytes() for n, a in twice.model.items()
    }
    for site in three.sites.values():
        files = list((site.state / "local").rglob("*.safetensors"))
        assert {file.stat().st_mode & 0o777 for file in files} == {0o600}


# --- with patient-level privacy -------------------------------------------------------------------


@pytest.fixture(scope="module")
def _private(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    budget = {"patients": 20, "epsilon": 900.0, "answer_every": 0}
    return reporting(hospitals(tmp_path_factory.mktemp("private"), 3, privacy=[budget] * 3))


@pytest.mark.parametrize("name", ["fedbn", "fedrep"])
def test_layers_stay_under_privacy_too(
    name: str, _private: Hospitals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Charged and noised as ever; the noisy metrics are of the network with its own layers."""
    made = _private.fresh()
    noise = {
        "noise_multiplier": 1.0, "sampling_rate": 0.5, "metrics": "noisy",
        "metrics_noise_multiplier": 2.0,
    }  # fmt: skip
    of = described(name, model=GROUP, privacy=noise, evaluation={"held_out": 0.25})
    stays = strategies.kept_at_hospitals(of, network_of(of))
    steps, measured = [], []
    train, tally = private.train, tallies.tally

    def counted(
        network: Any, task: Any, items: Any, patients: Any, training: Any, *a: Any, **k: Any
    ) -> Any:
        moving = {n for n, p in network.named_parameters() if p.requires_grad}
        steps.append((training.local_steps, moving))
        return train(network, task, items, patients, training, *a, **k)

    def seen(network: Any, *a: Any, **k: Any) -> Any:
        measured.append(
            {n: t.numpy().copy() for n, t in network.state_dict().items() if n in stays}
        )
        return tally(network, *a, **k)

    monkeypatch.setattr(private, "train", counted)
    monkeypatch.setattr(private_round, "tally", seen)
    run = f"private-{name}"
    made.conduct(of, run, rounds=2)
    updates = read_from_wire(made, of)
    assert len(updates) == 6
    require_nothing_sent(updates, of)
    assert sum(count for count, _ in steps) == 2 * 3 * of.training.local_steps
    if name == "fedrep":
        assert {frozenset(moving) for _, moving in steps} == {
            stays, frozenset(n for n, _ in network_of(of).named_parameters()) - stays,
        }  # fmt: skip
    start = models.arrays_of(network_of(of))
    same = [all(np.array_equal(m[n], start[n]) for n in stays) for m in measured]
    assert same == [True] * 3 + [False] * 3  # before the first round as they came


def test_ditto_is_refused_uncharged_where_patients_have_a_budget(_private: Hospitals) -> None:
    from tests.server_app.test_masked_privacy import charges

    made = _private.fresh()
    noise = {"noise_multiplier": 1.0, "sampling_rate": 0.5}
    fedavg = described("fedavg", model=GROUP, privacy=noise)
    ditto = fedavg.model_copy(update={"strategy": described("ditto").strategy})
    before = charges(made, "refused")
    network = network_of(ditto)
    request = Request("refused", 1, evaluate=False, train=True)
    records = wire.request_to_records(request, wire.pack(models.arrays_of(network)))
    reply = made.serve("east", ditto)(records)
    assert reply["head"]["refused"] == "bad_experiment"
    assert charges(made, "refused") == before
