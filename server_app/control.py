"""The coordinator's line to its own SuperLink: Flower's Control API, in process.

Flower's command line costs a second a call and exits 0 on failures; its client class does neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.common.serde import user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from federation.roster import Member
from federation.schema import ConfigError
from server_app.home import Home
from server_app.hub import app_spec


class Unreachable(ConfigError):
    """The SuperLink does not answer."""


@dataclass(frozen=True)
class RunState:
    """Flower's view of a run: `status` pending, starting, running or finished; how it finished."""

    status: str
    outcome: str
    details: str

    @property
    def finished(self) -> bool:
        return self.status == "finished"


class Control:
    """A connection to the SuperLink's Control API. Use as a context manager.

    Raises (all methods):
        Unreachable: nothing answers there.
    """

    def __init__(self, home: Home) -> None:
        federation = home.federation()
        self.address = f"{federation.listen}:{federation.bound_port}"
        self._client = ControlHttpClient.from_server_address(
            server_address=self.address,
            insecure=False,
            root_certificates=home.ca_certificate.read_bytes(),
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        )

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def check(self) -> None:
        """Ask something, to know that the SuperLink answers."""
        self._call("ListNodes", ListNodesRequest())

    def register(self, members: tuple[Member, ...]) -> None:
        """Let these hospitals' node keys in and no others; those already known stay as they are.

        Flower never takes a key back that it once put out (its table keeps them, flwr 1.41), so a
        hospital that returns has to come with a new one.
        """
        wanted = {_key_bytes(member): member.name for member in members}
        for node in self._call("ListNodes", ListNodesRequest()).nodes_info:
            if node.status == "unregistered":
                continue
            if wanted.pop(node.public_key, None) is None:
                self._call("UnregisterNode", UnregisterNodeRequest(node_id=node.node_id))
        for key, name in wanted.items():
            self._call("RegisterNode", RegisterNodeRequest(public_key=key, name=name))

    def hospitals(self, members: tuple[Member, ...]) -> dict[str, str]:
        """Flower's status (registered, online, offline, …) of each registered hospital, by name."""
        names = {_key_bytes(member): member.name for member in members}
        answer = self._call("ListNodes", ListNodesRequest())
        return {
            names[node.public_key]: node.status
            for node in answer.nodes_info
            if node.public_key in names and node.status != "unregistered"
        }

    def start_run(self, bundle: str, config: dict[str, str]) -> int:
        """Start a Flower run; its Flower run id.

        Args:
            bundle: SHA-256 of a bundle that is in the coordinator's folder. The SuperLink fetches it
                there (`server_app.hub`), with the signatures that it has by then.

        Raises:
            ConfigError: the SuperLink did not start it, or started another bundle (and was told to
                stop it).
        """
        request = StartRunRequest(
            app_spec=app_spec(bundle), override_config=user_config_to_proto(dict(config))
        )
        try:
            answer = self._call("StartRun", request)
        except httpx.HTTPStatusError as error:
            raise ConfigError(
                f"the SuperLink did not start the run ({error.response.status_code}); see "
                "logs/superlink.log, and whether coordinator start is of this version"
            ) from error
        if not answer.HasField("run_id"):
            raise ConfigError("the SuperLink did not start the run; see logs/superlink.log")
        run_id: int = answer.run_id
        started = self._call("ListRuns", ListRunsRequest(run_id=run_id)).run_dict[run_id].fab_hash
        if started != bundle:
            self.stop_run(run_id)
            raise ConfigError(
                f"the SuperLink started bundle {started[:12]} in place of {bundle[:12]}; it was told "
                "to stop it. Look who else can write to the coordinator's folder"
            )
        return run_id

    def run(self, run_id: int) -> RunState:
        answer = self._call("ListRuns", ListRunsRequest(run_id=run_id))
        status = answer.run_dict[run_id].status
        return RunState(status.status, status.sub_status, status.details)

    def stop_run(self, run_id: int) -> bool:
        answer = self._call("StopRun", StopRunRequest(run_id=run_id))
        return bool(answer.success)

    def _call(self, method: str, request: Any) -> Any:
        try:
            return getattr(self._client, method)(request)
        except (httpx.TransportError, ConnectionError) as error:
            raise Unreachable(
                f"the SuperLink at {self.address} does not answer; "
                "start it with: coordinator start --home DIR"
            ) from error


def _key_bytes(member: Member) -> bytes:
    key = load_ssh_public_key(member.node_key.encode())
    content: bytes = public_key_to_bytes(key)
    return content
