"""`coordinator review …` as reviewers and the coordinator use it, with right and wrong input."""

from __future__ import annotations

import hashlib
import io
import shutil
import stat
import zipfile
from pathlib import Path

import pytest
from click.testing import Result
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from client_app import code_approval
from client_app.site import Policy
from federation import review
from federation.schema import ConfigError
from server_app import bundle, reviewer_key
from server_app.bundle_difference import Contents, visible
from server_app.cli import app
from server_app.home import Federation, Home
from tests.provisioned import provisioned

PASSPHRASE = "correct horse battery"

Files = dict[str, bytes]


@pytest.fixture(scope="module")
def real() -> bytes:
    return bundle.build()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, real: bytes) -> None:
    """bcrypt as written takes a second, and so does a bundle."""
    monkeypatch.setattr(reviewer_key, "_ROUNDS", 1)
    monkeypatch.setattr(bundle, "build", lambda: real)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Home:
    folder = tmp_path_factory.mktemp("federation")
    content = Federation(name="test", host="127.0.0.1", port=9000, hospitals=["north"])
    return provisioned(content, Home(folder / "home"), {"north": folder / "north"})


@pytest.fixture
def home(made: Home) -> Home:
    shutil.rmtree(made.bundles.folder, ignore_errors=True)
    return made


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the commands are given, with a passphrase in a file."""
    monkeypatch.chdir(tmp_path)
    Path("passphrase").write_text(f"{PASSPHRASE}\n")
    return tmp_path


def do(*arguments: str, typed: str | None = None) -> Result:
    return CliRunner().invoke(app, ["review", *arguments], input=typed)


def ok(*arguments: str, typed: str | None = None) -> str:
    done = do(*arguments, typed=typed)
    assert done.exit_code == 0, done.output + repr(done.exception)
    return done.output


def wrong(*arguments: str, typed: str | None = None) -> str:
    """The one error that the command line prints, which is never a trace."""
    done = do(*arguments, typed=typed)
    assert isinstance(done.exception, ConfigError), done.output + repr(done.exception)
    return str(done.exception)


def files_of(content: bytes) -> Files:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {entry.filename: archive.read(entry) for entry in archive.infolist()}


def packed(files: Files) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def key(name: str) -> str:
    """A new key's line."""
    ok("key", "--out", name, "--passphrase-file", "passphrase")
    return Path(f"{name}.pub").read_text().strip()


def test_from_a_key_to_what_a_hospital_trusts(folder: Path, home: Home, real: bytes) -> None:
    lines = {name: key(name) for name in ("alice", "bob")}
    assert stat.S_IMODE(Path("alice").stat().st_mode) == 0o600
    said = ok("key", "--out", "carol", typed=f"{PASSPHRASE}\n{PASSPHRASE}\n")
    assert f"NAME: {Path('carol.pub').read_text().strip()}" in said

    sha256 = hashlib.sha256(real).hexdigest()
    assert f"bundle {sha256}" in ok("bundle")
    assert Path("consilium.fab").read_bytes() == real
    assert f"bundle {sha256}" in ok(
        "sign", "consilium.fab", "--key", "alice", "--passphrase-file", "passphrase"
    )
    ok("sign", "consilium.fab", "--key", "bob", "--out", "b.json", typed=f"{PASSPHRASE}\n")

    where = ("--home", str(home.path))
    assert "signed by nobody" in ok("show", *where)
    (by_alice,) = (str(path) for path in Path().glob("consilium.fpk_*.signature.json"))
    ok("add", by_alice, "b.json", *where)
    shown = ok("show", *where)
    assert "signed by nobody" not in shown
    for name, line in lines.items():
        assert review.key_id(review.key(line)) in shown, name
        assert review.line(review.key(line)) in shown

    carried = {
        one.key_id: f'{{"signed_at": {one.signed_at}, "signature": "{one.signature}"}}'
        for one in home.bundles.signatures(sha256)
    }
    policy = Policy(reviewers=lines, least_reviewers=2)
    verdict = code_approval.judge(real, policy, carried)
    assert (verdict.refused, verdict.reviewers) == (None, ("alice", "bob"))


def test_keys_are_not_replaced_and_not_left_open(folder: Path) -> None:
    for short in ("", "eleven-char"):
        Path("short").write_text(short)
        assert "12 letters" in wrong("key", "--out", "alice", "--passphrase-file", "short")
    Path("alice.pub").write_text("mine")
    assert "alice.pub is there already" in wrong(
        "key", "--out", "alice", "--passphrase-file", "passphrase"
    )
    assert not Path("alice").exists()  # no half of a key
    Path("alice.pub").unlink()
    key("alice")
    before = Path("alice").read_bytes()
    assert "never replaced" in wrong("key", "--out", "alice", "--passphrase-file", "passphrase")
    assert Path("alice").read_bytes() == before
    assert "there is no folder" in wrong("key", "--out", "x/a", "--passphrase-file", "passphrase")
    assert "there is no none" in wrong("key", "--out", "b", "--passphrase-file", "none")


