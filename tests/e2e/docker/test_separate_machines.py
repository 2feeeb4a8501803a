"""A coordinator and a hospital by the Compose files and folders that docs/ has people use."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

import docker
from client_app import code_approval
from federation.processes import free_port
from tests.e2e.docker.stack import ROOT, TINY, VERSION, wheelhouse

pytestmark = pytest.mark.docker

USER = 10001  # as whom the containers run
ONE = (*TINY, "rounds=1", "participation.least=1")
INSTALLED = "/opt/consilium/lib/python3.11/site-packages/federation/figures.py"


@dataclass(frozen=True)
class Machine:
    """A Compose project with its settings, which a person would write into .env."""

    project: str
    files: tuple[Path, ...]
    settings: dict[str, str]

    def compose(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        named = [part for file in self.files for part in ("--file", str(file))]
        return subprocess.run(
            ["docker", "compose", "--project-name", self.project, *named, *arguments],
            env={**os.environ, "WHEELHOUSE": str(wheelhouse()), "CONSILIUM_VERSION": VERSION}
            | self.settings,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=400, check=False,
        )  # fmt: skip

    def good(self, *arguments: str) -> str:
        done = self.compose(*arguments)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    def up(self) -> None:
        self.good("up", "--detach", "--wait", "--wait-timeout", "200")

    def down(self) -> None:
        self.compose("--profile", "*", "down", "--volumes", "--timeout", "15")


def folder(path: Path) -> Path:
    path.mkdir(parents=True, mode=0o700)
    os.chown(path, USER, USER)
    return path


def given(path: Path, content: str) -> None:
    path.write_text(content)
    os.chown(path, USER, USER)


@pytest.fixture(scope="module")
def machines(
    images: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Machine, Machine]]:
    """A coordinator and one hospital that dials its published port, both up."""
    place = tmp_path_factory.mktemp("machines")
    port = free_port("0.0.0.0")
    address = images.networks.get("bridge").attrs["IPAM"]["Config"][0]["Gateway"]
    coordinator = Machine(
        f"consilium-e2e-coordinator-{port}",
        (ROOT / "docker-compose.yml",),
        {
            "COORDINATOR": str(folder(place / "coordinator")),
            "EXCHANGE": str(folder(place / "exchange")),
            "PORT": str(port),
        },
    )
    own = folder(place / "hospital")
    folder(own / "state")
    hospital = Machine(
        f"consilium-e2e-hospital-{port}",
        (ROOT / "docker/hospital/docker-compose.yml",),
        {"HOSPITAL": str(own), "IMAGES": str(folder(place / "images")), "COMPOSE_PROFILES": "cpu"},
    )
    site = {
        "hospital": "north", "kit": "kit", "state": "state", "device": "cpu", "threads": 1,
        "data": {
            "root": "/images/phantoms/images", "layout": "dicom",
            "labels": "/images/phantoms/labels.csv",
        },
        "policy": {"least_patients": 3, "smallest_group": 1},
    }  # fmt: skip
    given(own / "site.yaml", yaml.safe_dump(site))
    federation = {
        "name": "machines", "host": address, "port": port, "listen": "superlink",
        "listen_port": 8000, "hospitals": ["north"],
    }  # fmt: skip
    given(place / "exchange/federation.yaml", yaml.safe_dump(federation))
    try:
        images.containers.run(
            f"consilium-hospital:{VERSION}",
            ["phantom", "--task", "chest_xray", "--patients", "16", "--out", "/images/phantoms"],
            volumes={str(place / "images"): {"bind": "/images"}}, network_mode="none", remove=True,
        )  # fmt: skip
        hospital.good("run", "--rm", "-T", "hospital", "identity", "create", "--out", ".")
        folder(place / "exchange/identities")
        shutil.copy(own / "north.identity.json", place / "exchange/identities")
        os.chown(place / "exchange/identities/north.identity.json", USER, USER)
        coordinator.good(
            "run", "--rm", "-T", "-e", "CONSILIUM_CA_PASSPHRASE=a passphrase of a test", "coordinator",
            "provision", "federation.yaml", "--identities", "identities",
        )  # fmt: skip
        coordinator.up()
        shutil.copytree(place / "coordinator/hospitals/north", own / "kit")
        for path in (own / "kit", *(own / "kit").iterdir()):
            os.chown(path, USER, USER)
        hospital.good("run", "--rm", "-T", "hospital", "check", "--task", "chest_xray")
        hospital.up()
        yield coordinator, hospital
    finally:
        hospital.down()
        coordinator.down()


def test_a_hospital_on_another_machine_takes_part(machines: tuple[Machine, Machine]) -> None:
    coordinator, hospital = machines
    coordinator.good("run", "--rm", "-T", "coordinator", "run", *ONE, "run=whole")
    report = Path(coordinator.settings["COORDINATOR"]) / "runs/whole/report.html"
    assert report.stat().st_size > 10_000
    hospital.good("run", "--rm", "-T", "hospital", "audit", "verify")


def test_secrets_are_given_to_who_needs_them(
    machines: tuple[Machine, Machine], images: docker.DockerClient
) -> None:
    wanted = {
        "supernode": {"/run/secrets/node.key"},
        "superexec": set(),
        "proxy": {"/run/secrets/server.crt", "/run/secrets/server.key", "/run/secrets/ca.crt"},
    }
    for machine, service in ((machines[1], "supernode"), (machines[1], "superexec"),
                             (machines[0], "proxy")):  # fmt: skip
        named = [
            f"com.docker.compose.project={machine.project}",
            f"com.docker.compose.service={service}",
        ]
        (container,) = images.containers.list(filters={"label": named})
        mounts = {mount["Destination"]: mount["RW"] for mount in container.attrs["Mounts"]}
        secrets = {path for path in mounts if path.startswith("/run/secrets/")}
        assert secrets == wanted[service] and not any(mounts[path] for path in secrets)
        assert not container.diff(), (service, container.diff())


def test_a_hospital_with_other_code_refuses_by_name_and_runs_nothing(
    machines: tuple[Machine, Machine], tmp_path: Path
) -> None:
    """One comment more in one file of what both sides agree on: an older or newer image."""
    coordinator, hospital = machines
    source = Path(code_approval.__file__).parents[1] / "federation/figures.py"
    newer = tmp_path / "figures.py"
    newer.write_text(source.read_text() + "# newer\n")
    newer.chmod(0o644)
    tmp_path.chmod(0o755)
    override = tmp_path / "skew.yml"
    override.write_text(
        yaml.safe_dump({"services": {"superexec": {"volumes": [f"{newer}:{INSTALLED}:ro"]}}})
    )
    skewed = Machine(hospital.project, (*hospital.files, override), hospital.settings)
    skewed.up()
    try:
        done = coordinator.compose("run", "--rm", "-T", "coordinator", "run", *ONE, "run=skewed")
        assert done.returncode == 1
        assert "refused_code" in done.stdout + done.stderr, done.stdout + done.stderr
        audit = Path(hospital.settings["HOSPITAL"]) / "state/audit.jsonl"
        entries = [json.loads(line) for line in audit.read_text().splitlines()]
        why = [str(entry) for entry in entries if "figures.py" in str(entry)]
        assert why and "another 'federation/figures.py' than is installed here" in why[-1]
    finally:
        hospital.up()
