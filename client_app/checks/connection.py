"""The way to the coordinator, step by step as a SuperNode goes it: proxy, name, port, TLS, clock, login.

Nothing here disturbs a SuperNode that is connected. The login asks for what Flower refuses in another
way for keys that it knows than for those that it does not (flwr 1.41, `fleet_handlers.activate_node`).
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass

import httpx
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.supercore.error import ApiErrorCode
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from client_app import identity
from client_app.checks import membership
from client_app.checks.finding import Level, Seen
from client_app.kit import Kit
from client_app.site import Site
from federation.schema import ConfigError

_PATIENCE = 10.0  # seconds
_AHEAD, _BEHIND = SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE
_INSPECTED = (
    "it is not of the federation's authority: either something on the way opens TLS and shows a "
    "certificate of its own (exempt the coordinator's address from TLS inspection), or another "
    "server answers there"
)
_WRONG_TIME = (
    "check this machine's clock; if it is right, the coordinator has to renew the certificate"
)
# OpenSSL's words for what can be wrong with a certificate (X509_V_ERR_…)
_CERTIFICATE_FAULTS = {
    9: f"it is not valid yet: {_WRONG_TIME}",
    10: f"it has ended: {_WRONG_TIME}",
    18: _INSPECTED,
    19: _INSPECTED,
    20: _INSPECTED,
    21: _INSPECTED,
    62: "it does not have the name that the kit dials; ask the coordinator, who may need to renew it",
    64: "it does not have the address that the kit dials; ask the coordinator, who may need to renew it",
}


@dataclass(frozen=True)
class _Reached:
    """An answer over TLS.

    Attributes:
        ahead: seconds that this machine's clock is ahead of the coordinator's; None: not told.
    """

    certificate: x509.Certificate
    version: str
    ahead: float | None


@dataclass
class Line:
    """One look at the way; what an earlier step found a later one uses."""

    kit: Callable[[], Kit]
    _reached: _Reached | None = field(default=None, init=False)

    def proxy(self) -> Seen:
        through = self._proxy()
        if through is None:
            return Seen("none: HTTPS_PROXY is not set, or NO_PROXY exempts the coordinator")
        return Seen(f"{through[0]}:{through[1]}, from HTTPS_PROXY")

    def dns(self) -> Seen:
        host, port = self._first_stop()
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            raise ConfigError(
                f"{host} has no address here ({error.strerror}): check this machine's DNS. In a "
                "container without a way out this is as it should be: look from the SuperNode's"
            ) from None
        addresses = sorted({str(entry[4][0]) for entry in found})
        whose = (
            "" if self._proxy() is None else " (the proxy; the coordinator's name is its affair)"
        )
        return Seen(f"{host} is {', '.join(addresses)}{whose}")

    def port(self) -> Seen:
        host, port = self._first_stop()
        try:
            socket.create_connection((host, port), timeout=_PATIENCE).close()
        except OSError as error:
            raise ConfigError(
                f"{host}:{port} does not answer ({error}): is it up, and does the firewall let this "
                "machine dial out to it?"
            ) from None
        return Seen(f"{host}:{port} answers")

    def certificate(self) -> Seen:
        reached = self._reach()
        seen = membership.until(
            reached.certificate, "the coordinator runs coordinator certificate renew"
        )
        text = f"{reached.version}, of the federation's authority and of this name; {seen.text}"
        return Seen(text, seen.level)

    def clock(self) -> Seen:
        """Flower takes logins that were signed up to 305 s ago, and up to 5 s in the future."""
        ahead = self._reach().ahead
        if ahead is None:
            return Seen("the coordinator's answer has no date to compare with", Level.UNSEEN)
        said = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the coordinator's"
        remedy = "keep both set by NTP (timedatectl set-ntp true)"
        if ahead > _AHEAD or -ahead > _BEHIND:
            raise ConfigError(
                f"{said}; logins are taken up to {_AHEAD} s ahead and {_BEHIND} s behind: {remedy}"
            )
        if ahead > _AHEAD / 2 or -ahead > _BEHIND / 5:
            return Seen(f"{said}: {remedy}", Level.WARNING)
        return Seen(said)

    def registered(self, site: Site) -> Seen:
        """Whether the SuperLink knows the node key in force here."""
        kit = self.kit()
        key = load_ssh_private_key(identity.load(site).node_key.read_bytes(), None)
        client = FleetHttpClient.from_server_address(
            kit.superlink,
            False,
            kit.ca_certificate.read_bytes(),
            [NodeAuthHttpInterceptor(key, key.public_key())],
        )
        # No node may have this interval: of one that is known it is refused, and nothing is changed.
        request = ActivateNodeRequest(
            public_key=public_key_to_bytes(key.public_key()), heartbeat_interval=0
        )
        try:
            client.ActivateNode(request)
        except httpx.HTTPStatusError as error:
            return _login(error.response)
        finally:
            client.close()
        raise ConfigError(
            "the SuperLink took what it should refuse: another version of Flower runs there"
        )

    def _reach(self) -> _Reached:
        if self._reached is None:
            self._reached = _reach(self.kit())
        return self._reached

    def _first_stop(self) -> tuple[str, int]:
        return self._proxy() or _address(self.kit())

    def _proxy(self) -> tuple[str, int] | None:
        """As Flower's client finds it, from the environment."""
        found = getproxies_environment()
        through = found.get("https") or found.get("all")
        if not through or proxy_bypass(_address(self.kit())[0]):
            return None
        parts = urlsplit(through if "://" in through else f"http://{through}")
        if not parts.hostname:
            raise ConfigError(f"HTTPS_PROXY is not an address: {through}")
        return parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


