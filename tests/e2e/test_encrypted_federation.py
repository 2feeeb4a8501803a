"""Sums that only hospitals read, between real processes: five hospitals, killed ones among them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from client_app.audit import Audit
from client_app.encrypted_state import EncryptedRun
from federation.messages import Arrays
from federation.processes import free_port, wait_until
from server_app.aggregation.sealed_sums import SealedSum
from server_app.state import RunFolder
from tests.e2e.eavesdropper import Eavesdropper
from tests.e2e.federation import TINY, Real, caught, federation, hospital, kill
from tests.e2e.test_federation import last_round

pytest.importorskip("tenseal")
pytestmark = pytest.mark.e2e

FIVE = ("east", "hill", "lake", "north", "south")
VICTIM = "south"
ENCRYPTED = [
    *TINY, "secure_aggregation=ckks", "rounds=3", "participation.least=4",
    "participation.attempts=1",
]  # fmt: skip
NEEDLE = 32  # bytes; four random float32 already stand nowhere by chance


@dataclass(frozen=True)
class Five:
    """The federation; all that `east` says and hears goes past the eavesdropper."""

    real: Real
    ear: Eavesdropper

    def file(self, name: str, run: str) -> Path:
        return EncryptedRun.of(self.real.sites[name] / "state", run).folder / "model.bin"

    def bits(self, run: str) -> set[tuple[str, bytes]]:
        """What is in the hospitals' files with the model: one content, where all have the same."""
        found = set()
        for name in FIVE:
            content = self.file(name, run).read_bytes()[32:]
            end = 8 + int.from_bytes(content[:8], "little")
            # safetensors writes what is told beside the arrays in any order
            header = json.dumps(json.loads(content[8:end]), sort_keys=True)
            found.add((header, content[end:]))
        return found

    def held(self, name: str, run: str) -> Arrays:
        """Parameters and buffers of the model that a hospital holds; read without our own reader."""
        content = safetensors.numpy.load(self.file(name, run).read_bytes()[32:])
        return {key: array for key, array in content.items() if key.startswith("model/")}

    def rows(self, run: str, kind: str) -> list[dict[str, Any]]:
        return [
            row for row in RunFolder(self.real.home.runs / run).metrics() if row["kind"] == kind
        ]

    def worked(self, name: str) -> int:
        """How often a hospital was asked for work, as its own audit log has it."""
        entries = Audit(self.real.sites[name] / "state" / "audit.jsonl").entries()
        asked = [e for e in entries if e.event == "request" and e.fields["phase"] == "work"]
        return len(asked)

    def everything(self, since: int = 0) -> dict[str, bytes]:
        """What a coordinator has: all on its disk, and what went past the ear."""
        files = (path for path in self.real.home.path.rglob("*") if path.is_file())
        return {"the wire": bytes(self.ear.heard[since:])} | {
            str(path.relative_to(self.real.home.path)): path.read_bytes() for path in files
        }


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Five]:
    port = free_port()
    with federation(tmp_path_factory.mktemp("encrypted"), FIVE, dial={"east": port}) as real:
        for folder in real.sites.values():
            site = folder / "site.yaml"
            policy = "policy:\n  release: coordinator\n"
            site.write_text(site.read_text().replace("policy:\n", policy))
        ear = Eavesdropper(real.home, port)
        assert wait_until(lambda: real.online() == set(FIVE), seconds=240), real.online()
        yield Five(real, ear)


def needles(model: Arrays) -> list[bytes]:
    """Pieces of each trained array, far fewer bytes than any page or packet that could split it."""
    found = []
    for array in model.values():
        content = array.tobytes()
        if array.dtype.kind == "f" and len(np.unique(array)) > NEEDLE // 2:
            found += [content[at : at + NEEDLE] for at in range(0, len(content) - NEEDLE, 512)]
    return found


def places(model: Arrays, everything: dict[str, bytes]) -> set[str]:
    """Where a piece of a model stands."""
    return {
        where for where, content in everything.items() if any(n in content for n in needles(model))
    }


