"""What a hospital tells Prometheus: read from its files, whatever their state, and naming nobody."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import urllib.request
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families as families

from client_app.audit import Audit
from client_app.imaging.index import update
from client_app.imaging.pseudonym import load_key
from client_app.ledger import Budget, Ledger, cohort_id
from client_app.metrics import ALL, parts
from client_app.site import Privacy, Site
from federation import metrics
from federation.metrics import Lines, Parts
from federation.privacy.accounting import Mechanism
from federation.processes import free_port
from federation.schema import ConfigError

BUDGET = Budget(8.0, 1e-5, "rdp")


def registered(site: Site) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(Parts(parts(site)))
    return registry


def charge(site: Site, round_: int) -> float:
    with Ledger.open(site.state / "ledger.sqlite", _cohort(site)) as ledger:
        spent = ledger.charge(
            run="monday",
            round=round_,
            request=f"{round_:064x}",
            experiment="0" * 64,
            mechanisms=[Mechanism(1.0, 0.1, 5)],
            budget=BUDGET,
            lodged=None,
            attempts=1,
        )
    return spent.epsilon


def _cohort(site: Site) -> str:
    return cohort_id(load_key(site.state / "pseudonym.key"), site.hospital)


@pytest.fixture
def private(site: Site) -> Site:
    Ledger.create(site.state / "ledger.sqlite", _cohort(site))
    return site.model_copy(update={"privacy": Privacy(patients=100, epsilon=8.0)})


def test_requests_answers_refusals_and_bytes_are_counted_as_they_come(site: Site) -> None:
    audit, registry = Audit(site.state / "audit.jsonl"), registered(site)
    assert registry.get_sample_value("consilium_requests_total") == 0
    audit.append("request", run="monday", round=1, bytes=1000)
    audit.append("answer", run="monday", round=1, bytes=70)
    assert registry.get_sample_value("consilium_requests_total") == 1
    audit.append("request", run="monday", round=2, bytes=24)
    audit.append("letter", run="monday", round=2, bytes=5)
    audit.append("refusal", run="monday", round=2, reason="budget_spent")
    audit.append("refusal", run="monday", round=2, reason="a word that nobody knows")
    for _ in range(2):  # a second look counts nothing twice
        assert registry.get_sample_value("consilium_requests_total") == 2
        assert registry.get_sample_value("consilium_received_bytes_total") == 1024
        assert registry.get_sample_value("consilium_sent_bytes_total") == 75
        for reason, count in (("budget_spent", 1), ("other", 1), ("replayed", None)):
            found = registry.get_sample_value("consilium_refusals_total", {"reason": reason})
            assert found == count
        assert registry.get_sample_value("consilium_answers_total", {"kind": "letter"}) == 1
    last = [json.loads(line) for line in audit.path.read_text().splitlines()][-1]
    assert registry.get_sample_value(
        "consilium_last_answer_timestamp_seconds"
    ) == metrics.seconds_of(last["time"])


def test_the_budget_is_read_while_somebody_charges_it(private: Site) -> None:
    registry = registered(private)
    assert registry.get_sample_value("consilium_epsilon_left") == 8.0
    spent = charge(private, 1)
    writer = sqlite3.connect(private.state / "ledger.sqlite", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")  # a charge under way, and slow
    assert registry.get_sample_value("consilium_epsilon_spent") == spent > 0
    assert registry.get_sample_value("consilium_epsilon_left") == 8.0 - spent
    assert registry.get_sample_value("consilium_ledger_charges") == 1
    writer.execute("ROLLBACK")
    writer.close()
    assert charge(private, 2) > spent
    assert registry.get_sample_value("consilium_ledger_charges") == 2


def test_reading_leaves_ledger_and_modes_as_they_were(private: Site) -> None:
    charge(private, 1)
    before = (private.state / "ledger.sqlite").read_bytes()
    assert registered(private).get_sample_value("consilium_ledger_charges") == 1
    assert (private.state / "ledger.sqlite").read_bytes() == before
    for file in private.state.glob("ledger.sqlite*"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    with Ledger.open(private.state / "ledger.sqlite", _cohort(private)) as ledger:
        assert ledger.verify()[0] == 1


def test_files_are_counted_and_no_name_of_theirs_is_told(site: Site) -> None:
    update(site.data, state=site.state, key=load_key(site.state / "pseudonym.key"), workers=0)
    registry = registered(site)
    found = registry.get_sample_value("consilium_indexed_files", {"state": "readable"})
    assert found is not None and found >= 16
    assert registry.get_sample_value("consilium_indexed_files", {"state": "set_aside"}) == 0


@pytest.mark.parametrize(
    ("file", "part", "other"),
    [
        ("ledger.sqlite", "ledger", "consilium_requests_total"),
        ("index.sqlite", "index", "consilium_ledger_charges"),
        ("audit.jsonl", "audit", "consilium_ledger_charges"),
        ("certificate", "certificate", "consilium_requests_total"),
    ],
)
def test_one_odd_file_costs_its_own_metrics_alone(
    file: str, part: str, other: str, private: Site
) -> None:
    Audit(private.state / "audit.jsonl").append("request", run="monday", round=1, bytes=1)
    odd = private.state / file
    if file == "certificate":
        private.kit.mkdir()
        odd = private.kit / "ca.crt"
    if odd.exists():
        odd.unlink()
    for trace in private.state.glob(f"{file}-*"):
        trace.unlink()
    if file == "audit.jsonl":
        odd.mkdir()
    else:
        odd.write_bytes(os.urandom(9000))
    registry = registered(private)
    failed = "consilium_metrics_failed"
    assert registry.get_sample_value(failed, {"part": part}) == 1
    assert registry.get_sample_value(failed, {"part": "disk"}) == 0
    assert registry.get_sample_value(other) is not None


def test_lines_are_given_once_whole_and_anew_when_the_file_is_another(tmp_path: Path) -> None:
    path, restarts = tmp_path / "log", []
    lines = Lines(path, lambda: restarts.append(1))
    assert list(lines.new()) == []
    path.write_bytes(b'{"a": 1}\n{"a"')
    assert list(lines.new()) == [{"a": 1}]
    with path.open("ab") as file:
        file.write(b': 2}\nnot json\n[1]\n{"a": 3}\n')
    assert list(lines.new()) == [{"a": 2}, {"a": 3}]
    assert list(lines.new()) == []
    count = len(restarts)
    (tmp_path / "other").write_bytes(b'{"a": 4}\n')
    (tmp_path / "other").replace(path)
    assert list(lines.new()) == [{"a": 4}]
    assert len(restarts) == count + 1


def test_no_memory_is_spent_on_a_line_without_end(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * (5 << 20) + b'\n{"a": 1}\n')
    assert list(Lines(path, lambda: None).new()) == [{"a": 1}]


def test_gpus_as_their_driver_tells_of_them(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in in the form that `nvidia-smi --help-query-gpu` describes, and one that fails."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho '0, 1035, 81559'\necho '1, 4, 81559'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    registry = registered(site)
    used, total = "consilium_gpu_memory_used_bytes", "consilium_gpu_memory_bytes"
    assert registry.get_sample_value(used, {"gpu": "0"}) == 1035 << 20
    assert registry.get_sample_value(total, {"gpu": "1"}) == 81559 << 20
    program.write_text("#!/bin/sh\nexit 9\n")
    assert registry.get_sample_value(used, {"gpu": "0"}) is None
    assert registry.get_sample_value("consilium_metrics_failed", {"part": "gpu"}) == 1


def test_it_is_served_and_named_as_described(private: Site) -> None:
    audit = Audit(private.state / "audit.jsonl")
    audit.append("request", run="CANARY^MARIA", round=1, bytes=1)
    audit.append("refusal", run="CANARY^MARIA", round=1, reason="CANARY-REASON")
    port = free_port()
    metrics.serve(parts(private), "127.0.0.1", port)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    assert "CANARY" not in text and str(private.state) not in text
    told = {metric.name for metric in families(text)}
    assert told <= {described.name for described in ALL}
    assert {"consilium_requests", "consilium_epsilon_left", "consilium_disk_free_bytes"} <= told
    with pytest.raises(ConfigError, match="choose another port"):
        metrics.serve(parts(private), "127.0.0.1", port)
