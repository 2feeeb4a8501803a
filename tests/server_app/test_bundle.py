"""The code a run brings: the same code, the same bytes, and all of it."""

from __future__ import annotations

import io
import shutil
import zipfile
from pathlib import Path

import pytest
from flwr.cli.install import install_from_fab

from federation.schema import ConfigError
from server_app import bundle


def test_the_bundle_is_reproducible_and_whole() -> None:
    one, other = bundle.build(), bundle.build()
    assert one == other
    names = set(zipfile.ZipFile(io.BytesIO(one)).namelist())
    for package in bundle.PACKAGES:
        for path in (bundle.root() / package).rglob("*.py"):
            assert path.relative_to(bundle.root()).as_posix() in names
    assert not [name for name in names if "tests" in name or name.endswith((".key", ".crt"))]


def test_flower_installs_it(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    path = install_from_fab(bundle.build(), skip_prompt=True)
    assert (path / "client_app" / "app.py").is_file()


def test_the_record_names_the_bundle() -> None:
    import hashlib

    code = bundle.build()
    assert bundle.code_record(code)["bundle_sha256"] == hashlib.sha256(code).hexdigest()


def _as_in_an_image(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The coordinator's side alone, with the bundle that was made of the whole."""
    whole = bundle.build()
    for package in ("federation", "server_app"):
        shutil.copytree(bundle.root() / package, folder / package)
    kept = folder / "server_app" / "consilium.fab"
    kept.write_bytes(whole)
    monkeypatch.setattr(bundle, "root", lambda: folder)
    monkeypatch.setattr(bundle, "_KEPT", kept)
    return kept


def test_where_client_app_is_not_installed_the_kept_bundle_is_brought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = _as_in_an_image(tmp_path, monkeypatch)
    assert bundle.build() == kept.read_bytes()
    assert "client_app/outbox.py" in zipfile.ZipFile(kept).namelist()


def test_a_kept_bundle_of_other_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _as_in_an_image(tmp_path, monkeypatch)
    (tmp_path / "server_app" / "rounds.py").write_text("# newer")
    with pytest.raises(ConfigError, match=r"server_app/rounds\.py differs"):
        bundle.build()


def test_without_any_bundle_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _as_in_an_image(tmp_path, monkeypatch).unlink()
    with pytest.raises(ConfigError, match="client_app"):
        bundle.build()
