"""Code that reviewers signed runs at a hospital, and no other: with real processes and commands."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from federation.processes import wait_until
from server_app import bundle
from server_app.state import RunFolder
from tests.e2e.federation import PROGRAMS, TINY, Real, federation, hospital

pytestmark = pytest.mark.e2e

ONE = [*TINY, "rounds=1", "participation.least=1"]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    with federation(tmp_path_factory.mktemp("reviewed"), ("north",)) as running:
        assert wait_until(lambda: running.online() == {"north"}, seconds=90)
        yield running


@pytest.fixture(scope="module")
def newer(real: Real) -> Path:
    """A checkout whose hospital's code differs in one line from what the hospital installed."""
    folder = real.home.path.parent / "newer"
    for package in (*bundle.PACKAGES, "configs"):
        shutil.copytree(
            bundle.root() / package,
            folder / package,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    with (folder / "client_app" / "answers.py").open("a") as file:
        file.write("\n# newer\n")
    return folder


def coordinator(*arguments: str, code: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The `coordinator` command, of the checkout in the folder `code`."""
    environment = {**os.environ, "PYTHONPATH": str(code or bundle.root())}
    return subprocess.run(
        [str(PROGRAMS / "coordinator"), *arguments],
        capture_output=True, text=True, timeout=300, check=False, env=environment,
    )  # fmt: skip


def ok(*arguments: str, code: Path | None = None) -> str:
    done = coordinator(*arguments, code=code)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def policy(real: Real, **keys: Any) -> None:
    site = real.sites["north"] / "site.yaml"
    content = yaml.safe_load(site.read_text())
    content["policy"] |= keys
    site.write_text(yaml.safe_dump(content))


def run(real: Real, name: str, code: Path | None = None) -> subprocess.CompletedProcess[str]:
    return coordinator(
        "run", *ONE, f"run={name}", "--home", str(real.home.path), code=code
    )  # fmt: skip


def audited(real: Real, event: str) -> dict[str, Any]:
    """The fields of the newest such entry."""
    shown = hospital(
        "audit", "show", "--json", "--last", "0", "--site", str(real.sites["north"] / "site.yaml")
    ).stdout
    return [entry["fields"] for entry in json.loads(shown) if entry["event"] == event][-1]


def sign(real: Real, name: str, code: Path | None = None) -> None:
    """Two reviewers sign what this checkout would bring, and the coordinator takes it."""
    folder = real.home.path.parent
    fab = folder / f"{name}.fab"
    ok("review", "bundle", "--out", str(fab), code=code)
    for reviewer in ("alice", "bob"):
        ok(
            "review", "sign", str(fab), "--key", str(folder / reviewer),
            "--passphrase-file", str(folder / "passphrase"),
        )  # fmt: skip
    signatures = sorted(map(str, folder.glob(f"{name}.*.signature.json")))
    assert len(signatures) == 2
    ok("review", "add", *signatures, "--home", str(real.home.path))


def test_only_what_the_reviewers_signed_runs(real: Real, newer: Path) -> None:
    folder, home = real.home.path.parent, str(real.home.path)
    (folder / "passphrase").write_text("correct horse battery\n")
    for name in ("alice", "bob"):
        ok(
            "review", "key", "--out", str(folder / name),
            "--passphrase-file", str(folder / "passphrase"),
        )  # fmt: skip
    keys = {name: (folder / f"{name}.pub").read_text().strip() for name in ("alice", "bob")}
    policy(real, reviewers=keys, least_reviewers=2)

    # nobody has signed
    done = run(real, "unsigned")
    assert done.returncode == 1 and "north: refused_code" in done.stderr
    refused = audited(real, "code_refused")
    assert refused["why"] == (
        "the bundle is signed by 0 of the reviewers in policy.reviewers, and 2 must have signed"
    )
    unsigned = RunFolder(real.home.runs / "unsigned").record()["code"]["bundle_sha256"]
    assert refused["bundle"] == unsigned

    # the very same bundle, signed by both
    sign(real, "now")
    assert "signed by fpk_" in ok("review", "show", "--home", home)
    done = run(real, "signed")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "signed by 2" in done.stdout
    asked = audited(real, "request")
    assert (asked["code"], asked["reviewers"]) == (unsigned, ["alice", "bob"])

    # altered in one line: their signatures are of other bytes
    compared = ok("review", "compare", str(folder / "now.fab"), "--diff", code=newer)
    assert "-# newer" in compared and "changed  'client_app/answers.py'" in compared
    done = run(real, "altered", code=newer)
    assert done.returncode == 1 and "north: refused_code" in done.stderr
    assert "signed by 0" in audited(real, "code_refused")["why"]

    # signed, and still not what is installed at the hospital: skew is named
    sign(real, "newer", code=newer)
    done = run(real, "skewed", code=newer)
    assert done.returncode == 1 and "north: refused_code" in done.stderr
    refused = audited(real, "code_refused")
    assert (
        "another 'client_app/answers.py' than is installed here (it is 0.1.0, code "
        in (refused["why"])
    )
    assert refused["reviewers"] == ["alice", "bob"]

    # a hospital that lets its reviewers bring newer code
    policy(real, code="reviewed")
    done = run(real, "newer", code=newer)
    assert done.returncode == 0, done.stdout + done.stderr
    asked = audited(real, "request")
    brought = RunFolder(real.home.runs / "newer").record()["code"]["bundle_sha256"]
    assert (asked["code"], asked["reviewers"]) == (brought, ["alice", "bob"])
    assert brought != unsigned
