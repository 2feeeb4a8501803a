"""A peer with nothing but the authority's certificate, at the one port that is published."""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.serde import fab_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
)
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.runtime import RuntimeHttpClient

from server_app import bundle
from tests.e2e.docker.stack import HOSPITALS, Stack

pytestmark = pytest.mark.docker

TYPE = {"Content-Type": "application/protobuf"}


@pytest.fixture(scope="module")
def authority(federation: Stack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("peer") / "ca.crt"
    file.write_bytes(federation.read("/coordinator/ca.crt", "superlink"))
    return file


def ask(
    federation: Stack, authority: Path, method: str, path: str, body: bytes = b""
) -> tuple[int, bytes]:
    context = ssl.create_default_context(cafile=str(authority))
    line = http.client.HTTPSConnection("localhost", federation.port, context=context, timeout=30)
    try:
        line.putrequest(method, path, skip_host=path.startswith("https:"))
        if path.startswith("https:"):
            line.putheader("Host", "localhost")
        for key, value in {**TYPE, "Content-Length": str(len(body))}.items():
            line.putheader(key, value)
        line.endheaders(body)
        answer = line.getresponse()
        return answer.status, answer.read()
    finally:
        line.close()


def test_what_hospitals_need_passes(federation: Stack, authority: Path) -> None:
    """Or the refusals below would show nothing: the SuperLink itself answers, and knows no such node."""
    status, _ = ask(
        federation, authority, "POST", "/v1/fleet/pull-messages",
        PullMessagesRequest().SerializeToString(),
    )  # fmt: skip
    log = federation.container("superlink").logs(tail=50).decode()
    assert status not in (200, 403, 404, 502), status
    assert "pull-messages" in log or status == 401, (status, log)
    assert (
        sum("online" in line for line in federation.coordinator("status").stdout.splitlines()) == 3
    )


def test_it_starts_no_run_lists_no_node_and_takes_no_task(
    federation: Stack, authority: Path
) -> None:
    settings: dict[str, Any] = {
        "server_address": f"localhost:{federation.port}",
        "insecure": False,
        "root_certificates": authority.read_bytes(),
        "interceptors": [],
    }
    code = bundle.build()
    key = public_key_to_bytes(ec.generate_private_key(ec.SECP384R1()).public_key())
    control = ControlHttpClient.from_server_address(**settings)
    runtime = RuntimeHttpClient.from_server_address(**settings)
    run = StartRunRequest(fab=fab_to_proto(Fab(hashlib.sha256(code).hexdigest(), code, {})))
    attempts = [
        lambda: control.StartRun(run),
        lambda: control.ListNodes(ListNodesRequest()),
        lambda: control.ListRuns(ListRunsRequest()),
        lambda: control.StopRun(StopRunRequest(run_id=1)),
        lambda: control.RegisterNode(RegisterNodeRequest(public_key=key, name="intruder")),
        lambda: runtime.AcquireTask(AcquireTaskRequest()),
    ]
    for number, attempt in enumerate(attempts):
        with pytest.raises(Exception, match=r"403|[Pp]ermission|[Ff]orbidden") as refused:
            attempt()
        assert refused.value, number

    # nothing of it has come about: asked from within, where the same question is answered
    code_, said = federation.inside("superexec", _COUNT)
    assert code_ == 0, said
    counted = json.loads(said)
    assert counted == {"nodes": len(HOSPITALS), "runs": counted["runs"]}
    runs = [
        line for line in federation.coordinator("status").stdout.splitlines() if "completed" in line
    ]
    assert counted["runs"] == len(runs)


_COUNT = """
import json
from pathlib import Path
from flwr.proto.control_pb2 import ListNodesRequest, ListRunsRequest
from server_app.control import Control
from server_app.home import Home
with Control(Home(Path("/coordinator"))) as control:
    nodes = control._call("ListNodes", ListNodesRequest()).nodes_info
    runs = control._call("ListRuns", ListRunsRequest()).run_dict
print(json.dumps({"nodes": len(nodes), "runs": len(runs)}))
"""


@pytest.mark.parametrize(
    "path",
    [
        "/", "/docs", "/openapi.json", "/metrics", "/v1", "/v1/fleet", "/v1/fleet/",
        "/v1/control/list-nodes", "/v1/control/start-run", "/v1/runtime/acquire-task",
        "//v1/control/list-nodes", "/V1/CONTROL/list-nodes",
        "/v1/fleet/../control/list-nodes", "/v1/fleet/%2e%2e/control/list-nodes",
        "/v1/fleet/..%2fcontrol/list-nodes", "/v1/fleet%2f..%2fcontrol%2flist-nodes",
        "/v1/control/../fleet/pull-messages", "/v1/control/%2e%2e/fleet/pull-messages",
        "/v1/fleet/..;/control/list-nodes", "/v1/fleet/pull-messages/../../control/list-nodes",
        "/v1/fleet/pull-messages?x=/v1/control/list-nodes", "/v1/fleet/pull-messages%00",
        "/v1/fleet//control/list-nodes", "/v1/fleet/pull-messages%0d%0a",
        "https://superlink:8000/v1/control/list-nodes",
    ],
)  # fmt: skip
def test_no_other_path_passes(federation: Stack, authority: Path, path: str) -> None:
    status, body = ask(federation, authority, "POST", path)
    assert status in (400, 403), (path, status, body[:200])
    assert b"nginx" in body  # it is the door that refuses


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "HEAD", "CONNECT", "TRACE"])
def test_no_other_method_passes(federation: Stack, authority: Path, method: str) -> None:
    status, _ = ask(federation, authority, method, "/v1/fleet/pull-messages")
    assert status in (400, 403, 405), (method, status)


def test_a_body_over_16_mb_is_refused(federation: Stack, authority: Path) -> None:
    context = ssl.create_default_context(cafile=str(authority))
    line = http.client.HTTPSConnection("localhost", federation.port, context=context, timeout=30)
    line.putrequest("POST", "/v1/fleet/push-object")
    line.putheader("Content-Length", str(16 * 1024**2 + 1))
    line.endheaders()  # refused by what it says it is, before any of it comes
    assert line.getresponse().status == 413
    line.close()


def test_many_requests_at_once_are_slowed(federation: Stack, authority: Path) -> None:
    """More than a hospital asks, from one address: some are turned away, and hospitals stay."""
    context = ssl.create_default_context(cafile=str(authority))
    lines, statuses = [], []
    for _ in range(90):
        line = http.client.HTTPSConnection(
            "localhost", federation.port, context=context, timeout=30
        )
        line.putrequest("POST", "/v1/fleet/push-object")
        line.putheader("Content-Length", "2")
        line.endheaders(b"x")  # held open, half sent
        lines.append(line)
    for line in lines:
        line.send(b"x")
        statuses.append(line.getresponse().status)
        line.close()
    assert 429 in statuses
    assert federation.until(
        lambda: federation.coordinator("status").stdout.count("online") == 3, seconds=90
    )


def test_old_tls_and_no_tls_are_refused(federation: Stack, authority: Path) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.load_verify_locations(str(authority))
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    with (
        socket.create_connection(("localhost", federation.port)) as plain,
        pytest.raises(ssl.SSLError),
    ):
        old.wrap_socket(plain, server_hostname="localhost")
    new = ssl.create_default_context(cafile=str(authority))
    with (
        socket.create_connection(("localhost", federation.port)) as plain,
        new.wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        assert secured.version() in ("TLSv1.2", "TLSv1.3")
    with socket.create_connection(("localhost", federation.port)) as plain:
        plain.sendall(
            b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
        )
        assert b" 400 " in plain.recv(200)
