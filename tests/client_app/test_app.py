"""One request at the hospital: what it answers, and that nothing but that leaves."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict

from client_app import app
from client_app.audit import Audit
from client_app.received import Asked, learning_rate, local_seed
from client_app.site import Data, Policy, Site
from federation import messages, models, tasks, wire
from federation.messages import Answer, Expected, Reason, Request, Shape
from federation.schema import Experiment, parse
from tests.in_process import experiment

TASK = tasks.build(experiment().task)
SMALL = {"name": "resnet", "channels": [8, 8, 8, 8], "blocks": [1, 1, 1, 1], "norm": "batch"}


def content(**changes: Any) -> Experiment:
    return experiment(
        task={"name": "chest_xray", "size": 32},
        model=SMALL,
        evaluation={"held_out": 0.4},
        **changes,
    )


def model(of: Experiment) -> messages.Arrays:
    network = models.build(of.model, tasks.build(of.task), seed=0)
    return {name: tensor.numpy().copy() for name, tensor in network.state_dict().items()}


def ask(
    site: Site,
    of: Experiment,
    request: Request | None = None,
    sent: messages.Arrays | None = None,
    **config: Any,
) -> RecordDict:
    request = request or Request("run", 1, evaluate=True, train=True)
    site.state.mkdir(parents=True, exist_ok=True)
    records = wire.request_to_records(request, wire.pack(sent or model(of)))
    run_config = {"experiment": of.canonical(), "experiment-sha256": of.sha256()} | config
    return app.respond(records, run_config, site)


def read(records: RecordDict, of: Experiment, request: Request | None = None) -> Answer:
    request = request or Request("run", 1, evaluate=True, train=True)
    return wire.answer_from_records(
        records, request, Expected(Shape.of(model(of)), frozenset(TASK.metrics))
    )


def test_a_request_is_evaluated_and_trained(site: Site) -> None:
    of = content()
    answer = read(ask(site, of), of)
    assert answer.refused is None
    assert answer.trained is not None
    assert answer.evaluated is not None
    assert answer.evaluated.patients > 0
    assert answer.trained.patients > 0
    assert answer.trained.patients + answer.evaluated.patients == 16
    counters = {n: a for n, a in answer.trained.update.items() if "num_batches_tracked" in n}
    assert counters
    assert all(a.dtype == np.int64 and a == 1 for a in counters.values())  # one local step
    assert any(np.abs(a).max() > 0 for a in answer.trained.update.values() if a.dtype == np.float32)


def test_the_same_request_gives_the_same_bits_and_another_round_others(site: Site) -> None:
    of = content(training={"local_steps": 3, "batch_size": 4, "learning_rate": 0.01})
    one, again = (read(ask(site, of), of).trained for _ in range(2))
    later = Request("run", 2, evaluate=False, train=True)
    other = read(ask(site, of, later), of, later).trained
    assert one is not None and again is not None and other is not None
    for name, array in one.update.items():
        assert array.tobytes() == again.update[name].tobytes()
    assert any(a.tobytes() != other.update[n].tobytes() for n, a in one.update.items())


def test_an_evaluation_alone_trains_nothing(site: Site) -> None:
    of = content()
    request = Request("run", 4, evaluate=True, train=False)
    answer = read(ask(site, of, request), of, request)
    assert answer.trained is None
    assert answer.evaluated is not None


@pytest.mark.parametrize(
    ("policy", "changes", "reason"),
    [
        ({"tasks": ["hippocampus"]}, {}, Reason.REFUSED_TASK),
        ({"models": ["unet"]}, {}, Reason.REFUSED_MODEL),
        ({"most_rounds": 2}, {"rounds": 3}, Reason.REFUSED_ROUNDS),
        ({"least_patients": 100}, {}, Reason.TOO_FEW_PATIENTS),
    ],
)
def test_policy_refuses_with_a_code(
    policy: dict[str, Any], changes: dict[str, Any], reason: Reason, site: Site
) -> None:
    strict = site.model_copy(update={"policy": Policy(**policy)})
    records = ask(strict, content(**changes))
    assert read(records, content()).refused is reason
    assert set(records["head"]) == {"round", "refused"}


def test_the_stricter_number_of_steps_wins(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    from client_app.training import loop

    real = loop.train

    def spy(*args: Any, **kwargs: Any) -> Any:
        steps.append(kwargs["training"].local_steps)
        return real(*args, **kwargs)

    monkeypatch.setattr(loop, "train", spy)
    strict = site.model_copy(
        update={"policy": Policy(least_patients=3, most_local_steps=2, smallest_group=1)}
    )
    ask(strict, content(training={"local_steps": 50, "batch_size": 2, "learning_rate": 0.01}))
    ask(strict, content(training={"local_steps": 1, "batch_size": 2, "learning_rate": 0.01}))
    assert steps == [2, 1]


CANARY = "Smith^John 19500203"


def boom(*_: Any, **__: Any) -> Any:
    raise RuntimeError(f"cannot read /images/{CANARY}.dcm")


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("client_app.patients.build_cohort", Reason.INTERNAL_ERROR),
        ("client_app.training.loop.train", Reason.INTERNAL_ERROR),
        ("client_app.training.loop.predictions", Reason.INTERNAL_ERROR),
        ("federation.models.build", Reason.INTERNAL_ERROR),
        ("client_app.app.Outbox.answer", Reason.INTERNAL_ERROR),
    ],
)
def test_no_exception_leaves_with_its_text(
    target: str, reason: Reason, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = content()
    sent = model(of)
    monkeypatch.setattr(target, boom)
    records = ask(site, of, sent=sent)
    monkeypatch.undo()
    assert read(records, of).refused is reason
    assert set(records["head"]) == {"round", "refused"}
    for path in site.state.rglob("*.jsonl"):  # nor does it enter the hospital's own log
        assert CANARY not in path.read_text()
    errors = [json.loads(line) for line in (site.state / "errors.jsonl").read_text().splitlines()]
    assert errors[0]["error"][0] == "RuntimeError"
    assert any("test_app:boom" in frame for frame in errors[0]["error"])


def last(records: RecordDict) -> Reason | None:
    assert CANARY not in str(records)
    assert set(records) == {"head"}
    assert set(records["head"]) == {"round", "refused"}
    return read(records, content()).refused


@pytest.mark.parametrize("broken", ["missing", "not yaml", "unknown key", "no permission"])
def test_a_site_file_that_cannot_be_read_is_a_code_too(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"{CANARY}.yaml"
    if broken == "not yaml":
        path.write_text(f"{CANARY}: : :")
    elif broken == "unknown key":
        path.write_text(f"{CANARY}: 1")
    elif broken == "no permission":
        path.mkdir()  # as root reads everything, a folder stands for what cannot be opened
    monkeypatch.setenv("CONSILIUM_SITE", str(path))
    assert last(app.serve(RecordDict(), {})) is Reason.BAD_SITE


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, Reason.DISK_FULL),
        (errno.EDQUOT, Reason.DISK_FULL),
        (errno.EIO, Reason.INTERNAL_ERROR),
    ],
)
def test_a_journal_that_cannot_be_written_is_a_code_too(
    site: Site, monkeypatch: pytest.MonkeyPatch, number: int, reason: Reason
) -> None:
    """Its error names a path, and arises where errors are handled."""

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number), f"/state/{CANARY}/audit.jsonl")

    monkeypatch.setattr(app, "read_site", lambda _: site)
    monkeypatch.setenv("CONSILIUM_SITE", "site.yaml")
    monkeypatch.setattr("client_app.audit.Audit.append", full)
    monkeypatch.setattr(app, "_log", full)
    assert last(app.serve(RecordDict(), {})) is reason


def test_a_full_disk_is_told_from_whatever_came_of_it(site: Site, tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "ledger.sqlite")
    database.execute("PRAGMA max_page_count = 2")
    database.execute("CREATE TABLE charges (row BLOB)")

    def charge(*_: Any, **__: Any) -> Any:
        try:
            database.execute("INSERT INTO charges VALUES (?)", (bytes(1 << 16),))
        except sqlite3.Error as fault:
            raise RuntimeError("the ledger cannot be written") from fault

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "_train_and_evaluate", charge)
        assert read(ask(site, content()), content()).refused is Reason.DISK_FULL


def test_a_device_that_is_not_there_is_the_sites_fault(site: Site) -> None:
    absent = site.model_copy(update={"device": "cuda:99"})
    assert read(ask(absent, content()), content()).refused is Reason.BAD_SITE


def test_memory_and_divergence_have_codes_of_their_own(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("client_app.training.loop.train", full)
        assert read(ask(site, content()), content()).refused is Reason.OUT_OF_MEMORY
    huge = content(
        training={"local_steps": 20, "batch_size": 2, "learning_rate": 10, "optimizer": "sgd"}
    )
    sent = {n: a * np.float32(1e30) if a.dtype == np.float32 else a for n, a in model(huge).items()}
    reason = read(ask(site, huge, sent=sent), huge).refused
    assert reason in (Reason.DIVERGED, Reason.NOT_FINITE, Reason.INTERNAL_ERROR)


@pytest.mark.parametrize("bad", ["text", "hash", "task", "model"])
def test_a_bad_experiment_or_model_is_refused(bad: str, site: Site) -> None:
    of = content()
    config: dict[str, Any] = {}
    sent = model(of)
    if bad == "text":
        config = {"experiment": "{", "experiment-sha256": "0"}
    elif bad == "hash":
        config = {"experiment-sha256": "0" * 64}
    elif bad == "task":
        other = of.model_copy(update={"task": of.task.model_copy(update={"name": "nothing"})})
        config = {"experiment": other.canonical(), "experiment-sha256": other.sha256()}
    else:
        sent = {"w": np.zeros(3, np.float32)}
    refused = read(ask(site, of, sent=sent, **config), of).refused
    assert refused is (Reason.WRONG_NAMES if bad == "model" else Reason.BAD_EXPERIMENT)


def test_a_site_that_cannot_serve_says_so_without_its_paths(site: Site, tmp_path: Path) -> None:
    data = site.data.model_copy(update={"root": tmp_path / CANARY})
    records = ask(site.model_copy(update={"data": data}), content())
    assert read(records, content()).refused is Reason.BAD_SITE
    assert set(records["head"]) == {"round", "refused"}


def test_what_left_is_written_down(site: Site) -> None:
    import hashlib

    of = content()
    records = ask(site, of)
    asked, sent = Audit(site.state / "audit.jsonl").entries()
    blob = wire.blob(records)
    assert asked.event == "request"
    assert asked.fields["experiment"] == of.sha256()
    assert sent.event == "answer"
    assert sent.fields["sha256"] == hashlib.sha256(blob).hexdigest()
    assert (sent.fields["run"], sent.fields["round"]) == ("run", 1)
    assert sent.fields["bytes"] == len(blob)
    assert set(sent.fields["numbers"]) == set(records["head"]) - {"blob"}


def asked(seed: int, hospital: str, round_: int, **training: Any) -> Asked:
    of = content(seed=seed, training=TRAINING | training)
    site = Site(hospital=hospital, kit=Path(), state=Path(), data=Data(root=Path()))
    request = Request("run", round_, evaluate=False, train=True)
    return Asked(request, of, of.training, site, b"", "", 0.0)


TRAINING = {"local_steps": 1, "batch_size": 1, "learning_rate": 0.1}


def test_the_local_seed_depends_on_all_it_should() -> None:
    seeds = {
        local_seed(asked(*parts))
        for parts in [
            (0, "a", 1),
            (1, "a", 1),
            (0, "b", 1),
            (0, "a", 2),
            (0, "a1", 1),
            (0, "a", 11),
        ]
    }
    assert len(seeds) == 6


def test_the_learning_rate_decays_by_round() -> None:
    rates = [learning_rate(asked(0, "a", r, learning_rate_decay=0.5)) for r in (1, 2, 3)]
    assert rates == pytest.approx([0.1, 0.05, 0.025])


def test_a_site_file_is_read_relative_to_itself(tmp_path: Path) -> None:
    import yaml

    from client_app.site import read_site

    path = tmp_path / "site.yaml"
    path.write_text(
        yaml.safe_dump(
            {"hospital": "north", "kit": "kit", "state": "/var/state",
             "data": {"root": "images", "layout": "dicom", "labels": "labels.csv"}}
        )
    )  # fmt: skip
    read = read_site(path)
    assert read.kit == tmp_path / "kit"
    assert read.state == Path("/var/state")
    assert read.data.labels == tmp_path / "labels.csv"
    assert parse(Site, read.model_dump()) == read
