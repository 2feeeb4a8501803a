"""The code a run brings: the same code, the same bytes, and all of it."""

from __future__ import annotations

import io
import zipfile

from flwr.cli.install import install_from_fab

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