def _address(kit: Kit) -> tuple[str, int]:
    host, _, port = kit.superlink.rpartition(":")
    return host, int(port)


def _reach(kit: Kit) -> _Reached:
    """Ask for something over TLS. Raises ConfigError: no answer, or not with this certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(kit.ca_certificate)
    try:
        with (
            httpx.Client(verify=context, timeout=_PATIENCE) as client,
            client.stream("GET", f"https://{kit.superlink}/v1/fleet/") as answer,
        ):
            arrived = time.time()
            secured = answer.extensions["network_stream"].get_extra_info("ssl_object")
            shown = x509.load_der_x509_certificate(secured.getpeercert(True))
            return _Reached(shown, secured.version(), _ahead(answer, arrived))
    except httpx.ProxyError as error:
        raise ConfigError(
            f"the proxy does not let this through ({error}): allow CONNECT to {kit.superlink}"
        ) from None
    except httpx.HTTPError as error:
        raise ConfigError(_fault(kit, error)) from None


def _fault(kit: Kit, error: httpx.HTTPError) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _CERTIFICATE_FAULTS.get(
                cause.verify_code, f"it is refused: {cause.verify_message}"
            )
        cause = cause.__cause__ or cause.__context__
    return f"{kit.superlink} does not answer in TLS ({error or type(error).__name__})"


def _ahead(answer: httpx.Response, arrived: float) -> float | None:
    """Half a second is what the header cuts off in the mean, and half the way there and back."""
    try:
        told = parsedate_to_datetime(answer.headers["date"])
    except (KeyError, ValueError):
        return None
    told = told if told.tzinfo else told.replace(tzinfo=UTC)
    at_coordinator = told.timestamp() + 0.5
    ahead = (datetime.fromtimestamp(arrived, UTC).timestamp()) - at_coordinator
    return 0.0 if abs(ahead) <= 1.0 else ahead


def _login(answer: httpx.Response) -> Seen:
    try:
        content = answer.json()
        code = content.get("code") if isinstance(content, dict) else None
    except ValueError:
        code = None
    if code == ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL:
        return Seen("the SuperLink knows this hospital's node key")
    if code == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
        raise ConfigError(
            "the SuperLink does not know the node key that is in force here: the coordinator has not "
            "admitted this hospital, removed it, or has newer keys of it (hospital roster accept)"
        )
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        raise ConfigError("the SuperLink refuses the login: look at the clock above")
    return Seen(
        f"the answer is HTTP {answer.status_code}, which tells nothing of the login; start the "
        "hospital, and look at logs/supernode.log",
        Level.WARNING,
    )
