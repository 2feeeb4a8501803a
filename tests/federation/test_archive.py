"""An archive gives back what was put in, or nothing: whatever is altered, cut off or guessed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from federation import archive
from federation.archive import unpack, writing
from federation.schema import ConfigError

WORDS = "correct horse battery"
LARGE = os.urandom((2 << 20) + 17)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """scrypt as written takes half a second, which one test is enough for."""
    monkeypatch.setattr(archive, "_SCRYPT", {"n": 2, "r": 8, "p": 1})


def make(folder: Path, name: str = "a.backup") -> Path:
    source = folder / "source"
    source.mkdir(exist_ok=True)
    (source / "large").write_bytes(LARGE)
    (source / "empty").write_bytes(b"")
    out = folder / name
    with writing(out, WORDS, kind="hospital", name="north", about={"charges": 3}) as writer:
        writer.add("ledger.sqlite", source / "large")
        writer.add("identity/node.key", source / "empty")
        writer.add("audit.jsonl", source / "large", size=100)
    return out


def into(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name


def test_what_was_put_in_comes_out_and_nobody_else_can_read_it(tmp_path: Path) -> None:
    out = make(tmp_path)
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    found = into(tmp_path, "found")
    manifest = unpack(out, WORDS, found, kind="hospital")
    assert (manifest.name, manifest.about) == ("north", {"charges": 3})
    assert (found / "ledger.sqlite").read_bytes() == LARGE
    assert (found / "audit.jsonl").read_bytes() == LARGE[:100]
    assert (found / "identity/node.key").read_bytes() == b""
    assert {stat.S_IMODE(p.stat().st_mode) for p in found.rglob("*") if p.is_file()} == {0o600}
    content = out.read_bytes()
    assert LARGE[5000:5100] not in content and b"node.key" not in content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.backup", "found", "source"]


def test_a_wrong_passphrase_opens_nothing(tmp_path: Path) -> None:
    out = make(tmp_path)
    found = into(tmp_path, "found")
    with pytest.raises(ConfigError, match="passphrase is wrong"):
        unpack(out, WORDS + " ", found, kind="hospital")
    assert list(found.iterdir()) == []


def test_two_archives_of_the_same_files_have_nothing_in_common(tmp_path: Path) -> None:
    one, other = (make(tmp_path, name).read_bytes()[200:] for name in ("a", "b"))
    assert sum(a == b for a, b in zip(one[:4096], other[:4096], strict=True)) < 100


def test_every_byte_counts(tmp_path: Path) -> None:
    """One bit of the magic, the header, the salt, each chunk, each tag and the end."""
    out = make(tmp_path)
    content = out.read_bytes()
    for number, place in enumerate((0, 20, 40, 100, 200, 1 << 20, 2 << 20, len(content) - 1)):
        altered = bytearray(content)
        altered[place] ^= 1
        out.write_bytes(altered)
        with pytest.raises(ConfigError) as refused:
            unpack(out, WORDS, into(tmp_path, f"bit-{number}"), kind="hospital")
        assert "\n" not in str(refused.value)


def test_every_length_but_the_whole_is_refused(tmp_path: Path) -> None:
    out = make(tmp_path)
    content = out.read_bytes()
    header = 21 + int.from_bytes(content[19:21], "big")
    chunk = (1 << 20) + 16
    cuts = (0, 10, 20, 50, header, header + 5, header + chunk, header + 2 * chunk, len(content) - 1)
    for number, cut in enumerate(cuts):
        out.write_bytes(content[:cut])
        with pytest.raises(ConfigError):
            unpack(out, WORDS, into(tmp_path, f"cut-{number}"), kind="hospital")
    for number, more in enumerate((b"\0", content[-chunk:])):
        out.write_bytes(content + more)
        with pytest.raises(ConfigError):
            unpack(out, WORDS, into(tmp_path, f"more-{number}"), kind="hospital")
    swapped = content[:header] + content[header + chunk : header + 2 * chunk]
    swapped += content[header : header + chunk] + content[header + 2 * chunk :]
    out.write_bytes(swapped)
    with pytest.raises(ConfigError):
        unpack(out, WORDS, into(tmp_path, "swapped"), kind="hospital")


def test_another_kind_of_backup_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="backup of a hospital, not of a coordinator"):
        unpack(make(tmp_path), WORDS, into(tmp_path, "found"), kind="coordinator")


def test_no_file_appears_and_none_is_replaced_where_it_fails(tmp_path: Path) -> None:
    out = make(tmp_path)
    before = out.read_bytes()
    with (
        pytest.raises(ConfigError, match="is there already"),
        writing(out, WORDS, kind="hospital", name="north", about={}),
    ):
        pass
    assert out.read_bytes() == before
    with (
        pytest.raises(ConfigError, match="no backup was made"),
        writing(tmp_path / "b", WORDS, kind="hospital", name="north", about={}) as writer,
    ):
        writer.add("gone", tmp_path / "gone")
    with (
        pytest.raises(ConfigError, match="12 letters"),
        writing(tmp_path / "b", "too short", kind="hospital", name="north", about={}),
    ):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.backup", "source"]


@pytest.mark.parametrize("name", ["../up", "/etc/passwd", "a//b", "a/./b", "a b", "", "a\n"])
def test_no_name_leads_out_of_the_folder(name: str, tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="not a name"),
        writing(tmp_path / "b", WORDS, kind="hospital", name="north", about={}) as writer,
    ):
        writer.add(name, Path(__file__))


def test_the_key_is_as_dear_as_it_is_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    assert archive._SCRYPT == {"n": 1 << 17, "r": 8, "p": 1}
    out = make(tmp_path)
    unpack(out, WORDS, into(tmp_path, "found"), kind="hospital")
    monkeypatch.setattr(archive, "_SCRYPT", {"n": 4, "r": 8, "p": 1})
    with pytest.raises(ConfigError, match="header cannot be read"):
        unpack(out, WORDS, into(tmp_path, "other"), kind="hospital")
