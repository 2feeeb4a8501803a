"""The hub, asked over HTTP as Flower's SuperLink asks it; and the folder behind it after crashes."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.supercore.error import FlowerError
from flwr.supercore.utils import parse_app_spec, request_download_link
from flwr.superlink.servicer.control import control_handlers
from hypothesis import given, settings
from hypothesis import strategies as st

from federation import review
from federation.schema import ConfigError
from server_app import hub, superlink
from server_app.bundle import APP
from server_app.signed_bundles import SignedBundles

ALICE, BOB = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2))
ONE, OTHER, AT = b"PK one", b"PK other", 1_790_000_000


@pytest.fixture
def bundles(tmp_path: Path) -> SignedBundles:
    return SignedBundles(tmp_path / "bundles")


@pytest.fixture
def address(bundles: SignedBundles, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "*")
    with hub.served(bundles) as served:
        yield served


def fetched(
    address: str, sha256: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[bytes, dict[str, str]]:
    """What a SuperLink takes for a bundle, by Flower's own code."""
    monkeypatch.setattr(control_handlers, superlink._HUB, address)
    content, verifications, _ = control_handlers._get_remote_fab(None, hub.app_spec(sha256))
    return content, verifications


def asked(
    address: str, method: str, path: str, body: bytes = b"", **headers: str
) -> tuple[int, bytes]:
    where = urlsplit(address)
    connection = http.client.HTTPConnection(str(where.hostname), where.port, timeout=20)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_flower_gets_the_bundle_and_the_signatures_of_it_alone(
    bundles: SignedBundles, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for content in (ONE, OTHER):
        assert bundles.keep(content) == digest(content)
    bundles.add(review.sign(ONE, ALICE, AT))
    bundles.add(review.sign(OTHER, ALICE, AT))
    bundles.add(review.sign(OTHER, BOB, AT + 1))
    trusted = {"alice": ALICE.public_key(), "bob": BOB.public_key()}
    for content, holds in ((ONE, {"alice": True}), (OTHER, {"alice": True, "bob": True})):
        got, verifications = fetched(address, digest(content), monkeypatch)
        assert got == content
        assert len(verifications) == 1 + len(holds)  # Flower adds one of its own
        assert review.signed_by(digest(content), verifications, trusted) == holds


def test_a_bundle_that_nobody_signed_is_served(
    bundles: SignedBundles, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundles.keep(ONE)
    assert fetched(address, digest(ONE), monkeypatch) == (ONE, {"valid_license": "Valid"})


@settings(max_examples=50, deadline=None)
@given(st.binary(min_size=32, max_size=32))
def test_flower_parses_what_we_ask_it_for(raw: bytes) -> None:
    app, version = parse_app_spec(hub.app_spec(raw.hex()))
    said = json.dumps({"app_id": app, "app_version": version, "flwr_version": "1.41.0"})
    assert hub._asked(said.encode()) == raw.hex()


@pytest.mark.parametrize("version", ["0.0.1", "1.0.0", "latest", None, "0.0.-1", "0.0." + "9" * 78])
def test_unknown_versions_and_apps_are_not_found(
    bundles: SignedBundles, address: str, version: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundles.keep(ONE)
    known = hub.app_spec(digest(ONE)).partition("==")[2]
    url = f"{address}/hub/fetch-fab"
    for app, which in ((APP, version), ("@other/consilium", known), ("", known)):
        with pytest.raises(ValueError, match="not found"):
            request_download_link(app, which, url, "fab_url")
    with pytest.raises(FlowerError):
        fetched(address, digest(OTHER), monkeypatch)
    assert request_download_link(APP, known, url, "fab_url")[0].endswith(".fab")


def test_a_signature_alone_serves_nothing(
    bundles: SignedBundles, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundles.add(review.sign(ONE, ALICE, AT))
    with pytest.raises(FlowerError):
        fetched(address, digest(ONE), monkeypatch)
    assert asked(address, "GET", f"/bundles/{digest(ONE)}.fab")[0] == 404


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/hub/fetch-fab/", 404),
        ("POST", "/", 404),
        ("GET", "/v1/hub/fetch-fab", 404),
        ("GET", "/bundles/", 404),
        ("GET", "/bundles/../coordinator/server.key", 404),
        ("GET", "/bundles/%2e%2e/server.key.fab", 404),
        ("GET", f"/bundles/{digest(ONE)}.fab?x", 404),
        ("GET", f"/bundles/{digest(ONE).upper()}.fab", 404),
        ("PUT", "/v1/hub/fetch-fab", 501),
        ("DELETE", f"/bundles/{digest(ONE)}.fab", 501),
    ],
)
def test_other_paths_and_methods(
    bundles: SignedBundles, address: str, method: str, path: str, status: int
) -> None:
    bundles.keep(ONE)
    assert asked(address, method, path, b"{}")[0] == status
    assert asked(address, "GET", f"/bundles/{digest(ONE)}.fab") == (200, ONE)


@pytest.mark.parametrize("length", ["4097", "99999999999", "-1", "1e3", "", "٣", "+5"])
def test_a_request_without_a_bounded_length_is_refused(address: str, length: str) -> None:
    where = urlsplit(address)
    with socket.create_connection((str(where.hostname), int(where.port or 0)), 20) as line:
        line.sendall(
            f"POST /v1/hub/fetch-fab HTTP/1.1\r\nContent-Length: {length}\r\n\r\n".encode()
        )
        assert line.recv(64).split()[1] == b"400"


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 4000, b'{"app_id": 1}', b"1" * 4090]
)
def test_a_malformed_request_is_answered(bundles: SignedBundles, address: str, body: bytes) -> None:
    assert asked(address, "POST", "/v1/hub/fetch-fab", body)[0] == 404
    bundles.keep(ONE)
    assert asked(address, "GET", f"/bundles/{digest(ONE)}.fab") == (200, ONE)  # it still serves


