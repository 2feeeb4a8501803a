"""What the images hold, and what they do not."""

from __future__ import annotations

import io
import json
import tarfile
from importlib import metadata
from urllib.parse import unquote

import pytest

import docker
from tests.e2e.docker.stack import VERSION

pytestmark = pytest.mark.docker

GB = 10**9
ROLES = {"hospital": 2.5 * GB, "coordinator": 2.5 * GB, "proxy": 0.3 * GB}


def python(engine: docker.DockerClient, role: str, program: str, **options: object) -> str:
    """What a program in a role's image prints; no network, nothing writable but /tmp."""
    said = engine.containers.run(
        f"consilium-{role}:{VERSION}", ["-c", program], entrypoint="python", remove=True,
        network_mode="none", read_only=True, tmpfs={"/tmp": ""}, **options,
    )  # fmt: skip
    return str(said.decode())


@pytest.mark.parametrize("role", ROLES)
def test_size_user_and_labels(
    images: docker.DockerClient, role: str, capsys: pytest.CaptureFixture[str]
) -> None:
    image = images.images.get(f"consilium-{role}:{VERSION}")
    size = image.attrs["Size"]
    with capsys.disabled():
        print(f"\nimage consilium-{role}: {size / GB:.2f} GB")  # noqa: T201
        for layer in image.history()[:12]:
            if layer["Size"] > 20e6:
                print(f"  {layer['Size'] / GB:.2f} GB  {' '.join(layer['CreatedBy'].split())[:90]}")  # noqa: T201
    assert size < ROLES[role]
    config = image.attrs["Config"]
    assert config["User"] == "10001:10001"
    assert config["Healthcheck"]["Test"]
    for label in ("title", "description", "version", "revision", "licenses", "base.name"):
        assert config["Labels"][f"org.opencontainers.image.{label}"], label


def test_each_image_holds_its_side_alone(images: docker.DockerClient) -> None:
    looking = """
import importlib.util as u, json, shutil
print(json.dumps({
  "modules": [m for m in NAMES if u.find_spec(m)],
  "programs": [p for p in PROGRAMS if shutil.which(p)],
}))"""
    names = [
        "client_app", "server_app", "federation", "torch", "gdcm", "pylibjpeg", "highdicom", "hydra",
        "tenseal", "pytest", "mypy", "hypothesis", "docker", "cyclonedx", "SimpleITK", "cv2", "pip",
        "dicom2nifti", "rt_utils", "dp_accounting",
    ]  # fmt: skip
    programs = [
        "hospital", "coordinator", "pip", "apt-get", "gcc", "cc", "curl", "wget", "uv", "git", "ssh",
    ]  # fmt: skip
    text = looking.replace("NAMES", repr(names)).replace("PROGRAMS", repr(programs))
    held = {role: json.loads(python(images, role, text)) for role in ("hospital", "coordinator")}
    assert held["hospital"] == {
        "modules": [
            "client_app",
            "federation",
            "torch",
            "gdcm",
            "pylibjpeg",
            "highdicom",
            "tenseal",
        ],
        "programs": ["hospital"],
    }
    assert held["coordinator"] == {
        "modules": ["server_app", "federation", "torch", "hydra", "tenseal"],
        "programs": ["coordinator"],
    }


def test_the_bundle_is_what_the_hospitals_hold_and_skew_is_named(
    images: docker.DockerClient,
) -> None:
    """Of the coordinator's image, judged by the hospital's own code in its image."""
    brought = python(
        images, "coordinator",
        "import base64; from server_app import bundle; print(base64.b64encode(bundle.build()).decode())",
    ).strip()  # fmt: skip
    judge = """
import base64, io, json, zipfile
from client_app.code_approval import judge
from client_app.site import Policy
whole = base64.b64decode(open("/tmp/in/bundle").read())
def verdict(bundle):
    said = judge(bundle, Policy(), {}); return [said.runs, said.refused]
def altered(name, content):
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.infolist():
            new.writestr(entry, content if entry.filename == name else old.read(entry))
    return out.getvalue()
print(json.dumps([verdict(whole), verdict(altered("client_app/outbox.py", b"# newer")),
                  verdict(altered("federation/wire.py", b"# newer"))]))"""
    container = images.containers.create(
        f"consilium-hospital:{VERSION}", ["-c", judge], entrypoint="python", network_mode="none"
    )
    try:
        container.put_archive("/tmp", _archived("in/bundle", brought.encode()))
        container.start()
        assert container.wait()["StatusCode"] == 0, container.logs().decode()
        same, outbox, wire = json.loads(container.logs())
    finally:
        container.remove(force=True)
    assert same == ["installed", None]
    assert outbox[0] == "installed" and "client_app/outbox.py" in outbox[1]
    assert wire[0] == "installed" and "federation/wire.py" in wire[1]


def _archived(name: str, content: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = len(content), 0o644
        archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


@pytest.mark.parametrize("role", ROLES)
def test_the_list_of_parts_is_whole(images: docker.DockerClient, role: str) -> None:
    said = images.containers.run(
        f"consilium-{role}:{VERSION}", ["/usr/share/consilium/sbom.cdx.json"], entrypoint="cat",
        remove=True, network_mode="none",
    )  # fmt: skip
    bom = json.loads(said)
    assert bom["bomFormat"] == "CycloneDX" and bom["metadata"]["component"]["name"].endswith(role)
    parts = {part["purl"].partition("?")[0] for part in bom["components"] if "purl" in part}
    dpkg = images.containers.run(
        f"consilium-{role}:{VERSION}",
        ["-W", "-f", "${db:Status-Status} ${Package}@${Version}\n"],
        entrypoint="dpkg-query", remove=True, network_mode="none",
    ).decode()  # fmt: skip
    installed = {line.split()[1] for line in dpkg.splitlines() if line.startswith("installed ")}
    listed = {part.removeprefix("pkg:deb/debian/") for part in parts if "pkg:deb" in part}
    assert len(installed) > 50
    assert {unquote(part) for part in listed} == installed
    if role == "proxy":
        return
    program = (
        "from importlib.metadata import distributions as all; "
        "print(*{d.name + '@' + d.version for d in all()})"
    )
    ours = {_canonical(name) for name in python(images, role, program).split()}
    assert {_canonical(part.removeprefix("pkg:pypi/")) for part in parts if "pkg:pypi" in part} >= {
        name for name in ours if not name.startswith("consilium@")
    }
    assert f"torch@{metadata.version('torch')}" in ours


def _canonical(part: str) -> str:
    name, _, version = unquote(part).partition("@")
    return f"{name.lower().replace('_', '-').replace('.', '-')}@{version}"