def test_a_run_whose_model_only_hospitals_have(five: Five) -> None:
    done = five.real.coordinator("run", "run=whole", *ENCRYPTED)
    assert done.returncode == 0, done.stdout + done.stderr
    for row in five.rows("whole", "round"):
        assert row["summed"]["hospitals"] == list(FIVE)
        assert math.isfinite(row["summed"]["loss"])
        for told in row["hospitals"].values():
            assert told["status"] == "ok"
            assert not {"loss", "patients", "examples", "update_norm"} & told.keys()
    assert len(five.bits("whole")) == 1
    model = five.held("north", "whole")
    assert len(needles(model)) > 10
    everything = five.everything()
    assert len(everything["the wire"]) > 100_000
    assert any(name.endswith("superlink.db") for name in everything)
    assert places(model, everything) == set()
    for name in FIVE:
        hospital("audit", "verify", "--site", str(five.real.sites[name] / "site.yaml"))


def test_a_killed_coordinator_opens_the_sum_that_it_has(five: Five) -> None:
    """`kill -9` between work and open: resumed, nobody works again, and no bit of the model changes.

    This run's model the coordinator may have. So the search that finds none above must find this one,
    which is the same.
    """
    before, since = {name: five.worked(name) for name in FIVE}, len(five.ear.heard)
    run = five.real.home.runs / "resumed"
    following = five.real.begin(
        "run", "run=resumed", *ENCRYPTED, "secure_aggregation.release=coordinator"
    )
    second = run / "sums" / "2.bin"
    assert caught(second.exists, seconds=300), following.communicate()[0]
    port = five.real.home.federation().port
    kill("flwr-serverapp", f"127.0.0.1:{port}")
    made = SealedSum.load(RunFolder(run), 2, training=True)
    assert made is not None and set(made.survivors) == set(FIVE)
    assert last_round(five.real.home, "resumed") == 1
    following.wait(240)
    assert following.returncode != 0
    done = five.real.coordinator("run", "resume=resumed")
    assert done.returncode == 0, done.stdout + done.stderr
    # three rounds and the evaluation of the last model
    assert {name: five.worked(name) - before[name] for name in FIVE} == dict.fromkeys(FIVE, 4)
    assert len(five.bits("resumed")) == 1
    released = safetensors.numpy.load_file(run / "model.safetensors")
    for name, array in five.held("north", "whole").items():
        assert array.tobytes() == released[name.removeprefix("model/")].tobytes(), name
    found = places(five.held("north", "whole"), five.everything(since))
    assert "the wire" in found
    assert any(where.startswith("runs/resumed/") for where in found)
    assert not any(where.startswith("runs/whole/") for where in found)


def test_a_hospital_that_missed_a_round_follows(five: Five) -> None:
    """`kill -9` of all its processes while it works; back for the next round, it opens the sum."""
    first, since = five.worked(VICTIM), len(five.ear.heard)
    following = five.real.begin("run", "run=missed", *ENCRYPTED)
    assert wait_until(lambda: last_round(five.real.home, "missed") >= 1, seconds=300)
    assert caught(lambda: five.worked(VICTIM) == first + 2, seconds=60)
    kill(str(five.real.sites[VICTIM]))
    assert wait_until(lambda: last_round(five.real.home, "missed") >= 2, seconds=240)
    five.real.serve(VICTIM)
    output, _ = following.communicate(timeout=300)
    assert following.returncode == 0, output
    rows = five.rows("missed", "round")
    steady = sorted(set(FIVE) - {VICTIM})
    assert [row["summed"]["hospitals"] for row in rows] == [list(FIVE), steady, list(FIVE)]
    assert rows[1]["hospitals"][VICTIM]["status"] == "left out"
    assert len(five.bits("missed")) == 1
    assert five.bits("missed") != five.bits("whole")
    # of the model released above much is the same: so in what is new
    found = places(five.held(VICTIM, "missed"), five.everything(since))
    assert not any(where == "the wire" or where.startswith("runs/missed/") for where in found)
    assert json.loads((five.real.home.runs / "missed" / "status.json").read_text())["round"] == 3
