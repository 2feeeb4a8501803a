"""Containers that are killed or cut off in the middle of private rounds.

A federation of its own, whose hospitals keep budgets: whatever breaks, the run completes with those that
remain or is resumed, who is missing stands there with a reason, and no ledger counts too little.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

import docker
from tests.e2e.docker.stack import HOSPITALS, ROOT, TINY, Stack, demo

pytestmark = pytest.mark.docker

PRIVATE = (
    *TINY, "model.norm=group", "privacy=patient_dp", "privacy.noise_multiplier=4.0",
    "privacy.epsilon=null", "privacy.sampling_rate=0.5", "participation.least=2",
    "participation.deadline=120",  # the first round reads images, and the machine may be busy
)  # fmt: skip


@pytest.fixture(scope="module")
def stack(images: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Hospitals that keep a budget."""
    place = tmp_path_factory.mktemp("faults")
    place.chmod(0o755)
    services: dict[str, Any] = {}
    for name in HOSPITALS:
        site = yaml.safe_load((ROOT / f"docker/demo/{name}/site.yaml").read_text())
        site["privacy"] = {"patients": 18, "epsilon": 1000.0, "answer_every": 0.0}
        file = place / f"{name}.yaml"
        file.write_text(yaml.safe_dump(site))
        file.chmod(0o644)
        mounts = {"volumes": [f"{file}:/hospital/site.yaml:ro"]}
        services |= {f"{name}-{part}": mounts for part in ("prepare", "supernode", "superexec")}
    override = place / "override.yaml"
    override.write_text(json.dumps({"services": services}))
    with demo(images, override=override) as made:
        for name in HOSPITALS:
            assert said(made, name, "ledger", "create")[0] == 0
        yield made


def said(stack: Stack, name: str, *command: str) -> tuple[int, str]:
    """The `hospital` command beside a hospital's images: its exit status and what it said."""
    code, output = stack.container(f"{name}-superexec").exec_run(["hospital", *command])
    return code, output.decode(errors="replace")


def rounds(stack: Stack, run: str) -> list[dict[str, Any]]:
    """The rounds that are committed; none where the run's folder is not there yet."""
    try:
        text = stack.read(f"/coordinator/runs/{run}/metrics.jsonl")
    except docker.errors.APIError:
        return []
    rows = [json.loads(line) for line in text.splitlines() if line.endswith(b"}")]
    return [row for row in rows if row["kind"] == "round"]


def words(stack: Stack, run: str, name: str) -> list[str]:
    """What became of a hospital in each round: ok, or a reason."""
    told = [row["hospitals"][name] for row in rounds(stack, run)]
    return [one["reason"] if one["status"] == "left out" else one["status"] for one in told]


def kill(stack: Stack, service: str) -> None:
    """`kill -9` of all of a container at once, by its init, as when a machine's memory ends."""
    container = stack.container(service)
    restarts = container.attrs["RestartCount"]
    os.kill(container.attrs["State"]["Pid"], signal.SIGKILL)

    def back() -> bool:
        return stack.container(service).attrs["RestartCount"] > restarts and stack.healthy(service)

    assert stack.until(back, seconds=180), service + stack.logs()


def require_whole_books(stack: Stack, name: str) -> None:
    """Both chains hold, and the ledger has a charge for each answer that left.

    A charge is in the ledger before it is in the audit log, so a kill between them leaves more there.
    """
    for book in ("ledger", "audit"):
        code, output = said(stack, name, book, "verify")
        assert code == 0, output
    log = stack.read("/hospital/state/audit.jsonl", f"{name}-superexec").decode()
    events = [json.loads(line)["event"] for line in log.splitlines()]
    shown = json.loads(said(stack, name, "ledger", "show", "--json")[1])
    charges, answers = events.count("charge"), events.count("answer")
    assert answers <= shown["charges"] and charges <= shown["charges"], (name, shown)


def finished(stack: Stack, following: subprocess.Popen[str], run: str) -> None:
    """The run to its end, resumed where it broke off with a process of the coordinator's."""
    output, _ = following.communicate(timeout=600)
    for _ in range(3):
        if following.returncode == 0:
            return
        again = stack.coordinator("run", f"resume={run}", timeout=600)
        output += again.stdout + again.stderr
        if again.returncode == 0:
            return
    raise AssertionError(output + stack.logs())


def test_each_container_is_killed_in_mid_round(stack: Stack) -> None:
    run, last = "killed", 12
    following = stack.begin("run", *PRIVATE, f"rounds={last}", f"run={run}")
    for service in ("north-superexec", "north-supernode", "proxy", "superlink", "superexec"):
        done = len(rounds(stack, run))
        assert done or stack.until(lambda: bool(rounds(stack, run)), seconds=180), stack.logs()
        kill(stack, service)
    finished(stack, following, run)
    assert [row["round"] for row in rounds(stack, run)] == list(range(1, last + 1))
    for name in HOSPITALS:
        require_whole_books(stack, name)
        assert words(stack, run, name)[-1] == "ok", words(stack, run, name)
    allowed = {"ok", "absent", "unavailable", "crashed", "late", "no_model", "replayed"}
    for name in HOSPITALS:
        assert set(words(stack, run, name)) <= allowed, words(stack, run, name)


def test_a_hospital_is_cut_off_for_90_seconds(stack: Stack) -> None:
    run = "cut"
    following = stack.begin("run", *PRIVATE, "rounds=6", f"run={run}")
    assert stack.until(lambda: bool(rounds(stack, run)), seconds=180), stack.logs()
    network = stack.engine.networks.get(f"{stack.project}_north-outer")
    network.disconnect(stack.container("north-supernode"))
    time.sleep(90)
    network.connect(stack.container("north-supernode"))
    finished(stack, following, run)
    told = words(stack, run, "north")
    assert {"absent", "unavailable", "late"} & set(told), told
    assert words(stack, run, "east") == ["ok"] * 6 == words(stack, run, "west")
    require_whole_books(stack, "north")
    assert stack.until(lambda: stack.healthy("north-supernode"), seconds=120)
    assert one_round(stack, "cut-after") == "ok"


def one_round(stack: Stack, run: str) -> str:
    """What becomes of the north hospital in a run of one round, which the others complete."""
    done = stack.coordinator("run", *PRIVATE, "rounds=1", f"run={run}")
    assert done.returncode == 0, done.stdout + done.stderr + stack.logs()
    assert words(stack, run, "east") == ["ok"] == words(stack, run, "west")
    return words(stack, run, "north")[0]
