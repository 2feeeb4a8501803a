"""What the coordinator tells Prometheus of runs, hospitals and certificates, from its folder alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families as families

from federation.metrics import Parts
from federation.processes import free_port
from server_app import metrics
from server_app.home import Federation, Home
from server_app.metrics import ALL, parts
from server_app.state import RunFolder
from tests.in_process import experiment
from tests.provisioned import provisioned


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Home:
    folder = tmp_path_factory.mktemp("federation")
    names = ["east", "north"]
    content = Federation(name="a", host="127.0.0.1", port=free_port(), hospitals=names)
    return provisioned(
        content, Home(folder / "coordinator"), {name: folder / name for name in names}
    )


@pytest.fixture
def home(made: Home) -> Home:
    for run in made.runs.iterdir():
        for file in run.iterdir():
            file.unlink()
        run.rmdir()
    return made


def run(home: Home, name: str) -> RunFolder:
    of = experiment(rounds=4)
    return RunFolder.create(home.runs / name, of, {"experiment_sha256": of.sha256()})


def round_row(number: int, **east: Any) -> dict[str, Any]:
    good = {"status": "ok", "reason": None, "bytes_down": 100, "bytes_up": 7}
    hospitals = {"north": good, "east": good | east}
    return {"kind": "round", "round": number, "seconds": 2.5, "hospitals": hospitals}


def registered(home: Home) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(Parts(parts(home)))
    return registry


def test_a_run_is_told_as_it_goes_and_anew_when_rounds_are_done_again(home: Home) -> None:
    folder, registry, of = run(home, "monday"), registered(home), {"run": "monday"}

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"consilium_{name}", of | labels)

    assert (value("run_round"), value("run_rounds")) == (0, 4)
    folder.append_metrics(round_row(1))
    folder.append_metrics({"kind": "evaluation", "round": 0, "hospitals": {}})
    folder.append_metrics(round_row(2, status="left out", reason="late", bytes_up=0))
    folder.write_status("running", 2, 4)
    for _ in range(2):
        assert value("run_round") == 2
        assert value("round_duration_seconds_count") == 2
        assert value("round_duration_seconds_sum") == 5.0
        assert (value("run_sent_bytes_total"), value("run_received_bytes_total")) == (400, 21)
        assert value("run_left_out_total", reason="late") == 1
        assert value("run_state", state="running") == 1
        assert value("run_state", state="failed") == 0
    folder.drop_metrics_after(1)
    folder.append_metrics(round_row(2, status="left out", reason="what nobody knows"))
    folder.write_status("failed", 2, 4, "CANARY^MARIA in a message")
    assert value("round_duration_seconds_count") == 2
    assert value("run_left_out_total", reason="late") is None
    assert value("run_left_out_total", reason="other") == 1
    assert value("run_state", state="failed") == 1
    assert b"CANARY" not in generate_latest(registry)


def test_a_run_that_cannot_be_read_hides_no_other(home: Home) -> None:
    run(home, "good")
    for name, status in (("cut", '{"state": "run'), ("list", "[]"), ("bare", "{}")):
        (home.runs / name).mkdir()
        (home.runs / name / "status.json").write_text(status)
    odd = run(home, "odd")
    odd.append_metrics({"kind": "round", "round": 1, "hospitals": 7})
    registry = registered(home)
    for name, rounds in (("good", 4), ("cut", None), ("list", None), ("bare", None)):
        assert registry.get_sample_value("consilium_run_rounds", {"run": name}) == rounds
    assert registry.get_sample_value("consilium_metrics_failed", {"part": "runs"}) == 0
    assert (
        registry.get_sample_value("consilium_run_rounds", {"run": "odd"}) == 4
    )  # by the second look


def test_only_the_newest_runs_are_told_of(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_NEWEST", 2)
    for age, name in enumerate(("new", "newer", "old")):
        os.utime(run(home, name).path / "status.json", (9e8 - age, 9e8 - age))
    os.utime(home.runs / "newer" / "status.json", (1e9, 1e9))
    registry = registered(home)
    for name, told in (("newer", 4), ("new", 4), ("old", None)):
        assert registry.get_sample_value("consilium_run_rounds", {"run": name}) == told


def test_a_scrape_takes_no_lock_of_a_run(home: Home) -> None:
    folder = run(home, "monday")
    registry = registered(home)
    generate_latest(registry)
    assert not (folder.path / "lock").exists()  # whoever looks by the lock makes the file


def test_certificates_and_a_superlink_that_is_down(home: Home) -> None:
    registry = registered(home)
    days = "consilium_certificate_left_days"
    server = registry.get_sample_value(days, {"certificate": "server"})
    assert server is not None and 396 < server < 397
    authority = registry.get_sample_value(days, {"certificate": "authority"})
    assert authority is not None and authority > 3640
    assert registry.get_sample_value("consilium_superlink_up") == 0
    told = {metric.name for metric in families(generate_latest(registry).decode())}
    assert {described.name for described in ALL} >= told
    (made_into := home.path / "server.crt").rename(home.path / "kept")
    try:
        made_into.write_text("no certificate")
        assert registry.get_sample_value("consilium_metrics_failed", {"part": "certificate"}) == 1
        assert registry.get_sample_value("consilium_disk_free_bytes")
    finally:
        (home.path / "kept").rename(made_into)


def test_metrics_of_a_folder_that_is_gone_say_so(tmp_path: Path) -> None:
    registry = registered(Home(tmp_path / "gone"))
    for part in ("superlink", "certificate", "disk"):
        assert registry.get_sample_value("consilium_metrics_failed", {"part": part}) == 1
