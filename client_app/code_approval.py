"""Whether the code that a run brings may run here. The hospital decides, before any of it is imported.

A run brings its code to the hospitals as a bundle (Flower's FAB, a zip), and Flower's runner installs
and imports it. A policy enforced by code that the coordinator sends would be no policy. So in the
hospital's own task process, which is the hospital's code, four names of that runner are replaced:

    policy.code      the bundle that came                        what runs
    installed        has exactly the files installed here        the installed ClientApp
    reviewed         is a sound archive, and signed as below     the bundle
    a list           its SHA-256 is on the list                  the bundle
    any              is a sound archive of bounded size          the bundle
                     anything else                               the installed ClientApp, which refuses

Where the policy names reviewers, a bundle that `policy.least_reviewers` of them have not signed (see
`federation.review`) is refused before it is opened, whatever else holds of it.

Under `installed` no byte of a bundle is ever unpacked, imported or read as configuration, so that no
fault in comparing can run foreign code; comparing keeps a coordinator of another version from getting
answers by code that it does not know.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from importlib.util import find_spec
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from federation import bundle as archives
from federation import review
from federation.bundle import NO_CODE, PACKAGES, Unsound, shown

if TYPE_CHECKING:
    from client_app.site import Policy

log = getLogger("consilium")

VARIABLE = "CONSILIUM_CODE"  # the verdict, in the environment of the task's process alone

_REPLACED = ("pull_task_input", "install_from_fab", "get_project_dir", "get_load_client_app_fn")


@dataclass(frozen=True)
class Verdict:
    """What was decided about a bundle.

    Attributes:
        bundle: SHA-256 of its bytes, hex: `bundle_sha256` of the coordinator's run.json.
        runs: the ClientApp that runs for it.
        refused: why it is not approved, for this hospital's eyes; None where it is.
        reviewers: of those whom the policy names, whose signature holds for it.
    """

    bundle: str
    runs: Literal["installed", "bundle"]
    refused: str | None = None
    reviewers: tuple[str, ...] = ()


class _NotApproved(Exception):
    """Why, in words that follow `the bundle`."""


@dataclass(frozen=True)
class Installed:
    """The code that is installed here.

    Attributes:
        files: Python files of our packages, by their name in a bundle.
    """

    files: Mapping[str, Path]

    @classmethod
    def here(cls) -> Installed:
        files: dict[str, Path] = {}
        for package in PACKAGES:
            spec = find_spec(package)
            if spec is None or spec.origin is None:
                continue
            folder = Path(spec.origin).parent
            for path in folder.rglob("*.py"):
                files[f"{package}/{path.relative_to(folder).as_posix()}"] = path
        return cls(files)

    def code(self) -> str:
        """What names it: `federation.bundle.code_sha256`."""
        return archives.code_sha256(
            {
                name: hashlib.sha256(path.read_bytes()).hexdigest()
                for name, path in self.files.items()
            }
        )

    @staticmethod
    def version() -> str:
        return metadata.version("consilium")


def verdict() -> Verdict | None:
    """What was decided in this process; None where no bundle was judged here (as in a test).

    Raises:
        ValueError, TypeError: the environment holds something else in its place.
    """
    said = os.environ.get(VARIABLE)
    return None if said is None else Verdict(**json.loads(said))


def refused() -> bool:
    """Whether this process may answer nothing but that the run's code is not approved."""
    try:
        decided = verdict()
    except (ValueError, TypeError):
        return True
    return decided is not None and decided.refused is not None


def described() -> dict[str, Any]:
    """The verdict as the audit log has it; empty where there is none that can be read."""
    try:
        decided = verdict()
    except (ValueError, TypeError):
        return {}
    if decided is None:
        return {}
    signed = {"reviewers": list(decided.reviewers)} if decided.reviewers else {}
    return {"bundle": decided.bundle, "why": decided.refused} | signed


def judge(bundle: bytes, policy: Policy, verifications: Mapping[str, str]) -> Verdict:
    """The verdict on a bundle under a site's policy; never raises for what a bundle holds.

    Args:
        verifications: what Flower brought with it, see `federation.review.signed_by`.
    """
    sha256 = hashlib.sha256(bundle).hexdigest()
    signed: dict[str, bool] = {}
    why: str | None = None
    try:
        signed = review.signed_by(sha256, verifications, policy.reviewer_keys())
        _require_signatures(signed, policy)
        if isinstance(policy.code, list):
            if sha256 not in policy.code:
                raise _NotApproved("is not on the list in policy.code")
        else:
            with archives.opened(bundle) as archive:
                if policy.code == "installed":
                    _compare(archive, Installed.here())
    except (_NotApproved, Unsound) as error:
        why = f"the bundle {error}"
    except Exception as error:  # zipfile raises many kinds for what is no zip
        why = f"the bundle cannot be read ({type(error).__name__})"
    runs: Literal["installed", "bundle"] = (
        "installed" if why is not None or policy.code == "installed" else "bundle"
    )
    return Verdict(sha256, runs, why, tuple(name for name, holds in signed.items() if holds))


def guard(flower: Any) -> None:
    """Have Flower's runner ask this hospital before it installs or imports what a run brought.

    Args:
        flower: the module `flwr.supernode.runtime.run_clientapp`.

    Raises:
        RuntimeError: flwr changed, and this no longer does what it says; nothing may run then.
    """
    used = flower.run_clientapp.__code__.co_names
    if not all(name in used and callable(getattr(flower, name, None)) for name in _REPLACED):
        raise RuntimeError("flwr changed: its ClientApp runner installs and loads in another way")
    gate = _Gate(flower.pull_task_input, flower.install_from_fab, flower.get_load_client_app_fn)
    flower.pull_task_input = gate.pull
    flower.install_from_fab = gate.install
    flower.get_project_dir = gate.project_dir
    flower.get_load_client_app_fn = gate.loader


