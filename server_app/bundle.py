"""The code that a run brings to the hospitals: Flower's app bundle, built from the installed packages.

The same code gives the same bytes, so the bundle's SHA-256 names what a run executed.
"""

from __future__ import annotations

import hashlib
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import tomli_w
from flwr.cli.build import build_fab_from_files

from federation.archive import PACKAGES

APP = "@consilium/consilium"  # what Flower calls the bundle: its publisher and its name


def root() -> Path:
    """The folder that holds the three packages and configs/."""
    return Path(__file__).resolve().parent.parent


def build() -> bytes:
    """The bundle. Raises FileNotFoundError: one of the packages is not installed beside this one."""
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
