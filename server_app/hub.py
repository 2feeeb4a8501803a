"""A hub for Flower's SuperLink: bundles with their signatures, out of the coordinator's folder.

Flower carries signatures only with bundles that its SuperLink fetches from a hub by name and version
(flwr 1.41, `superlink/servicer/control/control_handlers.py`, `_get_remote_fab`). This one listens on
loopback, inside the SuperLink's own process: nobody else can take its port, and it lives as long.

A version has to be three numbers. The third is the bundle's SHA-256, so that what is asked for, what
is served and what run.json names are one bundle and cannot be others.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from logging import getLogger
from typing import Any

from server_app.bundle import APP
from server_app.signed_bundles import SignedBundles

log = getLogger("consilium")

_LARGEST_REQUEST = 4096  # bytes
_SECONDS = 5.0  # that a caller may keep the hub waiting; it serves one at a time
_FETCH = "/v1/hub/fetch-fab"
_BUNDLE = re.compile(r"/bundles/([0-9a-f]{64})\.fab")
_VERSION = re.compile(r"0\.0\.([0-9]{1,78})")


def app_spec(sha256: str) -> str:
    """What to ask Flower for, so that it fetches the bundle of this hash."""
    return f"{APP}==0.0.{int(sha256, 16)}"


@contextmanager
def served(bundles: SignedBundles) -> Iterator[str]:
    """Serve while inside; gives what FLWR_SUPERGRID_API_URL has to be."""
    with _Hub(bundles) as hub:
        thread = threading.Thread(target=hub.serve_forever, name="hub", daemon=True)
        thread.start()
        try:
            yield f"{hub.address}/v1"
        finally:
            hub.shutdown()
            thread.join()


class _Hub(HTTPServer):
    def __init__(self, bundles: SignedBundles) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.bundles = bundles
        self.address = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: object) -> None:
        log.warning("hub: a connection ended before it was answered")


class _Answer(BaseHTTPRequestHandler):
    server: _Hub
    timeout = _SECONDS

    def do_POST(self) -> None:
        """Where a bundle is, and who signed it."""
        length = self.headers.get("Content-Length", "")
        if self.path != _FETCH:
            return self._say(HTTPStatus.NOT_FOUND, {"detail": "no such path"})
        if not re.fullmatch(r"[0-9]{1,4}", length) or int(length) > _LARGEST_REQUEST:
            return self._say(HTTPStatus.BAD_REQUEST, {"detail": "no request of bounded length"})
        sha256 = _asked(self.rfile.read(int(length)))
        if sha256 is None or self.server.bundles.bundle(sha256) is None:
            return self._say(HTTPStatus.NOT_FOUND, {"detail": "no such bundle"})
        signatures = self.server.bundles.signatures(sha256)
        return self._say(
            HTTPStatus.OK,
            {
                "fab_url": f"{self.server.address}/bundles/{sha256}.fab",
                "verifications": [signature.verification() for signature in signatures],
            },
        )

    def do_GET(self) -> None:
        """The bundle itself."""
        named = _BUNDLE.fullmatch(self.path)
        bundle = self.server.bundles.bundle(named[1]) if named else None
        if bundle is None:
            return self._say(HTTPStatus.NOT_FOUND, {"detail": "no such bundle"})
        return self._send(HTTPStatus.OK, "application/octet-stream", bundle)

    def _say(self, status: HTTPStatus, content: dict[str, Any]) -> None:
        self._send(status, "application/json", json.dumps(content).encode())

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """What is asked here is in the SuperLink's log already."""


def _asked(content: bytes) -> str | None:
    """SHA-256 of the bundle that a request is for; None where it is for none that could be here."""
    try:
        said = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict) or said.get("app_id") != APP:
        return None
    version = said.get("app_version")
    number = _VERSION.fullmatch(version) if isinstance(version, str) else None
    if number is None or int(number[1]) >= 1 << 256:
        return None
    return format(int(number[1]), "064x")
