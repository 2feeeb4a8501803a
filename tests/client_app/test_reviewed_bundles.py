"""Bundles that reviewers signed at a hospital: what runs, what does not, and what is audited."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client_app.audit import Audit
from client_app.code_approval import Installed
from federation import review
from federation.messages import Reason
from server_app import bundle
from tests.client_app.test_code_approval import (
    MARKED,
    ROOT,
    Files,
    flowers,
    judge,
    packed,
    run_task,
)
from tests.in_process import experiment

ALICE, BOB = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2))
TRUST = {name: review.line(key.public_key()) for name, key in (("alice", ALICE), ("bob", BOB))}
NEWER = "client_app/answers.py"


@pytest.fixture(scope="module")
def real() -> bytes:
    return bundle.build()


@pytest.fixture(scope="module")
def files(real: bytes) -> Files:
    with zipfile.ZipFile(io.BytesIO(real)) as archive:
        return {entry.filename: archive.read(entry) for entry in archive.infolist()}


@pytest.fixture(scope="module")
def newer(files: Files) -> bytes:
    """The installed code but for a comment, as Flower builds it."""
    return flowers(files | {NEWER: files[NEWER] + b"\n# newer\n"})


def signed(content: bytes, *by: Ed25519PrivateKey) -> dict[str, str]:
    found = {"valid_license": "Valid"}
    for private in by:
        said = review.sign(content, private, 1_790_000_000).verification()
        found[str(said.pop("public_key_id"))] = json.dumps(said)
    return found


def why(content: bytes, verifications: dict[str, str], **policy: Any) -> str | None:
    verdict = judge(content, verifications=verifications, **policy)
    assert verdict.runs == "installed" or verdict.refused is None
    return verdict.refused


def audited(folder: Path) -> dict[str, Any]:
    """What the hospital's log has of the one bundle that it refused."""
    entry, answer = Audit(folder / "state" / "audit.jsonl").entries()
    assert (entry.event, answer.event) == ("code_refused", "refusal")
    return dict(entry.fields)


def test_skew_is_named_in_the_audit_log(files: Files, tmp_path: Path) -> None:
    project = files["pyproject.toml"].replace(
        f'version = "{Installed.version()}"'.encode(), b'version = "9.8.7"'
    )
    changed = files | {NEWER: b"other = 1\n", "pyproject.toml": project}
    content = flowers(changed)
    said = run_task(content, tmp_path, {"reviewers": TRUST}, verifications=signed(content, BOB))
    assert said["refused"] == Reason.REFUSED_CODE.value
    brought = hashlib.sha256(
        "".join(
            f"{hashlib.sha256(changed[name]).hexdigest()}  {name}\n"
            for name in sorted(changed)
            if name.startswith(("client_app/", "federation/"))
        ).encode()
    ).hexdigest()
    command = "find client_app federation -name '*.py' | LC_ALL=C sort | xargs sha256sum"
    listing = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, check=True).stdout
    here = hashlib.sha256(listing).hexdigest()
    assert here == Installed.here().code() != brought
    assert audited(tmp_path) == {
        "bundle": hashlib.sha256(content).hexdigest(),
        "why": f"the bundle has another '{NEWER}' than is installed here (it is 9.8.7, code "
        f"{brought[:12]}; installed is {Installed.version()}, code {here[:12]})",
        "reviewers": ["bob"],
    }


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"federation/wire.py": None}, "has no 'federation/wire.py', which is installed here"),
        ({"federation/zz.py": b""}, "has 'federation/zz.py', which is not installed here"),
    ],
)
def test_the_first_file_that_differs_is_named(
    files: Files, change: dict[str, bytes | None], what: str
) -> None:
    other = {name: content for name, content in (files | change).items() if content is not None}
    refused = why(packed(other), {})
    assert refused is not None and what.replace("'", "") in refused.replace("'", "")