def test_a_silent_caller_does_not_hold_it_up(
    bundles: SignedBundles, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub._Answer, "timeout", 0.2)
    bundles.keep(ONE)
    where = urlsplit(address)
    with socket.create_connection((str(where.hostname), int(where.port or 0)), 20) as line:
        line.sendall(b"POST /v1/hub/fetch-fab HTTP/1.1\r\nContent-Length: 100\r\n\r\n{")
        assert asked(address, "GET", f"/bundles/{digest(ONE)}.fab") == (200, ONE)


def test_only_this_machine_reaches_it(address: str) -> None:
    assert urlsplit(address).hostname == "127.0.0.1"


# The folder


def test_what_lies_in_a_bundles_place_is_not_served(bundles: SignedBundles, address: str) -> None:
    sha256 = bundles.keep(ONE)
    path = bundles.folder / sha256 / "bundle.fab"
    for other in (ONE[:-1], OTHER, b""):
        path.write_bytes(other)
        assert bundles.bundle(sha256) is None
        assert asked(address, "GET", f"/bundles/{sha256}.fab")[0] == 404
    assert bundles.keep(ONE) == sha256  # the next run with it puts it right
    assert bundles.bundle(sha256) == ONE
    for name in ("..", "", "x", sha256.upper(), f"{sha256}\n"):
        assert bundles.bundle(name) is None


def test_damaged_signatures_are_left_out_and_the_others_stay(bundles: SignedBundles) -> None:
    sha256 = bundles.keep(ONE)
    good = review.sign(ONE, ALICE, AT)
    path = bundles.add(good)
    cut = bundles.add(review.sign(ONE, BOB, AT))
    whole = cut.read_bytes()
    for end in range(0, len(whole) - 2, 7):
        cut.write_bytes(whole[:end])
        assert bundles.signatures(sha256) == [good]
    folder = path.parent
    cut.write_bytes(review.sign(OTHER, BOB, AT).content())  # of another bundle
    (folder / f".{path.name}.x1y2z3").write_bytes(b"{")  # what a kill leaves
    (folder / f"fpk_0{review.SUFFIX}").mkdir()
    (folder / f"copy{review.SUFFIX}").write_bytes(good.content())
    (folder / f"large{review.SUFFIX}").write_bytes(bytes(1 << 20))
    assert bundles.signatures(sha256) == [good]
    newer = review.sign(ONE, ALICE, AT + 5)
    (folder / f"copy{review.SUFFIX}").unlink()
    bundles.add(newer)
    assert bundles.signatures(sha256) == [newer]
    assert bundles.known() == [sha256]


def test_a_bundle_has_no_more_signatures_than_flower_is_given(
    bundles: SignedBundles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(review, "MOST", 1)
    bundles.add(review.sign(ONE, ALICE, AT))
    bundles.add(review.sign(ONE, ALICE, AT + 1))
    with pytest.raises(ConfigError, match="1 signatures already"):
        bundles.add(review.sign(ONE, BOB, AT))


WRITER = """
import sys
from pathlib import Path
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from federation import review
from server_app.signed_bundles import SignedBundles

bundles = SignedBundles(Path(sys.argv[1]))
alice = Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32)
for n in range(1_000_000):
    content = b"PK %d" % n * 20_000
    sha256 = bundles.keep(content)
    bundles.add(review.sign(content, alice, n))
    print(n, sha256, flush=True)
"""


def test_a_kill_loses_nothing_that_was_kept_and_leaves_nothing_half(
    bundles: SignedBundles,
) -> None:
    for wait in (0.0, 0.013, 0.031):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(bundles.folder)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            kept = [writer.stdout.readline().split()[1] for _ in range(3)]
            time.sleep(wait)  # to be elsewhere in the loop
            os.kill(writer.pid, signal.SIGKILL)
            kept += [row.split()[1] for row in writer.stdout.read().splitlines()]
        for sha256 in kept:
            content = bundles.bundle(sha256)
            assert content is not None and digest(content) == sha256
            (signature,) = bundles.signatures(sha256)
            assert signature.bundle == sha256
        for sha256 in bundles.known():
            path = bundles.folder / sha256 / "bundle.fab"
            assert not path.exists() or bundles.bundle(sha256) is not None