def test_signing_needs_the_passphrase_and_an_encrypted_ed25519_key(folder: Path) -> None:
    ok("bundle")
    key("alice")
    assert "passphrase is wrong" in wrong(
        "sign", "consilium.fab", "--key", "alice", typed="another passphrase\n"
    )
    openssh = PrivateFormat.OpenSSH
    plain = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, openssh, NoEncryption())
    Path("plain").write_bytes(plain)
    other = ec.generate_private_key(ec.SECP256R1())
    locked = BestAvailableEncryption(PASSPHRASE.encode())
    Path("ecdsa").write_bytes(other.private_bytes(Encoding.PEM, openssh, locked))
    for name, what in (
        ("plain", "is not encrypted"),
        ("ecdsa", "not an Ed25519 key"),
        ("alice.pub", "no OpenSSH private key"),
        ("none", "coordinator review key"),
    ):
        said = wrong(
            "sign", "consilium.fab", "--key", name, "--passphrase-file", "passphrase"
        )  # fmt: skip
        assert what in said, name
    assert not list(Path().glob("*.signature.json"))


def test_what_is_no_bundle_is_not_signed(folder: Path, real: bytes) -> None:
    key("alice")
    Path("text").write_text("hello")
    Path("cut").write_bytes(real[:-100])
    Path("link").write_bytes(packed({"../evil.py": b""}))
    Path("large").write_bytes(bytes((1 << 24) + 1))
    for name, what in (
        ("text", "not a bundle"),
        ("cut", "not a bundle"),
        ("link", "no hospital opens it"),
        ("large", "larger than"),
        ("none", "coordinator review bundle"),
    ):
        said = wrong("sign", name, "--key", "alice", "--passphrase-file", "passphrase")
        assert what in said, name
    assert not list(Path().glob("*.signature.json"))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_damaged_bundle_raises_anything_else(data: st.DataObject) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for n in range(4):
            archive.writestr(f"client_app/{n}.py", b"import os\n" * 5 * n)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        Contents.of(bytes(content), "it")
    except ConfigError as error:
        assert str(error).startswith("it ")


def test_signatures_of_another_bundle_and_wrong_ones(folder: Path, home: Home) -> None:
    where = ("--home", str(home.path))
    key("alice")
    ok("bundle")
    files = files_of(Path("consilium.fab").read_bytes())
    Path("altered.fab").write_bytes(packed(files | {"client_app/app.py": b"evil = 1\n"}))
    ok(
        "sign",
        "altered.fab",
        "--key",
        "alice",
        "--out",
        "a.json",
        "--passphrase-file",
        "passphrase",
    )
    altered = hashlib.sha256(Path("altered.fab").read_bytes()).hexdigest()
    now = hashlib.sha256(Path("consilium.fab").read_bytes()).hexdigest()
    # it stays with the bundle that was signed, whatever a run would bring
    assert altered in ok("add", "a.json", *where)
    shown = ok("show", *where)
    assert shown.index(now) < shown.index("signed by nobody") < shown.index(altered)
    assert not home.bundles.signatures(now)
    # and cannot be passed off as one of the other
    text = Path("a.json").read_text()
    Path("b.json").write_text(text.replace(altered, now))
    Path("c.json").write_text("{}")
    for name, what in (
        ("b.json", "the signature in it is wrong"),
        ("c.json", "not a reviewer's signature"),
        ("alice", "not a reviewer's signature"),
        ("altered.fab", "larger than"),
        ("none", "there is no"),
    ):
        shutil.rmtree(home.bundles.folder, ignore_errors=True)
        assert what in wrong("add", "a.json", name, *where), name
        assert not home.bundles.known()  # all of them or none


def test_commands_for_the_coordinator_say_where_its_folder_is_not(folder: Path) -> None:
    ok("bundle")
    key("alice")
    ok("sign", "consilium.fab", "--key", "alice", "--out", "a", "--passphrase-file", "passphrase")
    for arguments in (("show",), ("add", "a")):
        assert "not a coordinator's folder" in wrong(*arguments, "--home", "nowhere")
    assert not Path("nowhere").exists()


def test_compare_names_what_differs(folder: Path, real: bytes) -> None:
    files = files_of(real)
    Path("same.fab").write_bytes(real)
    assert "no difference" in ok("compare", "same.fab", "--diff")
    changed = files | {
        "client_app/answers.py": files["client_app/answers.py"] + b"evil = '\x1b[2K\xe2\x80\xae'\n",
        "client_app/zz.py": b"new = 1\n",
    }
    del changed["federation/wire.py"]
    Path("other.fab").write_bytes(packed(changed))
    said = ok("compare", "other.fab", "--diff").splitlines()
    assert "  added    'client_app/zz.py'" in said
    assert "  removed  'federation/wire.py'" in said
    assert "  changed  'client_app/answers.py'" in said
    assert [row for row in said if row.startswith("+++")] == [
        "+++ new 'client_app/answers.py'",
        "+++ new 'client_app/zz.py'",
        "+++ new 'federation/wire.py'",
    ]
    assert r"+evil = '\x1b[2K\u202e'" in said
    assert "+new = 1" in said
    assert not [row for row in said if not row.isprintable() and "\t" not in row]
    # against an older bundle, the other way about
    back = ok("compare", "same.fab", "other.fab").splitlines()
    assert "  added    'federation/wire.py'" in back
    assert "  removed  'client_app/zz.py'" in back


@settings(deadline=None)
@given(st.text())
def test_what_a_terminal_would_hide_is_visible(text: str) -> None:
    shown = visible(text)
    assert shown.isascii() and all(letter == "\t" or letter.isprintable() for letter in shown)
