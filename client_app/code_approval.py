"""Whether the code that a run brings may run here. The hospital decides, before any of it is imported.

A run brings its code to the hospitals as a bundle (Flower's FAB, a zip), and Flower's runner installs
and imports it. A policy enforced by code that the coordinator sends would be no policy. So in the
hospital's own task process, which is the hospital's code, three names of that runner are replaced:

    policy.code      the bundle that came                        what runs
    installed        has exactly the files installed here        the installed ClientApp
    a list           its SHA-256 is on the list                  the bundle
    any              is a sound archive of bounded size          the bundle
                     anything else                               the installed ClientApp, which refuses

Under `installed` no byte of a bundle is ever unpacked, imported or read as configuration, so that no
fault in comparing can run foreign code; comparing keeps a coordinator of another version from getting
answers by code that it does not know.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import stat
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from io import BytesIO
from logging import getLogger
from pathlib import Path, PurePosixPath
from typing import Any, Literal

log = getLogger("consilium")

VARIABLE = "CONSILIUM_CODE"  # the verdict, in the environment of the task's process alone

_PACKAGES = ("client_app", "federation", "server_app")
_NO_CODE = ("pyproject.toml", ".info/CONTENT")  # Flower's description of the bundle; not read here
_LARGEST_BUNDLE = 10 * 1024**2  # bytes; Flower builds none that is larger (FAB_MAX_SIZE)
_MOST_FILES, _LARGEST_CONTENT = 2000, 64 * 1024**2  # of a bundle, and bytes when unpacked
_REPLACED = ("install_from_fab", "get_project_dir", "get_load_client_app_fn")


@dataclass(frozen=True)
class Verdict:
    """What was decided about a bundle.

    Attributes:
        bundle: SHA-256 of its bytes, hex: `bundle_sha256` of the coordinator's run.json.
        runs: the ClientApp that runs for it.
        refused: why it is not approved, for this hospital's eyes; None where it is.
    """

    bundle: str
    runs: Literal["installed", "bundle"]
    refused: str | None = None


class _NotApproved(Exception):
    """Why, in words that follow `the bundle`."""


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


def described() -> dict[str, str | None]:
    """The verdict as the audit log has it; empty where there is none that can be read."""
    try:
        decided = verdict()
    except (ValueError, TypeError):
        return {}
    return {} if decided is None else {"bundle": decided.bundle, "why": decided.refused}


def judge(bundle: bytes, code: str | list[str]) -> Verdict:
    """The verdict on a bundle under a site's `policy.code`; never raises for what a bundle holds."""
    sha256 = hashlib.sha256(bundle).hexdigest()
    try:
        if isinstance(code, list):
            if sha256 not in code:
                raise _NotApproved("is not on the list in policy.code")
            return Verdict(sha256, "bundle")
        with _archive(bundle) as archive:
            if code == "any":
                return Verdict(sha256, "bundle")
            _compare(archive, _installed())
        return Verdict(sha256, "installed")
    except _NotApproved as error:
        return Verdict(sha256, "installed", f"the bundle {error}")
    except Exception as error:  # zipfile raises many kinds for what is no zip
        return Verdict(sha256, "installed", f"the bundle cannot be read ({type(error).__name__})")


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
    gate = _Gate(flower.install_from_fab, flower.get_load_client_app_fn)
    flower.install_from_fab = gate.install
    flower.get_project_dir = gate.project_dir
    flower.get_load_client_app_fn = gate.loader


def forget_packages() -> None:
    """Let the next import of our packages read them again, from wherever they are found first."""
    for name in [name for name in sys.modules if name.partition(".")[0] in _PACKAGES]:
        del sys.modules[name]


