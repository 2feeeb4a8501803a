"""Containers that are killed, cut off, out of disk, out of time or put out, around private rounds.

A federation of its own, whose hospitals keep budgets: whatever breaks, the run completes with those that
remain or is resumed, who is missing stands there with a reason, and no ledger counts too little.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from docker.models.containers import Container

import docker
from tests.e2e.docker.stack import HOSPITALS, ROOT, TINY, VERSION, Stack, demo

pytestmark = pytest.mark.docker

PRIVATE = (
    *TINY, "model.norm=group", "privacy=patient_dp", "privacy.noise_multiplier=4.0",
    "privacy.epsilon=null", "privacy.sampling_rate=0.5", "participation.least=2",
)  # fmt: skip


KIT = {
    "type": "volume", "source": "coordinator", "target": "/hospital/kit", "read_only": True,
    "volume": {"subpath": "hospitals/north"},
}  # fmt: skip
USER = 10001  # as whom the containers run
DISK = 64 * 1024**2  # bytes
PATIENT = "participation.deadline=120"  # the first round reads images, and the machine may be busy
CLOCK = f"""
FROM debian:bookworm-slim AS clock
RUN apt-get update && apt-get install --yes --no-install-recommends libfaketime
RUN cp /usr/lib/*/faketime/libfaketime.so.1 /libfaketime.so.1
FROM consilium-hospital:{VERSION}
COPY --from=clock /libfaketime.so.1 /opt/libfaketime.so.1
ENV LD_PRELOAD=/opt/libfaketime.so.1 FAKETIME=-600s DONT_FAKE_MONOTONIC=1
"""


class Instead(list[Any]):
    """A list in place of another Compose file's, not after it."""


class Dumper(yaml.SafeDumper):
    pass


Dumper.add_representer(Instead, lambda made, held: made.represent_sequence("!override", held))


@pytest.fixture(scope="module")
def stack(images: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Hospitals that keep a budget; the north one has its state on a disk that can be full."""
    place = tmp_path_factory.mktemp("faults")
    place.chmod(0o755)
    disk = place / "disk"
    disk.mkdir()
    size = f"size={DISK},mode=0700,uid={USER},gid={USER}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(disk)], check=True)
    services: dict[str, Any] = {}
    for name in HOSPITALS:
        site = yaml.safe_load((ROOT / f"docker/demo/{name}/site.yaml").read_text())
        site["privacy"] = {"patients": 18, "epsilon": 1000.0, "answer_every": 0.0}
        file = place / f"{name}.yaml"
        file.write_text(yaml.safe_dump(site))
        file.chmod(0o644)
        mounts = [f"{file}:/hospital/site.yaml:ro"]
        parts = ("prepare", "supernode", "superexec")
        services |= {f"{name}-{part}": {"volumes": mounts} for part in parts}
    north = services["north-superexec"]["volumes"]
    for part in ("prepare", "superexec"):
        services[f"north-{part}"] = {"volumes": [*north, f"{disk}:/hospital/state"]}
    services["north-supernode"] = {
        "image": f"${{NORTH_SUPERNODE:-consilium-hospital:{VERSION}}}",
        "environment": {"CONSILIUM_NODE_KEY": "/disk/identity/node.key"},
        "volumes": Instead([*north, f"{disk}:/disk:ro", KIT, "north-link:/run/link"]),
    }
    override = place / "override.yaml"
    override.write_text(yaml.dump({"services": services}, Dumper=Dumper))
    try:
        with demo(images, override=override) as made:
            for name in HOSPITALS:
                assert said(made, name, "ledger", "create")[0] == 0
            yield made
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def said(stack: Stack, name: str, *command: str) -> tuple[int, str]:
    """The `hospital` command beside a hospital's images: its exit status and what it said."""
    code, (out, err) = stack.container(f"{name}-superexec").exec_run(
        ["hospital", *command], demux=True
    )
    return code, ((out or b"") + (err or b"")).decode(errors="replace")


def levels(output: str) -> dict[str, tuple[str, str]]:
    """Of what `hospital check --json` said: how each check ended, and its words."""
    told, _ = json.JSONDecoder().raw_decode(output)
    return {one["id"]: (one["level"], one["text"]) for one in told["checks"]}


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
    charged = shown(stack, name)["charges"]
    charges, answers = events.count("charge"), events.count("answer")
    assert answers <= charged and charges <= charged, (name, charged)


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
    following = stack.begin("run", *PRIVATE, PATIENT, f"rounds={last}", f"run={run}")
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
    following = stack.begin("run", *PRIVATE, "participation.deadline=60", "rounds=6", f"run={run}")
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


def one_round(stack: Stack, run: str, *overrides: str) -> str:
    """What becomes of the north hospital in a run of one round, which the others complete."""
    done = stack.coordinator("run", *PRIVATE, PATIENT, *overrides, "rounds=1", f"run={run}")
    assert done.returncode == 0, done.stdout + done.stderr + stack.logs()
    assert words(stack, run, "east") == ["ok"] == words(stack, run, "west")
    return words(stack, run, "north")[0]


def test_a_full_disk_is_named_and_nothing_is_charged_for_it(stack: Stack) -> None:
    before = shown(stack, "north")
    code, output = said(stack, "north", "check", "--part", "state", "--json")
    assert levels(output)["ledger"][0] == "ok", output
    try:
        filled = stack.inside("north-superexec", FILL)
        assert filled[0] == 0, filled
        assert one_round(stack, "full") == "disk_full"
        code, output = said(stack, "north", "check", "--part", "state", "--json")
        level, text = levels(output)["state"]
        assert (code, level) == (1, "problem") and "make room" in text, output
    finally:
        assert stack.inside("north-superexec", EMPTY)[0] == 0
    assert shown(stack, "north") == before
    assert one_round(stack, "full-after") == "ok"
    assert shown(stack, "north")["charges"] == before["charges"] + 1
    require_whole_books(stack, "north")


FILL = """
file = open("/hospital/state/filler", "wb", buffering=0)
try:
    while file.write(bytes(4096)):
        pass
except OSError as error:
    assert error.errno == 28, error
else:
    raise AssertionError
"""
EMPTY = "import os; os.remove('/hospital/state/filler')"


def shown(stack: Stack, name: str) -> dict[str, Any]:
    """What `hospital ledger show` tells."""
    code, output = said(stack, name, "ledger", "show", "--json")
    assert code == 0, output
    content: dict[str, Any] = json.loads(output)
    return content


def test_a_clock_ten_minutes_off_is_named(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "Dockerfile").write_text(CLOCK)
    tag = f"{stack.project}-clock"
    subprocess.run(["docker", "build", "-q", "-t", tag, str(tmp_path)], check=True, timeout=300)
    before = shown(stack, "north")
    monkeypatch.setenv("NORTH_SUPERNODE", tag)
    try:
        recreate(stack)
        # nobody waits longer for it than this, and the others have their images ready
        assert one_round(stack, "late-clock", "participation.deadline=45") == "absent"
        for shift, side in (("-600s", "behind"), ("+600s", "ahead of")):
            found = stack.compose(
                "run", "--rm", "-T", "--no-deps", "-e", f"FAKETIME={shift}", "north-supernode",
                "check", "--part", "connection", "--json",
            )  # fmt: skip
            level, text = levels(found.stdout)["clock"]
            assert level == "problem" and f"{side} the coordinator" in text, (level, text)
    finally:
        monkeypatch.delenv("NORTH_SUPERNODE")
        recreate(stack)
        stack.engine.images.remove(tag, force=True)
    assert shown(stack, "north") == before
    assert stack.until(lambda: stack.healthy("north-supernode"), seconds=120)
    assert one_round(stack, "right-clock") == "ok"
    require_whole_books(stack, "north")


def recreate(stack: Stack) -> None:
    done = stack.compose("up", "--detach", "--no-deps", "--force-recreate", "north-supernode")
    assert done.returncode == 0, done.stderr


def test_who_was_removed_does_not_come_back(stack: Stack, tmp_path: Path) -> None:
    """Last, as keys that were put out are never taken again."""
    fingerprint, kit = members(stack)["north"], tmp_path / "north"
    chunks, _ = stack.container("superexec").get_archive("/coordinator/hospitals/north")
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
        archive.extractall(tmp_path, filter="data")
    for path in (kit, *kit.rglob("*")):
        os.chown(path, USER, USER)
    done = stack.coordinator("remove", "north")
    assert done.returncode == 0, done.stdout + done.stderr
    stack.container("north-supernode").remove(force=True)
    with dialling(stack, kit, "start", "--only", "supernode") as trying:
        run = stack.coordinator("run", *PRIVATE, PATIENT, "rounds=1", "run=without")
        assert run.returncode == 0, run.stdout + run.stderr + stack.logs()
        (row,) = rounds(stack, "without")
        assert {name: one["status"] for name, one in row["hospitals"].items()} == {
            "east": "ok", "west": "ok",
        }  # fmt: skip
        with dialling(stack, kit, "check", "--part", "connection", "--json") as check:
            assert check.wait(timeout=120)["StatusCode"] == 1
            output = check.logs(stderr=False).decode()
        level, text = levels(output)["registered"]
        assert level == "problem" and "removed it" in text, output
        trying.reload()
        assert trying.attrs["State"]["Health"]["Status"] != "healthy", trying.logs()
    again = stack.coordinator("admit", "north.identity.json", "--fingerprint", fingerprint)
    assert again.returncode == 1 and "never used again" in again.stderr, again.stderr
    assert members(stack).keys() == {"east", "west"}


@contextmanager
def dialling(stack: Stack, kit: Path, *command: str) -> Iterator[Container]:
    """The `hospital` command with the kit, state and network that the north hospital had."""
    mounts = {one["Destination"]: one for one in stack.container("north-superexec").attrs["Mounts"]}
    own = {place: mounts[place]["Source"] for place in ("/hospital/site.yaml", "/hospital/state")}
    container = stack.engine.containers.run(
        f"consilium-hospital:{VERSION}", list(command), detach=True,
        network=f"{stack.project}_north-outer", environment={"CONSILIUM_LINK": "/run/link"},
        volumes=[f"{kit}:/hospital/kit:ro", *(f"{source}:{place}" for place, source in own.items())],
        tmpfs={"/tmp": "", "/run/link": f"uid={USER},gid={USER},mode=0700"},
    )  # fmt: skip
    try:
        yield container
    finally:
        container.remove(force=True)


def members(stack: Stack) -> dict[str, str]:
    """Who is on the roster, with fingerprints."""
    done = stack.coordinator("hospitals", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)["hospitals"]
    return {name: one["fingerprint"] for name, one in told.items()}
