"""The demo in containers: a whole run over three hospitals, and what no container does meanwhile."""

from __future__ import annotations

import ipaddress
import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.e2e.docker.capture import Capture, Opened
from tests.e2e.docker.stack import HOSPITALS, SERVICES, TINY, Stack

pytestmark = pytest.mark.docker

NOBODY = "0000000000000000"


def test_a_whole_run_over_three_hospitals(federation: Stack, tmp_path: Path) -> None:
    done = federation.coordinator("run", *TINY, "rounds=3", "run=whole")
    assert done.returncode == 0, done.stdout + done.stderr + federation.logs()
    rows = [
        json.loads(line)
        for line in federation.read("/coordinator/runs/whole/metrics.jsonl").splitlines()
    ]
    rounds = [row for row in rows if row["kind"] == "round"]
    assert [row["round"] for row in rounds] == [1, 2, 3]
    for row in rounds:
        assert sorted(row["hospitals"]) == sorted(HOSPITALS)
        assert all(hospital["status"] == "ok" for hospital in row["hospitals"].values()), row

    copied = federation.compose(
        "cp", "superexec:/coordinator/runs/whole/report.html", str(tmp_path)
    )
    assert copied.returncode == 0, copied.stderr
    assert (tmp_path / "report.html").stat().st_size > 10_000

    said = federation.coordinator("status").stdout
    assert "completed" in said and said.count("online") == 3, said
    for name in HOSPITALS:
        audit = federation.read("/hospital/state/audit.jsonl", f"{name}-superexec").decode()
        assert '"started"' in audit and "whole" in audit, audit[-500:]


def test_nothing_connects_to_anything_but_what_it_must(
    federation: Stack, captured: list[Capture]
) -> None:
    """Heard on every bridge from before the first container ran, over the whole run before this.

    A hospital's SuperNode dials the front door; its SuperExec the SuperNode; behind the door all dial
    the SuperLink. Nothing else asks for a connection, and no name is looked up outside.
    """
    (capture,) = captured
    opened = capture.stop()
    assert capture.packets > 1000  # it did hear the run
    allowed: set[tuple[str, str, int]] = {("back", federation.address("superlink", "back"), 8000)}
    for name in HOSPITALS:
        allowed.add((f"{name}-outer", federation.address("proxy", f"{name}-outer"), 8443))
        allowed.add(
            (f"{name}-inner", federation.address(f"{name}-supernode", f"{name}-inner"), 9094)
        )
    heard = {(it.bridge, it.destination, it.port) for it in opened if it.protocol == "tcp"}
    assert heard == allowed, sorted(opened)
    assert [it for it in opened if it.protocol == "udp" and not _neighbourly(it)] == []


def _neighbourly(packet: Opened) -> bool:
    """What the engine's own machine may say on its side of a bridge, such as mDNS."""
    return ipaddress.ip_address(packet.destination).is_multicast


def test_no_container_is_root_or_holds_a_capability(federation: Stack) -> None:
    for service in SERVICES:
        container = federation.container(service)
        pids = [int(row[1]) for row in container.top()["Processes"]]
        assert pids
        for pid in pids:
            status = dict(
                line.split(":", 1)
                for line in Path(f"/proc/{pid}/status").read_text().splitlines()
                if ":" in line
            )
            assert set(status["Uid"].split()) == {"10001"}, (service, pid)
            assert set(status["Gid"].split()) == {"10001"}, (service, pid)
            for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
                assert status[kind].strip() == NOBODY, (service, pid, kind)
            assert status["NoNewPrivs"].strip() == "1", (service, pid)
            assert status["Seccomp"].strip() == "2", (service, pid)


def test_no_container_writes_outside_of_its_volumes(federation: Stack) -> None:
    for service in SERVICES:
        container = federation.container(service)
        assert not container.diff(), (service, container.diff())
        code, said = federation.container(service).exec_run(
            ["sh", "-c", "for d in / /usr /etc /opt /var /run; do touch $d/x && echo $d; done"]
        )
        assert code != 0 and b"/\n" not in said, (service, said)


