"""The demo's Compose project on a real engine, as tests drive it."""

from __future__ import annotations

import io
import os
import secrets
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from docker.models.containers import Container

import docker
from federation.processes import free_port

ROOT = Path(__file__).resolve().parents[3]
COMPOSE_FILE = ROOT / "docker/demo/docker-compose.yml"
HOSPITALS = ("north", "east", "west")
SERVICES = (
    "proxy", "superlink", "superexec",
    *(f"{name}-{part}" for name in HOSPITALS for part in ("supernode", "superexec")),
)  # fmt: skip
TINY = (
    "task=chest_xray", "task.size=32", "model=resnet", "training.local_steps=2",
    "training.batch_size=4",
)  # fmt: skip
VERSION = "e2e"  # of the images that tests build, so that nobody's own are replaced


@dataclass(frozen=True)
class Stack:
    """A demo federation. `project` names it on the engine, `port` is its front door on loopback."""

    project: str
    port: int
    engine: docker.DockerClient
    patients: int = 24
    override: Path | None = None

    def compose(self, *arguments: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """A Compose command to its end, good or bad."""
        return subprocess.run(
            self._command(*arguments), env=self._environment(), capture_output=True, text=True,
            stdin=subprocess.DEVNULL, timeout=timeout, check=False,
        )  # fmt: skip

    def create(self) -> None:
        """Networks, volumes and containers, of which none runs yet."""
        _good(self.compose("create"))

    def up(self) -> None:
        """All of it, healthy."""
        done = self.compose("up", "--detach", "--wait", "--wait-timeout", "240")
        if done.returncode:
            raise AssertionError(done.stderr[-2000:] + self.logs())

    def coordinator(
        self, *arguments: str, timeout: float = 400
    ) -> subprocess.CompletedProcess[str]:
        """The `coordinator` command, as a person runs it, to its end."""
        return self.compose("run", "--rm", "-T", "coordinator", *arguments, timeout=timeout)

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        """The `coordinator` command, not waited for."""
        return subprocess.Popen(
            self._command("run", "--rm", "-T", "coordinator", *arguments),
            env=self._environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def container(self, service: str) -> Container:
        (found,) = self._labelled(service)
        return found

    def inside(self, service: str, program: str) -> tuple[int, str]:
        """What a Python program in a service's container says, and its exit status."""
        code, said = self.container(service).exec_run(["python", "-c", program])
        return code, said.decode(errors="replace")

    def address(self, service: str, network: str) -> str:
        """IPv4 of a service on one of the demo's networks."""
        container = self.container(service)
        networks = container.attrs["NetworkSettings"]["Networks"]
        return str(networks[f"{self.project}_{network}"]["IPAddress"])

    def read(self, path: str, service: str = "superexec") -> bytes:
        """A file of a container."""
        chunks, _ = self.container(service).get_archive(path)
        with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
            (member,) = archive.getmembers()
            file = archive.extractfile(member)
            assert file is not None, path
            return file.read()

    def healthy(self, service: str) -> bool:
        state = self.container(service).attrs["State"]
        return bool(state["Running"] and state["Health"]["Status"] == "healthy")

    def until(self, condition: Callable[[], bool], *, seconds: float) -> bool:
        """Whether it became true in time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if condition():
                return True
            time.sleep(0.5)
        return condition()

    def logs(self) -> str:
        return self.compose("logs", "--tail", "20", "--no-color").stdout

    def down(self) -> None:
        """All of it gone, and nothing left behind.

        Raises:
            AssertionError: a container, network or volume of the project is still there.
        """
        _good(self.compose("--profile", "tools", "down", "--volumes", "--timeout", "15"))
        assert self.left() == []

    def left(self) -> list[str]:
        """Containers, networks and volumes of the project that exist."""
        mine = {"label": f"com.docker.compose.project={self.project}"}
        return [
            *(
                f"container {found.name}"
                for found in self.engine.containers.list(True, filters=mine)
            ),
            *(f"network {found.name}" for found in self.engine.networks.list(filters=mine)),
            *(f"volume {found.name}" for found in self.engine.volumes.list(filters=mine)),
        ]

    def _labelled(self, service: str) -> list[Container]:
        wanted = [
            f"com.docker.compose.project={self.project}",
            f"com.docker.compose.service={service}",
            "com.docker.compose.oneoff=False",
        ]
        found: list[Container] = self.engine.containers.list(True, filters={"label": wanted})
        return found

    def _command(self, *arguments: str) -> list[str]:
        files = [COMPOSE_FILE, *([self.override] if self.override else [])]
        named = [part for file in files for part in ("--file", str(file))]
        return ["docker", "compose", "--project-name", self.project, *named, *arguments]

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "CONSILIUM_VERSION": VERSION,
            "WHEELHOUSE": str(wheelhouse()),
            "PORT": str(self.port),
            "PATIENTS": str(self.patients),
        }


def wheelhouse() -> Path:
    return Path(os.environ.get("WHEELHOUSE") or ROOT / "wheelhouse")


def build(engine: docker.DockerClient) -> None:
    """The three images, from this checkout; quick where nothing changed."""
    _good(
        subprocess.run(
            [str(ROOT / "scripts/wheelhouse"), str(wheelhouse())],
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )
    )
    _good(Stack("consilium-e2e", 0, engine).compose("build", timeout=1500))


@contextmanager
def demo(
    engine: docker.DockerClient,
    *,
    before: Callable[[Stack], None] = lambda _: None,
    override: Path | None = None,
) -> Iterator[Stack]:
    """A demo federation, healthy; down afterwards, with nothing left behind.

    Args:
        before: called when its networks exist and none of its containers runs yet.
        override: a second Compose file, that says what is to differ.
    """
    name = f"consilium-e2e-{secrets.token_hex(3)}"
    stack = Stack(name, free_port(), engine, override=override)
    try:
        stack.create()
        before(stack)
        stack.up()
        yield stack
    finally:
        stack.down()


def _good(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
