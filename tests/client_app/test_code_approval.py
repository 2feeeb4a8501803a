"""Code that a run brings: what the hospital has not approved is never unpacked, imported or run."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import stat
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from flwr.app import Context, Message, RecordDict
from flwr.cli.build import build_fab_from_files
from flwr.supernode.runtime import run_clientapp as flower
from hypothesis import given, settings
from hypothesis import strategies as st

import client_app
from client_app import code_approval, superexec, task_process
from client_app.code_approval import Verdict
from client_app.site import Policy
from federation import wire
from federation.messages import Reason, Request
from server_app import bundle
from tests.in_process import experiment

PACKAGES = ("client_app", "federation", "server_app")
ROOT = Path(client_app.__file__).parents[1]

Files = dict[str, bytes]


@pytest.fixture(scope="module")
def real() -> bytes:
    """What this installation's coordinator sends."""
    return bundle.build()


@pytest.fixture(scope="module")
def files(real: bytes) -> Files:
    with zipfile.ZipFile(io.BytesIO(real)) as archive:
        return {entry.filename: archive.read(entry) for entry in archive.infolist()}


def packed(files: Files, method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def flowers(files: Files) -> bytes:
    """A bundle that Flower itself would install."""
    return bytes(build_fab_from_files({n: c for n, c in files.items() if n[0] != "."})[0])


def judge(
    content: bytes,
    code: Any = "installed",
    verifications: dict[str, str] | None = None,
    **more: Any,
) -> Verdict:
    return code_approval.judge(content, Policy(code=code, **more), verifications or {})


def refused(content: bytes, code: Any = "installed") -> str:
    verdict = judge(content, code)
    assert verdict.runs == "installed"
    assert verdict.refused is not None
    assert verdict.bundle == hashlib.sha256(content).hexdigest()
    assert len(verdict.refused) < 250 and verdict.refused.isprintable()
    return verdict.refused


def test_the_coordinators_bundle_of_the_same_code_is_approved(real: bytes, files: Files) -> None:
    verdict = judge(real, "installed")
    assert (verdict.runs, verdict.refused) == ("installed", None)
    assert verdict.bundle == bundle.code_record(real)["bundle_sha256"]
    assert judge(packed(files, zipfile.ZIP_DEFLATED), "installed").refused is None
    python = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }
    assert python == files.keys() - {"pyproject.toml", ".info/CONTENT"}  # Flower leaves none out


def test_by_default_the_policy_is_what_is_installed() -> None:
    assert Policy().code == "installed"


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_one_other_byte_is_refused(files: Files, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(n for n in files if n.endswith(".py"))))
    content = bytearray(files[name])
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    assert f"another '{name}'" in refused(packed(files | {name: bytes(content)}))


@pytest.mark.parametrize(
    "change",
    [
        {"client_app/app.py": b""},
        {"client_app/app.py": None},
        {"federation/wire.py": None},
        {"server_app/app.py": None},
        {"client_app/extra.py": b""},
        {"client_app/imaging/__init__.pyi": b""},
        {"client_app/app.pyc": b""},
        {"client_app/_fast.cpython-311-x86_64-linux-gnu.so": b"\x7fELF"},
        {"client_app/py.typed": b""},
        {"client_app/data/": b""},
        {"client_app.py": b""},
        {"sitecustomize.py": b""},
        {"usercustomize.py": b""},
        {"conftest.py": b""},
        {"torch.py": b""},
        {"torch/__init__.py": b""},
        {"run.pth": b"import os"},
        {"README.md": b""},
        {".info/METADATA": b""},
        {"pyproject.toml.py": b""},
        {"Client_app/app.py": b""},
        {"./client_app/app.py": b""},
        {"client_app//app.py": b""},
        {"/client_app/app.py": b""},
        {"../client_app/app.py": b""},
        {"client_app/../../evil.py": b""},
        {"client_app\\evil.py": b""},
        {"\x1b[2Jevil\u202e.py": b""},
        {"x" * 60_000: b""},
    ],
    ids=lambda change: ascii(next(iter(change)))[:40],
)
def test_another_set_of_files_is_refused(files: Files, change: dict[str, bytes | None]) -> None:
    other = files | change
    refused(packed({name: content for name, content in other.items() if content is not None}))


