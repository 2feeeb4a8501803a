"""The code that a run brings to the hospitals: Flower's app bundle, built from the installed packages.

The same code gives the same bytes, so the bundle's SHA-256 names what a run executed.

A coordinator's image has no client_app to import: it holds the bundle that was made with it, from the
sources that the hospitals' image was made from too (`python -m server_app.bundle FILE` at the build).
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from importlib import metadata
from io import BytesIO
from pathlib import Path
from typing import Any

import tomli_w
from flwr.cli.build import build_fab_from_files

from federation.bundle import PACKAGES
from federation.schema import ConfigError

APP = "@consilium/consilium"  # what Flower calls the bundle: its publisher and its name
_KEPT = Path(__file__).with_name("consilium.fab")  # only in an image


def root() -> Path:
    """The folder that holds the three packages and configs/."""
    return Path(__file__).resolve().parent.parent


def build() -> bytes:
    """The bundle: of the packages installed beside this one, or the one kept where client_app is not.

    Raises:
        ConfigError: client_app is not here and neither is a bundle of this code.
    """
    if (root() / "client_app").is_dir():
        return _built()
    if not _KEPT.exists():
        raise ConfigError(
            "the hospitals' code (client_app) is not installed here, and no bundle of it is kept; "
            "install the whole project, or take the coordinator's image"
        )
    bundle = _KEPT.read_bytes()
    _require_of_this_code(bundle)
    return bundle


def _require_of_this_code(bundle: bytes) -> None:
    """Raises ConfigError: a run would bring other code than conducts it."""
    with zipfile.ZipFile(BytesIO(bundle)) as archive:
        brought = {
            name: archive.read(name)
            for name in archive.namelist()
            if name.startswith(("federation/", "server_app/"))
        }
    here = {
        path.relative_to(root()).as_posix(): path.read_bytes()
        for package in ("federation", "server_app")
        for path in (root() / package).rglob("*.py")
    }
    differing = {n for n in brought.keys() | here.keys() if brought.get(n) != here.get(n)}
    if differing:
        raise ConfigError(
            f"the bundle kept here is of other code than is installed: {min(differing)} differs; "
            "take a whole image of one version"
        )


def _built() -> bytes:
    project = {
        "project": {
            "name": APP.partition("/")[2],
            "version": metadata.version("consilium"),
            "license": "Apache-2.0",
        },
        "tool": {
            "flwr": {
                "app": {
                    "publisher": APP.partition("/")[0][1:],
                    "components": {
                        "serverapp": "server_app.app:app",
                        "clientapp": "client_app.app:app",
                    },
                    # what `coordinator run` fills in: Flower takes only keys that stand here
                    "config": {"run": "", "experiment": "", "experiment-sha256": ""},
                }
            }
        },
    }
    files: dict[str, bytes | Path] = {"pyproject.toml": tomli_w.dumps(project).encode()}
    for package in PACKAGES:
        for path in sorted((root() / package).rglob("*.py")):
            files[path.relative_to(root()).as_posix()] = path
    bundle: bytes = build_fab_from_files(files)[0]
    return bundle


def code_record(bundle: bytes) -> dict[str, Any]:
    """Which code runs: version, commit (where this is a checkout), SHA-256 of the bundle."""
    commit = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--", *PACKAGES)
    return {
        "version": metadata.version("consilium"),
        "commit": commit,
        "dirty": None if changed is None else bool(changed),
        "bundle_sha256": hashlib.sha256(bundle).hexdigest(),
    }


def _git(*arguments: str) -> str | None:
    if not (root() / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root(), capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(build())