class _Gate:
    """Stands where Flower's runner installs a bundle, looks for its folder, and loads its ClientApp."""

    def __init__(self, install: Callable[..., Path], loader: Callable[..., Any]) -> None:
        self._install, self._loader = install, loader
        self._bundle: Path | None = None  # where the bundle is that may run
        self._decide(Verdict("", "installed", "no bundle has been judged"))

    def install(self, fab_file: bytes, *_: object, **__: object) -> Path:
        decided = self._judge(fab_file)
        if decided.runs == "bundle":
            try:
                self._bundle = self._unpack(fab_file, decided.bundle)
            except Exception as error:  # Flower would send its text to the coordinator
                kind = type(error).__name__
                decided = Verdict(
                    decided.bundle, "installed", f"the bundle cannot be installed ({kind})"
                )
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
            code = read_site(Path(os.environ[SITE_VARIABLE])).policy.code
        except Exception:
            sha256 = hashlib.sha256(bundle).hexdigest()
            return Verdict(sha256, "installed", "the site's configuration cannot be read")
        return judge(bundle, code)

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


def _installed() -> dict[str, Path]:
    """Python files of our packages as they are installed here, by their name in a bundle."""
    files: dict[str, Path] = {}
    for package in _PACKAGES:
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            continue
        folder = Path(spec.origin).parent
        for path in folder.rglob("*.py"):
            files[f"{package}/{path.relative_to(folder).as_posix()}"] = path
    return files


def _archive(bundle: bytes) -> zipfile.ZipFile:
    """The bundle opened, and its list of contents looked at; nothing of it is unpacked yet.

    Raises:
        _NotApproved: too large now or when unpacked, or with names that could be more than files.
        zipfile.BadZipFile: not a zip.
    """
    if len(bundle) > _LARGEST_BUNDLE:
        raise _NotApproved(f"has more than {_LARGEST_BUNDLE:,} bytes")
    archive = zipfile.ZipFile(BytesIO(bundle))
    entries = archive.infolist()
    if len(entries) > _MOST_FILES:
        raise _NotApproved(f"has more than {_MOST_FILES:,} files")
    if sum(entry.file_size for entry in entries) > _LARGEST_CONTENT:
        raise _NotApproved(f"has more than {_LARGEST_CONTENT:,} bytes when it is unpacked")
    if len({entry.filename for entry in entries}) < len(entries):
        raise _NotApproved("has two files of one name")
    for entry in entries:
        path = PurePosixPath(entry.filename)
        plain = (
            entry.filename == entry.orig_filename
            and str(path) == entry.filename.rstrip("/")
            and not path.is_absolute()
            and ".." not in path.parts
            and "\\" not in entry.filename
        )
        mode = entry.external_attr >> 16
        if not plain or stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _NotApproved(f"has {_name(entry)}, which is not a plain file inside it")
        # the other methods unpack all of a file at once, whatever it says of its size
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _NotApproved(f"has {_name(entry)} compressed in a way that Flower does not use")
        if entry.flag_bits & 0x1:
            raise _NotApproved(f"has {_name(entry)} encrypted")
    return archive


def _compare(archive: zipfile.ZipFile, installed: dict[str, Path]) -> None:
    """Raises _NotApproved: the bundle's files are not exactly those that are installed here.

    Of a package that is not installed here, which only the coordinator's can be, Python files are let
    pass: they are not looked at, and nothing unpacks them.
    """
    absent = {p for p in _PACKAGES[2:] if not any(name.startswith(f"{p}/") for name in installed)}
    missing = dict(installed)
    for entry in archive.infolist():
        name = entry.filename
        if name in _NO_CODE or (name.partition("/")[0] in absent and name.endswith(".py")):
            continue
        path = missing.pop(name, None)
        if path is None:
            raise _NotApproved(f"has {_name(entry)}, which is not installed here")
        content = path.read_bytes()
        with archive.open(entry) as file:
            if entry.file_size != len(content) or file.read(len(content) + 1) != content:
                raise _NotApproved(f"has another {_name(entry)} than is installed here")
    if missing:
        raise _NotApproved(f"has no {min(missing)}, which is installed here")


def _name(entry: zipfile.ZipInfo) -> str:
    """A name of the coordinator's choosing, as a log may hold it."""
    return ascii(entry.filename)[:120]