def test_files_of_a_package_that_is_not_installed_here_are_let_pass(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hospital without the coordinator's package; nothing unpacks what it cannot compare."""
    find = code_approval.find_spec
    monkeypatch.setattr(
        code_approval, "find_spec", lambda name: None if name == "server_app" else find(name)
    )
    assert judge(packed(files), "installed").refused is None
    refused(packed(files | {"server_app/lib.so": b""}))
    refused(packed(files | {"server_app.py": b""}))
    refused(packed(files | {"client_app/app.py": b""}))
    # of the two others each must be there
    for package in PACKAGES[:2]:
        refused(packed({n: c for n, c in files.items() if not n.startswith(f"{package}/")}))


def repeated(files: Files) -> bytes:
    buffer = io.BytesIO(packed(files))
    with zipfile.ZipFile(buffer, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("client_app/app.py", files["client_app/app.py"])
    return buffer.getvalue()


def linked(files: Files) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name)
            kind = stat.S_IFLNK if name == "client_app/app.py" else stat.S_IFREG
            entry.external_attr = (kind | 0o644) << 16
            archive.writestr(entry, content)
    return buffer.getvalue()


def swollen(files: Files) -> bytes:
    """200 MB in 200 kB."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("client_app/app.py", "w") as file,
    ):
        for _ in range(200):
            file.write(bytes(10**6))
    return buffer.getvalue()


def lying(files: Files) -> bytes:
    """The same, and it says that it is as large as the installed file."""
    content = bytearray(swollen(files))
    at = content.rindex(b"PK\x01\x02")
    content[at + 24 : at + 28] = struct.pack("<I", len(files["client_app/app.py"]))
    return bytes(content)


def encrypted(files: Files) -> bytes:
    content = bytearray(packed(files))
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


def many(files: Files) -> bytes:
    """Entries without files."""
    number = 20_000
    fields = [20, 3, 20, 0, *[0] * 7, 5, *[0] * 6]
    listing = b"".join(
        struct.pack("<4s4B4HL2L5H2L", b"PK\x01\x02", *fields) + b"%05x" % n for n in range(number)
    )
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFE, 0xFFFE, len(listing), 0, 0)
    assert len(zipfile.ZipFile(io.BytesIO(listing + end)).namelist()) == number
    return listing + end


MAKERS: dict[str, Callable[[Files], bytes]] = {
    "empty": lambda _: b"",
    "no zip": lambda _: b"PK" + bytes(1000),
    "cut": lambda files: packed(files)[:-500],
    "no end": lambda files: packed(files)[: len(packed(files)) // 2],
    "too large": lambda files: packed(files) + bytes(10 * 1024**2),
    "repeated name": repeated,
    "symbolic link": linked,
    "swollen": swollen,
    "bzip2": lambda files: packed(files, zipfile.ZIP_BZIP2),
    "lzma": lambda files: packed(files, zipfile.ZIP_LZMA),
    "encrypted": encrypted,
    "many": many,
    "lying": lying,
}

Archives = Callable[[str], bytes]


@pytest.fixture(scope="module")
def archives(files: Files) -> Archives:
    """Each is made once."""
    return functools.cache(lambda kind: MAKERS[kind](files))


@pytest.mark.parametrize("kind", MAKERS)
def test_a_malformed_archive_is_refused(kind: str, archives: Archives) -> None:
    refused(archives(kind))
    if kind != "lying":  # which only reading it shows; Flower reads no more of it than it says
        refused(archives(kind), "any")


@pytest.mark.parametrize("kind", ["swollen", "lying", "many"])
def test_refusing_needs_little_memory(kind: str, archives: Archives) -> None:
    content = archives(kind)
    tracemalloc.start()
    try:
        judge(content, "installed")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 30e6


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_damaged_archive_raises(data: st.DataObject) -> None:
    small = {f"client_app/{n}.py": b"import os\n" * n for n in range(5)}
    content = bytearray(packed(small, data.draw(st.sampled_from([0, 8]))))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    assert judge(bytes(content), "installed").refused is not None
    judge(bytes(content), "any")


def test_a_list_names_bundles_by_all_of_their_bytes(real: bytes, files: Files) -> None:
    other = packed(files | {"client_app/app.py": b"app = 1"})
    listed = [hashlib.sha256(other).hexdigest(), "0" * 64]
    assert judge(other, listed).runs == "bundle"
    assert judge(other, listed).refused is None
    assert "list" in refused(real, listed)
    assert "list" in refused(other + b"\0", listed)
    refused(other, [])
    assert judge(other, "any").runs == "bundle"


def test_refused_reads_what_was_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(code_approval.VARIABLE, raising=False)
    assert code_approval.verdict() is None and not code_approval.refused()
    said = {"bundle": "0" * 64, "runs": "installed", "refused": None}
    for wrong in ("", "{", "[]", "1", '{"bundle": "x"}', json.dumps(said | {"refused": "no"})):
        monkeypatch.setenv(code_approval.VARIABLE, wrong)
        assert code_approval.refused()
    monkeypatch.setenv(code_approval.VARIABLE, json.dumps(said))
    assert not code_approval.refused()


# Flower's runner itself, in a process of its own as at a hospital, without the network around it


def run_task(
    content: bytes,
    folder: Path,
    policy: dict[str, Any] | None,
    *,
    before: str = "",
    verifications: dict[str, str] | None = None,
) -> dict[str, Any]:
    """What a task with this bundle does; `before` is run in its process before Flower's runner.

    Returns:
        "reason" that was answered, or Flower's "error"; "app": file of the ClientApp that ran.
    """
    site = folder / "site.yaml"
    if policy is not None:
        site.write_text(
            yaml.safe_dump(
                {
                    "hospital": "north", "kit": "kit", "state": "state",
                    "data": {"root": "images"}, "policy": policy,
                }
            )
        )  # fmt: skip
    report = folder / "report.json"
    report.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        try:
            _task(content, folder, site, report, verifications, before)
        finally:
            os._exit(9)
    os.waitpid(child, 0)
    return json.loads(report.read_text()) if report.exists() else {}


def _task(
    content: bytes,
    folder: Path,
    site: Path,
    report: Path,
    verifications: dict[str, str] | None,
    before: str,
) -> None:
    os.environ |= {"CONSILIUM_SITE": str(site), "FLWR_HOME": str(folder / "flower")}
    of = experiment()
    records = wire.request_to_records(
        Request("run", 1, evaluate=False, train=True), wire.pack({"w": np.zeros(3, np.float32)})
    )
    message = Message(records, dst_node_id=1, message_type="train")
    message.metadata.__dict__["_message_id"] = "1" * 64
    config = {"run": "run", "experiment": of.canonical(), "experiment-sha256": of.sha256()}
    context = Context(1, 1, {}, RecordDict(), config)
    # the names in a message are the coordinator's to choose
    run = SimpleNamespace(fab_id="consilium/consilium", fab_version="0.1.0", run_id=1)
    fab = SimpleNamespace(
        content=content,
        hash_str=hashlib.sha256(content).hexdigest(),
        verifications=verifications or {},
    )
    said: dict[str, Any] = {}

    def push(_: object, reply: Message, __: object) -> None:
        if reply.has_error():
            said["error"] = reply.error.reason
        else:
            said.update(reply.content.config_records["head"])

    def end(**_: object) -> None:
        import sys

        loaded = sys.modules.get("client_app.app")
        said["app"] = loaded.__file__ if loaded else None
        said["verdict"] = json.loads(os.environ["CONSILIUM_CODE"])
        report.write_text(json.dumps(said))
        os._exit(0)

    stub = SimpleNamespace(start=lambda: None, stop=lambda: None, is_running=False)
    for name, value in {
        "RuntimeHttpClient": SimpleNamespace(from_server_address=lambda **_: None),
        "HeartbeatSender": lambda _: stub,
        "make_task_heartbeat_fn_http": lambda _: None,
        "start_parent_process_monitor": lambda _: None,
        "register_signal_handlers": lambda **_: None,
        "event": lambda *_: None,
        "pull_task_input": lambda _: (message, context, run, fab),
        "push_message": push,
        "flwr_exit": end,
    }.items():
        setattr(flower, name, value)
    exec(before)
    task_process.run_client_app("127.0.0.1:1", "token", True, None, os.getppid())


MARK = "import os, pathlib\n(pathlib.Path(os.environ['FLWR_HOME']).parent / 'marker').touch()\n"
MARKED = {
    "client_app/__init__.py": b'"""x"""\n' + MARK.encode(),
    "client_app/app.py": MARK.encode()
    + b"from flwr.clientapp import ClientApp\napp = ClientApp()\n",
    "federation/__init__.py": MARK.encode(),
    "sitecustomize.py": MARK.encode(),
    "flwr/__init__.py": MARK.encode(),
}


def test_the_installed_app_runs_for_an_equal_bundle(real: bytes, tmp_path: Path) -> None:
    said = run_task(real, tmp_path, {"code": "installed"})
    assert said["app"] == str(ROOT / "client_app/app.py")
    assert said["verdict"]["refused"] is None
    assert said["refused"] not in ("", Reason.REFUSED_CODE.value)  # no images here, say
    assert not (tmp_path / "flower").exists()  # nothing was unpacked


@pytest.mark.parametrize("name", MARKED)
def test_nothing_of_a_refused_bundle_is_run_or_unpacked(
    name: str, files: Files, tmp_path: Path
) -> None:
    content = flowers(files | {name: MARKED[name]})
    said = run_task(content, tmp_path, {})
    assert said["refused"] == Reason.REFUSED_CODE.value
    assert said["app"] == str(ROOT / "client_app/app.py")
    assert name in said["verdict"]["refused"]
    assert not (tmp_path / "marker").exists()
    assert not (tmp_path / "flower").exists()


@pytest.mark.parametrize("name", MARKED)
def test_the_marker_would_show(name: str, files: Files, tmp_path: Path) -> None:
    """The same bundles do run where any may: or the test above could not fail."""
    content = flowers(files | {name: MARKED[name]})
    said = run_task(content, tmp_path, {"code": "any"})
    installed = tmp_path / "flower" / "bundles" / hashlib.sha256(content).hexdigest()
    assert said["app"] == str(installed / "client_app/app.py")
    assert said["verdict"]["refused"] is None
    imported = name.startswith(("client_app", "federation"))
    assert (tmp_path / "marker").exists() == imported


def test_a_listed_bundle_runs_and_no_other(real: bytes, files: Files, tmp_path: Path) -> None:
    content = flowers(files | {"client_app/app.py": MARKED["client_app/app.py"]})
    sha256 = hashlib.sha256(content).hexdigest()
    said = run_task(content, tmp_path, {"code": [sha256]})
    assert said["app"] == str(tmp_path / "flower/bundles" / sha256 / "client_app/app.py")
    assert (tmp_path / "marker").exists()
    (tmp_path / "marker").unlink()
    # a second task finds it installed
    assert run_task(content, tmp_path, {"code": [sha256]})["app"] == said["app"]
    (tmp_path / "marker").unlink()
    other = run_task(real, tmp_path, {"code": [sha256]})
    assert other["refused"] == Reason.REFUSED_CODE.value
    assert run_task(content, tmp_path, {"code": ["0" * 64]})["refused"] == "refused_code"
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("policy", ["installed", "any"])
@pytest.mark.parametrize("kind", ["no zip", "swollen", "not Flower's"])
def test_a_malformed_bundle_is_answered_by_the_installed_app(
    kind: str, policy: str, archives: Archives, tmp_path: Path
) -> None:
    """Nothing of what is wrong with it leaves; Flower would send the exception's text."""
    content = packed({"x.py": b""}) if kind == "not Flower's" else archives(kind)
    said = run_task(content, tmp_path, {"code": policy})
    assert said["refused"] == Reason.REFUSED_CODE.value
    assert said["app"] == str(ROOT / "client_app/app.py")
    assert not list((tmp_path / "flower").rglob("*.py"))


def test_without_a_site_no_code_is_approved(real: bytes, tmp_path: Path) -> None:
    said = run_task(real, tmp_path, None)
    assert said["verdict"]["refused"] == "the site's configuration cannot be read"
    assert said["refused"] == Reason.BAD_SITE.value
    (tmp_path / "site.yaml").write_text("policy: {code: anything}")
    assert run_task(real, tmp_path, None)["verdict"]["refused"] is not None


@pytest.mark.parametrize("name", code_approval._REPLACED)
def test_another_flower_runs_nothing(name: str, real: bytes, tmp_path: Path) -> None:
    """Renamed or no longer used: the process ends before Flower's runner begins."""
    gone = f"del flower.{name}"
    assert run_task(real, tmp_path, {"code": "any"}, before=gone) == {}
    unused = (
        "code = flower.run_clientapp.__code__\n"
        f"names = tuple('other' if n == {name!r} else n for n in code.co_names)\n"
        "flower.run_clientapp.__code__ = code.replace(co_names=names)"
    )
    assert run_task(real, tmp_path, {"code": "any"}, before=unused) == {}
    assert not (tmp_path / "flower").exists()


def test_another_superexec_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def loop() -> None:
        """Flower's, if it no longer asked for an executor."""

    monkeypatch.setattr(superexec.flower_superexec_loop, "run_superexec", loop)
    monkeypatch.setattr(superexec, "flower_superexec", lambda: pytest.fail("it was started"))
    with pytest.raises(RuntimeError, match="flwr changed"):
        superexec.main()