def test_each_container_is_held_within_limits(federation: Stack) -> None:
    published = {}
    for service in SERVICES:
        attributes = federation.container(service).attrs
        host = attributes["HostConfig"]
        assert host["ReadonlyRootfs"] and not host["Privileged"], service
        assert host["CapDrop"] == ["ALL"] and not host["CapAdd"], service
        assert host["SecurityOpt"] == ["no-new-privileges:true"], service
        assert host["RestartPolicy"]["Name"] == "unless-stopped", service
        assert host["Memory"] > 0 and host["NanoCpus"] > 0 and host["PidsLimit"] > 0, service
        assert host["LogConfig"]["Config"].keys() == {"max-size", "max-file"}, service
        assert not host["Devices"] and host["PidMode"] == "" and host["IpcMode"] != "host", service
        ports = {p: b for p, b in attributes["NetworkSettings"]["Ports"].items() if b}
        if ports:
            published[service] = sorted(ports)
    assert published == {"proxy": ["8443/tcp"]}


def test_what_goes_out_sees_nothing_and_what_sees_cannot_go_out(federation: Stack) -> None:
    for name in HOSPITALS:
        supernode, superexec = (
            federation.container(f"{name}-{part}") for part in ("supernode", "superexec")
        )
        seen = {mount["Destination"]: mount["RW"] for mount in supernode.attrs["Mounts"]}
        assert seen == {
            "/hospital/site.yaml": False, "/hospital/kit": False,
            "/run/secrets/node.key": False, "/run/link": True,
        }  # fmt: skip
        seen = {mount["Destination"]: mount["RW"] for mount in superexec.attrs["Mounts"]}
        assert seen["/images"] is False and seen["/hospital/state"] is True
        networks = superexec.attrs["NetworkSettings"]["Networks"]
        assert list(networks) == [f"{federation.project}_{name}-inner"]
        pid = superexec.attrs["State"]["Pid"]
        routes = Path(f"/proc/{pid}/net/route").read_text().splitlines()[1:]
        assert all(line.split()[1] != "00000000" for line in routes), "a default route"


def test_hospitals_cannot_reach_each_other_nor_what_is_behind_the_door(federation: Stack) -> None:
    door = federation.address("proxy", "north-outer")
    assert _connects(federation, "north-supernode", door, 8443)  # or the rest would prove nothing
    elsewhere = [
        (federation.address("superlink", "back"), 8000),
        (federation.address("proxy", "east-outer"), 8443),
        (federation.address("east-supernode", "east-outer"), 9094),
        (federation.address("east-supernode", "east-inner"), 9094),
    ]
    for address, port in elsewhere:
        assert not _connects(federation, "north-supernode", address, port), (address, port)
        assert not _connects(federation, "north-superexec", address, port), (address, port)
    assert not _connects(federation, "north-superexec", door, 8443)
    # the Runtime API is on the inner network alone
    own = federation.address("north-supernode", "north-outer")
    assert not _connects(federation, "proxy", own, 9094, python=False)


def _connects(stack: Stack, service: str, address: str, port: int, *, python: bool = True) -> bool:
    if python:
        code, _ = stack.inside(
            service, f"import socket; socket.create_connection(({address!r}, {port}), timeout=3)"
        )
    else:
        code, _ = stack.container(service).exec_run(
            ["timeout", "3", "bash", "-c", f"exec 3<>/dev/tcp/{address}/{port}"]
        )
    return bool(code == 0)


@pytest.mark.parametrize("service", ["north-supernode", "superlink"])
def test_health_says_when_the_work_is_not_done(federation: Stack, service: str) -> None:
    """The process lives and does not do its work: frozen, the check itself calls it unhealthy."""
    assert federation.until(lambda: federation.healthy(service), seconds=60)
    package = "client_app" if service.endswith("supernode") else "server_app"
    ask = ["python", "-m", f"{package}.health"]
    container = federation.container(service)
    assert container.exec_run(ask).exit_code == 0
    worker = "client_app.supernode" if package == "client_app" else "server_app.superlink"
    pids = [row for row in container.top(ps_args="-eo pid,args")["Processes"] if worker in row[1]]
    assert len(pids) == 1, pids
    os.kill(int(pids[0][0]), signal.SIGSTOP)
    try:
        code, said = container.exec_run(ask)
        assert code == 1 and b"unhealthy: " in said, said
    finally:
        os.kill(int(pids[0][0]), signal.SIGCONT)
    assert federation.until(lambda: container.exec_run(ask).exit_code == 0, seconds=60)


def test_a_second_up_changes_nothing(federation: Stack) -> None:
    """What prepares runs again and finds its work done: keys, roster and images stay as they are."""
    before = federation.read("/coordinator/roster.json", "superlink")
    started = {s: federation.container(s).attrs["State"]["StartedAt"] for s in SERVICES}
    federation.up()
    time.sleep(1)
    assert federation.read("/coordinator/roster.json", "superlink") == before
    assert {s: federation.container(s).attrs["State"]["StartedAt"] for s in SERVICES} == started