def forget_packages() -> None:
    """Let the next import of our packages read them again, from wherever they are found first."""
    for name in [name for name in sys.modules if name.partition(".")[0] in PACKAGES]:
        del sys.modules[name]


class _Gate:
    """Stands where Flower's runner fetches and installs a bundle, and loads its ClientApp."""

    def __init__(
        self, pull: Callable[..., Any], install: Callable[..., Path], loader: Callable[..., Any]
    ) -> None:
        self._pull, self._install, self._loader = pull, install, loader
        self._verifications: dict[str, str] = {}
        self._bundle: Path | None = None  # where the bundle is that may run
        self._decide(Verdict("", "installed", "no bundle has been judged"))

    def pull(self, client: Any) -> tuple[Any, Any, Any, Any]:
        message, context, run, fab = self._pull(client)
        self._verifications = dict(fab.verifications)
        return message, context, run, fab

    def install(self, fab_file: bytes, *_: object, **__: object) -> Path:
        decided = self._judge(fab_file)
        if decided.runs == "bundle":
            try:
                self._bundle = self._unpack(fab_file, decided.bundle)
            except Exception as error:  # Flower would send its text to the coordinator
                kind = type(error).__name__
                why = f"the bundle cannot be installed ({kind})"
                decided = replace(decided, runs="installed", refused=why)
        self._decide(decided)
        if decided.refused is not None:
            log.warning("code refused: %s; SHA-256 %s", decided.refused, decided.bundle)
        return self.project_dir()

    def project_dir(self, *_: object) -> Path:
        return self._bundle or Path(__file__).resolve().parent

    def loader(self, *_: object, **__: object) -> Callable[[str, str, str], Any]:
        if self._bundle is None:
            return lambda *_: _installed_app()
        forget_packages()
        # by its folder, since the identifiers in a message are the coordinator's words
        load: Callable[[str, str, str], Any] = self._loader(
            default_app_ref="", app_path=str(self._bundle), multi_app=True
        )
        return load

    def _judge(self, bundle: bytes) -> Verdict:
        from client_app.site import SITE_VARIABLE, read_site

        try:
            policy = read_site(Path(os.environ[SITE_VARIABLE])).policy
        except Exception:
            sha256 = hashlib.sha256(bundle).hexdigest()
            return Verdict(sha256, "installed", "the site's configuration cannot be read")
        return judge(bundle, policy, self._verifications)

    def _unpack(self, bundle: bytes, sha256: str) -> Path:
        """Where the bundle is installed, whole: Flower's name for it has 8 digits of its hash only."""
        from flwr.supercore.utils import get_flwr_home

        folder: Path = get_flwr_home() / "bundles" / sha256
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".draft-") as draft:
                whole = self._install(bundle, install_dir=Path(draft), skip_prompt=True)
                try:
                    whole.rename(folder)
                except OSError:
                    if not folder.exists():  # else another process was faster
                        raise
        return folder

    @staticmethod
    def _decide(decided: Verdict) -> None:
        os.environ[VARIABLE] = json.dumps(asdict(decided))


def _installed_app() -> Any:
    from flwr.clientapp.client_app import LoadClientAppError

    try:
        return importlib.import_module("client_app.app").app
    except Exception as error:  # LoadClientAppError is what Flower reports without a text of ours
        raise LoadClientAppError("the installed ClientApp cannot be loaded") from error


def _require_signatures(signed: Mapping[str, bool], policy: Policy) -> None:
    """Raises _NotApproved: too few of the policy's reviewers have signed the bundle."""
    if not policy.reviewers:
        return
    good = sum(signed.values())
    if good >= policy.least_reviewers:
        return
    wrong = [name for name, holds in signed.items() if not holds]
    said = f"; wrong signatures in the name of: {', '.join(wrong)}" if wrong else ""
    raise _NotApproved(
        f"is signed by {good} of the reviewers in policy.reviewers, and "
        f"{policy.least_reviewers} must have signed{said}"
    )


def _compare(archive: zipfile.ZipFile, installed: Installed) -> None:
    """Raises _NotApproved: the bundle's files are not exactly those that are installed here.

    Of a package that is not installed here, which only the coordinator's can be, Python files are let
    pass: they are not looked at, and nothing unpacks them.
    """
    difference = _difference(archive, installed.files)
    if difference is not None:
        brought = archives.code_sha256(archives.digests(archive))
        raise _NotApproved(
            f"has {difference} (it is {archives.version(archive)}, code {brought[:12]}; "
            f"installed is {installed.version()}, code {installed.code()[:12]})"
        )


def _difference(archive: zipfile.ZipFile, installed: Mapping[str, Path]) -> str | None:
    """The first file that is not as it is installed here, in words that follow `has`."""
    absent = {p for p in PACKAGES[2:] if not any(name.startswith(f"{p}/") for name in installed)}
    missing = dict(installed)
    for entry in archive.infolist():
        name = entry.filename
        if name in NO_CODE or (name.partition("/")[0] in absent and name.endswith(".py")):
            continue
        path = missing.pop(name, None)
        if path is None:
            return f"{shown(name)}, which is not installed here"
        content = path.read_bytes()
        with archive.open(entry) as file:
            if entry.file_size != len(content) or file.read(len(content) + 1) != content:
                return f"another {shown(name)} than is installed here"
    return f"no {min(missing)}, which is installed here" if missing else None