def test_newer_code_runs_where_reviewers_may_bring_it(files: Files, tmp_path: Path) -> None:
    content = flowers(files | {"client_app/app.py": MARKED["client_app/app.py"]})
    policy = {"code": "reviewed", "reviewers": TRUST, "least_reviewers": 2}
    other = flowers(files | {"client_app/app.py": MARKED["client_app/app.py"] + b"\n"})
    for verifications, number in (
        ({}, 0),
        (signed(content, ALICE), 1),
        (signed(other, ALICE, BOB), 0),  # a replay of what they signed elsewhere
        (signed(content, Ed25519PrivateKey.generate()), 0),
        ({review.key_id(key.public_key()): "{" for key in (ALICE, BOB)}, 0),
    ):
        said = run_task(content, tmp_path, policy, verifications=verifications)
        assert said["refused"] == Reason.REFUSED_CODE.value
        assert f"is signed by {number} of" in said["verdict"]["refused"]
        assert said["app"] == str(ROOT / "client_app/app.py")
        assert not (tmp_path / "marker").exists() and not (tmp_path / "flower").exists()
    said = run_task(content, tmp_path, policy, verifications=signed(content, ALICE, BOB))
    folder = tmp_path / "flower" / "bundles" / hashlib.sha256(content).hexdigest()
    assert said["app"] == str(folder / "client_app/app.py")
    assert said["verdict"]["reviewers"] == ["alice", "bob"]
    assert (tmp_path / "marker").exists()


def test_installed_with_reviewers_needs_both(real: bytes, newer: bytes) -> None:
    both: dict[str, Any] = {"code": "installed", "reviewers": TRUST}
    assert why(real, signed(real, ALICE), **both) is None
    assert judge(real, verifications=signed(real, ALICE), **both).runs == "installed"
    assert "signed by 0" in str(why(real, {}, **both))
    assert f"another '{NEWER}'" in str(why(newer, signed(newer, ALICE, BOB), **both))
    assert "signed by 0" in str(why(newer, signed(real, ALICE, BOB), **both))


def test_a_list_with_reviewers_needs_both(real: bytes, newer: bytes) -> None:
    sha256 = hashlib.sha256(newer).hexdigest()
    both: dict[str, Any] = {"code": [sha256], "reviewers": TRUST}
    assert why(newer, signed(newer, BOB), **both) is None
    assert judge(newer, verifications=signed(newer, BOB), **both).runs == "bundle"
    assert "signed by 0" in str(why(newer, {}, **both))
    assert "not on the list" in str(why(real, signed(real, ALICE, BOB), **both))


def test_bundle_reviewers_and_experiment_together(newer: bytes, tmp_path: Path) -> None:
    sha256, approved = hashlib.sha256(newer).hexdigest(), experiment().sha256()
    by = signed(newer, ALICE)

    def answered(code: list[str], experiments: list[str], by: dict[str, str]) -> str:
        policy = {"code": code, "reviewers": TRUST, "experiments": experiments}
        return str(run_task(newer, tmp_path, policy, verifications=by)["refused"])

    assert answered([sha256], ["0" * 64], by) == Reason.REFUSED_EXPERIMENT.value
    assert answered(["0" * 64], [approved], by) == Reason.REFUSED_CODE.value
    assert answered([sha256], [approved], {}) == Reason.REFUSED_CODE.value
    allowed = answered([sha256], [approved], by)
    assert allowed not in ("", Reason.REFUSED_EXPERIMENT.value, Reason.REFUSED_CODE.value)


def swollen() -> bytes:
    """A pyproject.toml of 100 MB in 100 kB."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("pyproject.toml", b"#" * 100_000_000)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("no zip", "cannot be read (BadZipFile)"),
        ("oversized", "has more than 10,485,760 bytes"),
        ("swollen", "has more than 67,108,864 bytes when it is unpacked"),
        ("no project", "cannot be installed"),
        ("no toml", "cannot be installed"),
    ],
)
def test_what_reviewers_should_not_have_signed_is_refused_and_audited(
    kind: str, what: str, tmp_path: Path
) -> None:
    makers: dict[str, Callable[[], bytes]] = {
        "no zip": lambda: b"PK" + bytes(1000),
        "oversized": lambda: bytes(10 * 1024**2 + 1),
        "swollen": swollen,
        "no project": lambda: packed({"client_app/app.py": b""}),
        "no toml": lambda: packed({"pyproject.toml": b"[[[", "client_app/app.py": b""}),
    }
    content = makers[kind]()
    policy = {"code": "reviewed", "reviewers": TRUST}
    said = run_task(content, tmp_path, policy, verifications=signed(content, ALICE))
    assert said["refused"] == Reason.REFUSED_CODE.value
    assert said["app"] == str(ROOT / "client_app/app.py")
    noted = audited(tmp_path)
    assert what in noted["why"]
    assert noted["bundle"] == hashlib.sha256(content).hexdigest()
    assert noted["reviewers"] == ["alice"]
    assert not list((tmp_path / "flower").rglob("*.py"))
