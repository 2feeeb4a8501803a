"""The way to the coordinator, against a server with the federation's certificate, and its faults."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from flwr.supercore.error import ApiErrorCode

from client_app.checks.connection import Line
from client_app.checks.finding import Level
from client_app.kit import read_kit
from client_app.site import Site
from federation.processes import free_port
from federation.schema import ConfigError, parse
from server_app.home import Federation, Home
from tests.provisioned import provisioned


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    content = Federation(name="a", host="127.0.0.1", port=free_port(), hospitals=["north"])
    return provisioned(content, Home(tmp_path / "coordinator"), {"north": tmp_path / "state"})


@pytest.fixture
def site(home: Home, tmp_path: Path) -> Site:
    content = {"hospital": "north", "kit": home.kit("north"), "state": tmp_path / "state"}
    return parse(Site, content | {"data": {"root": tmp_path}})


def line(site: Site) -> Line:
    return Line(lambda: read_kit(site))


@contextmanager
def serving(
    shown: Home,
    port: int,
    *,
    host: str = "127.0.0.1",
    ahead: float = 0,
    status: int = 404,
    code: int = 0,
) -> Iterator[None]:
    """A server with this home's certificate whose clock is `ahead`, and which answers logins so."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send(404, b"")

        def do_POST(self) -> None:
            self.send(status, json.dumps({"code": code, "public_message": "x"}).encode())

        def send(self, status: int, body: bytes) -> None:
            self.send_response_only(status)
            self.send_header("Date", formatdate(time.time() + ahead, usegmt=True))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer((host, port), Answers)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(shown.server_certificate, shown.server_key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def test_a_good_way_is_good_at_each_step(home: Home, site: Site) -> None:
    with serving(home, home.federation().port):
        found = line(site)
        for look in (found.proxy, found.dns, found.port, found.certificate, found.clock):
            assert look().level is Level.OK


@pytest.mark.parametrize(
    ("ahead", "level"),
    [(0, Level.OK), (-4, Level.WARNING), (120, Level.WARNING)],
)
def test_a_clock_that_is_a_little_off(home: Home, site: Site, ahead: float, level: Level) -> None:
    with serving(home, home.federation().port, ahead=ahead):
        assert line(site).clock().level is level


@pytest.mark.parametrize(("ahead", "words"), [(-600, "ahead of"), (600, "behind")])
def test_a_clock_with_which_no_login_is_taken(
    home: Home, site: Site, ahead: float, words: str
) -> None:
    with (
        serving(home, home.federation().port, ahead=ahead),
        pytest.raises(ConfigError, match=words + ".*NTP"),
    ):
        line(site).clock()


def test_a_certificate_of_somebody_else(home: Home, site: Site, tmp_path: Path) -> None:
    content = Federation(name="a", host="127.0.0.1", port=1, hospitals=["north"])
    other = provisioned(content, Home(tmp_path / "other"), {"north": tmp_path / "elsewhere"})
    with (
        serving(other, home.federation().port),
        pytest.raises(ConfigError, match="exempt the coordinator's address from TLS inspection"),
    ):
        line(site).certificate()


def test_a_certificate_of_another_name(home: Home, site: Site) -> None:
    """127.0.0.2 is this machine too, and not in the certificate."""
    kit = site.kit / "kit.json"
    kit.write_text(kit.read_text().replace("127.0.0.1", "127.0.0.2"))
    with (
        serving(home, home.federation().port, host="127.0.0.2"),
        pytest.raises(ConfigError, match="does not have the address that the kit dials"),
    ):
        line(site).certificate()


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (412, ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED, "has not admitted this hospital"),
        (401, 0, "refuses the login"),
    ],
)
def test_a_key_that_is_not_let_in(
    home: Home, site: Site, status: int, code: int, words: str
) -> None:
    with (
        serving(home, home.federation().port, status=status, code=int(code)),
        pytest.raises(ConfigError, match=words),
    ):
        line(site).registered(site)


def test_a_key_that_is_let_in(home: Home, site: Site) -> None:
    code = int(ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL)
    with serving(home, home.federation().port, status=400, code=code):
        assert line(site).registered(site).level is Level.OK


def test_a_proxy_is_the_first_stop(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{(port := free_port())}")
    assert f"127.0.0.1:{port}" in line(site).proxy().text
    with pytest.raises(ConfigError, match=f"127.0.0.1:{port} does not answer"):
        line(site).port()
    with pytest.raises(ConfigError):
        line(site).certificate()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert line(site).proxy().text.startswith("none")
