"""The audit log: no deed is lost or altered unseen; no crash, full disk or second process breaks it."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from client_app.audit import Audit, AuditError
from client_app.audit.entry import Entry, bounded, canonical
from client_app.audit.log import EVENTS
from client_app.cli import app
from federation.schema import ConfigError

runner = CliRunner()


def deed(audit: Audit, number: int) -> str:
    kind = sorted(EVENTS)[number % len(EVENTS)]
    return audit.append(
        kind, run="monday", round=number, evaluate=True, loss=0.1 * number, epsilon=None
    )


@pytest.fixture
def audit(tmp_path: Path) -> Audit:
    audit = Audit(tmp_path / "state" / "audit.jsonl")
    for number in range(1, 8):
        deed(audit, number)
    return audit


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    """Seven entries, to be altered and put back."""
    audit = Audit(tmp_path_factory.mktemp("audit") / "audit.jsonl")
    for number in range(1, 8):
        deed(audit, number)
    return audit


def lines(audit: Audit) -> list[bytes]:
    return audit.path.read_bytes().splitlines(keepends=True)


def rehashed(line: bytes, **changes: Any) -> bytes:
    """A line made by hand with a right hash of its own, after the description and not after the code."""
    content = json.loads(line) | changes
    rest = {name: content[name] for name in ("event", "fields", "sequence", "time")}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()
    content["hash"] = hashlib.sha256(bytes.fromhex(content["previous"]) + text).hexdigest()
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def broken(audit: Audit, content: list[bytes]) -> AuditError:
    """What `verify` says of a log with these lines; `append` has to leave it alone or refuse too."""
    before = audit.path.read_bytes()
    audit.path.write_bytes(b"".join(content))
    try:
        with pytest.raises(AuditError) as fault:
            audit.verify()
        return fault.value
    finally:
        audit.path.write_bytes(before)


def test_what_was_appended_is_there(audit: Audit) -> None:
    head = audit.append("request", run="monday", numbers={"loss": 0.25, "counts": [1, 2]})
    entries = list(audit.entries())
    assert audit.verify() == (8, head) == (len(entries), entries[-1].hash)
    assert [entry.sequence for entry in entries] == list(range(1, 9))
    assert entries[-1].fields == {"run": "monday", "numbers": {"loss": 0.25, "counts": [1, 2]}}
    assert entries[0].previous == "0" * 64
    assert entries[0].time.endswith("+00:00") and len(entries[0].time) == len(
        "2026-11-24T03:18:06.574+00:00"
    )
    for line in lines(audit):
        assert rehashed(line) == line  # an independent reading of the format gives the same hash
    for path in audit.path.parent.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_nothing_yet(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "none" / "audit.jsonl")
    assert audit.verify() == (0, "0" * 64)
    assert list(audit.entries()) == []
    assert not audit.path.parent.exists()


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_one_altered_byte_is_found(written: Audit, data: st.DataObject) -> None:
    content = bytearray(written.path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] = data.draw(st.integers(0, 255).filter(lambda byte: byte != content[at]))
    fault = broken(written, [bytes(content)])
    assert fault.line == bytes(content[:at]).count(b"\n") + 1 or chr(content[at]) == "\n"


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_one_altered_field_is_found_even_with_its_hash_made_anew(
    written: Audit, data: st.DataObject
) -> None:
    content = lines(written)
    at = data.draw(st.integers(0, len(content) - 1))
    name = data.draw(st.sampled_from(["time", "event", "fields", "sequence", "previous"]))
    other = {
        "time": st.datetimes().map(lambda t: t.isoformat(timespec="milliseconds") + "+00:00"),
        "event": st.sampled_from(sorted(EVENTS)),
        "fields": st.dictionaries(st.text(max_size=5), st.integers(-9, 9), max_size=3),
        "sequence": st.integers(-1, 20),
        "previous": st.binary(min_size=32, max_size=32).map(bytes.hex),
    }[name]
    value = data.draw(other.filter(lambda v: v != json.loads(content[at])[name]))
    content[at] = rehashed(content[at], **{name: value})
    assert broken(written, content).line in (at + 1, at + 2)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"event":', b'"event": '),
        (b"monday", b"\\u006donday"),
        (b'"round":4', b'"round":4,"round":4'),
        (b'"evaluate":true', b'"evaluate":false,"evaluate":true'),
        (b"}\n", b"}\r\n"),
        (b"}\n", b"}\n\n"),
        (b'{"event"', b'\xef\xbb\xbf{"event"'),
    ],
)
def test_the_same_content_in_another_form_is_found(written: Audit, old: bytes, new: bytes) -> None:
    """A hash is of what is said; how it is said must leave no room for another reading either."""
    content = lines(written)
    assert old in content[3]
    content[3] = content[3].replace(old, new, 1)
    assert broken(written, content).line in (4, 5)


@pytest.mark.parametrize("at", range(7))
def test_a_dropped_line_is_found(written: Audit, at: int) -> None:
    content = lines(written)
    del content[at]
    assert broken(written, content).line == at + 1


def test_dropped_last_lines_are_found(written: Audit) -> None:
    for left in range(7):
        fault = broken(written, lines(written)[:left])
        assert fault.line == left + 1
        assert f"after {left} of 7 entries" in str(fault)


@settings(max_examples=60, deadline=None)
@given(order=st.permutations(range(7)).filter(lambda order: order != sorted(order)))
def test_reordered_lines_are_found(written: Audit, order: list[int]) -> None:
    content = lines(written)
    first_moved = next(n for n, old in enumerate(order) if n != old)
    assert broken(written, [content[n] for n in order]).line == first_moved + 1


@pytest.mark.parametrize("source", range(7))
@pytest.mark.parametrize("at", [0, 3, 7])
def test_a_repeated_line_is_found(written: Audit, source: int, at: int) -> None:
    content = lines(written)
    content.insert(at, content[source])
    assert broken(written, content).line in (at + 1, at + 2)


@pytest.mark.parametrize("at", range(7))
def test_a_line_put_in_with_a_right_hash_is_found(written: Audit, at: int) -> None:
    content = lines(written)
    previous = json.loads(content[at])["previous"]
    forged = rehashed(content[at], sequence=at + 1, previous=previous, fields={"run": "forged"})
    assert broken(written, [*content[:at], forged, *content[at:]]).line == at + 2
    # all lines after it renumbered and chained anew: only the head tells
    chained = [*content[:at], forged]
    for number, line in enumerate(content[at:], at + 2):
        chained.append(rehashed(line, sequence=number, previous=json.loads(chained[-1])["hash"]))
    assert "rewritten" in str(broken(written, chained)) or at == 7


def test_two_lines_more_than_the_head_knows_are_found(written: Audit) -> None:
    content = lines(written)
    for number in (8, 9):
        last = json.loads(content[-1])
        content.append(rehashed(content[-1], sequence=number, previous=last["hash"]))
    assert broken(written, content).line == 8


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_an_altered_head_is_found(written: Audit, data: st.DataObject) -> None:
    path = written.path.with_suffix(".head")
    before = path.read_bytes()
    content = bytearray(before)
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] = data.draw(st.integers(0, 255).filter(lambda byte: byte != content[at]))
    try:
        path.write_bytes(bytes(content))
        with pytest.raises(AuditError):
            written.verify()
        with pytest.raises(AuditError):
            deed(written, 8)
    finally:
        path.write_bytes(before)
    assert written.verify()[0] == 7


def refuse(audit: Audit) -> str:
    """Both refuse, and nothing of the log changes."""
    content = audit.path.read_bytes() if audit.path.exists() else None
    with pytest.raises(AuditError) as fault:
        deed(audit, 9)
    with pytest.raises(AuditError):
        audit.verify()
    assert (audit.path.read_bytes() if audit.path.exists() else None) == content
    return str(fault.value)


def test_a_missing_emptied_older_or_foreign_log_is_refused(audit: Audit, tmp_path: Path) -> None:
    content = lines(audit)
    audit.path.unlink()
    assert "missing" in refuse(audit)
    audit.path.write_bytes(b"")
    assert "line 1 is missing" in refuse(audit)
    audit.path.write_bytes(b"".join(content[:4]))
    assert "after 4 of 7" in refuse(audit)
    audit.path.write_bytes(b"".join(content)[:-30])  # the last line, cut: no crash does this
    assert "after 6 of 7" in refuse(audit)
    foreign = Audit(tmp_path / "foreign" / "audit.jsonl")
    for number in range(1, 8):
        deed(foreign, number)
    audit.path.write_bytes(foreign.path.read_bytes())
    assert "rewritten" in refuse(audit)
    audit.path.write_bytes(b"x" * 5_000_000)
    assert "overwritten" in refuse(audit)
    audit.path.write_bytes(b"".join(content))
    audit.path.with_suffix(".head").unlink()
    assert "audit.head" in refuse(audit)


def test_an_append_reads_no_more_of_a_longer_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit = Audit(tmp_path / "audit.jsonl")
    last: Entry | None = None
    with audit.path.open("wb") as file:
        for number in range(20_000):
            last = Entry.after(last, "request", {"run": "monday", "round": number})
            file.write(last.line())
    assert last is not None
    head = canonical({"sequence": last.sequence, "hash": last.hash})
    audit.path.with_suffix(".head").write_bytes(head)
    read, real = 0, os.pread

    def counting(handle: int, length: int, offset: int) -> bytes:
        nonlocal read
        read += length
        return real(handle, length, offset)

    monkeypatch.setattr(os, "pread", counting)
    deed(audit, 1)
    assert 0 < read < 100_000 < audit.path.stat().st_size
    monkeypatch.undo()
    assert audit.verify()[0] == 20_001


def test_values_are_bounded(audit: Audit) -> None:
    long, wild = "x" * 5000, "a\x1b[2Jb\u202ec\nd\udc80" + "é"
    audit.append("refusal", long=long, wild=wild, key={long: 1, "\x00": [True, None, 1.5]})
    fields = list(audit.entries())[-1].fields
    assert fields["long"] == "x" * 199 + "…"
    assert fields["wild"] == "a\\x1b[2Jb\\u202ec\\nd\\udc80é"
    assert isinstance(fields["key"], dict)
    assert list(fields["key"]) == ["\\x00", "x" * 199 + "…"]
    assert all(32 <= byte < 127 or byte == 10 for byte in audit.path.read_bytes())
    nested: Any = 1
    for _ in range(6):
        nested = [nested]
    for value in (float("nan"), float("inf"), -float("inf"), 2**64, nested):
        with pytest.raises(ValueError):
            audit.append("refusal", value=value)
    for value in (b"bytes", Path("/images/smith"), {1: 2}, {"x"}, ValueError("smith")):
        with pytest.raises(TypeError):
            audit.append("refusal", value=value)
    with pytest.raises(ValueError, match="half a MiB"):
        audit.append("answer", numbers=[0.123456789] * 100_000)
    for event in ("gossip", "torn", ""):
        with pytest.raises(ValueError, match="unknown event"):
            audit.append(event)
    assert audit.verify()[0] == 8


@settings(max_examples=100, deadline=None)
@given(
    value=st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**63 - 1)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=300),
        lambda inner: st.lists(inner, max_size=3),
        max_leaves=8,
    ).filter(lambda value: str(value).count("[") < 5)
)
def test_whatever_is_appended_is_read_back(written: Audit, value: Any) -> None:
    """As JSON has it, for every value that may be there."""
    entry = Entry.after(None, "answer", {"value": bounded(value)})
    assert Entry.parse(entry.line()) == entry


# the commands


@pytest.fixture
def site_file(audit: Audit, tmp_path: Path) -> Path:
    path = tmp_path / "site.yaml"
    content = {"hospital": "north", "kit": "kit", "state": "state", "data": {"root": "images"}}
    path.write_text(yaml.safe_dump(content))
    return path


def invoke(*arguments: object) -> str:
    result = runner.invoke(app, ["audit", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def fails(*arguments: object) -> str:
    with pytest.raises(ConfigError) as error:
        runner.invoke(app, ["audit", *map(str, arguments)], catch_exceptions=False)
    return str(error.value)


def test_show(audit: Audit, site_file: Path) -> None:
    audit.append("refusal", run="[red]x[/]\x1b[2J", round=3, reason="budget_spent")
    shown = "".join(invoke("show", "--site", site_file).split())
    assert "reasonbudget_spent" in shown and "[red]x[/]" in shown and "\x1b" not in shown
    entries = json.loads(invoke("show", "--site", site_file, "--json", "--last", 2))
    assert [entry["sequence"] for entry in entries] == [7, 8]
    assert len(json.loads(invoke("show", "--site", site_file, "--json", "--last", 0))) == 8


def test_verify(audit: Audit, site_file: Path) -> None:
    noted = list(audit.entries())[3].hash
    said = invoke("verify", "--site", site_file)
    assert said.startswith("7 entries, from 20") and audit.verify()[1] in said
    assert "entry 4" in invoke("verify", "--site", site_file, "--head", noted)
    assert "no entry has the head" in fails("verify", "--site", site_file, "--head", "0" * 64)
    content = lines(audit)
    content[2] = content[2].replace(b"monday", b"sunday")
    audit.path.write_bytes(b"".join(content))
    assert fails("verify", "--site", site_file).startswith("line 3 was altered")
    assert fails("show", "--site", site_file).startswith("line 3 was altered")


def test_export(audit: Audit, site_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "audit.json"
    invoke("export", out, "--site", site_file)
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    exported = json.loads(out.read_text())
    assert exported["verified"] is True and exported["head"] == audit.verify()[1]
    # who has only the file can check the chain by what it says of itself
    previous = "0" * 64
    for number, entry in enumerate(exported["entries"], 1):
        rest = {name: entry[name] for name in ("event", "fields", "sequence", "time")}
        text = json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()
        previous = hashlib.sha256(bytes.fromhex(previous) + text).hexdigest()
        assert (entry["sequence"], entry["hash"]) == (number, previous)
    assert previous == exported["head"]
    assert "is there already" in fails("export", out, "--site", site_file)
    audit.path.write_bytes(b"".join(lines(audit)[:5]))
    assert "line 6 is missing" in fails("export", tmp_path / "bad.json", "--site", site_file)
    bad = json.loads((tmp_path / "bad.json").read_text())
    assert bad["verified"] is False and len(bad["entries"]) == 5 and "line 6" in bad["fault"]


def test_before_the_first_request(tmp_path: Path, site_file: Path) -> None:
    for path in (tmp_path / "state").iterdir():
        path.unlink()
    assert "nothing has been asked" in invoke("show", "--site", site_file)
    assert "0 entries" in invoke("verify", "--site", site_file)
