"""No name, path or text of an exception gets into a record; what may be told is told as JSON."""

from __future__ import annotations

import ast
import json
import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from federation import child_output, journal
from federation.child_output import Reader
from federation.journal import FIELDS, Records, accepted, line, told, vocabulary
from federation.processes import Child, Supervisor, wait_until

ROOT = Path(__file__).parents[2]
CANARY = "CANARY^MARIA"


def read(*lines: str) -> list[dict[str, Any]]:
    reader = Reader("superexec")
    found = [json.loads(record) for text in lines for record in reader.feed(text)]
    return found + [json.loads(record) for record in reader.end()]


def test_a_record_has_closed_fields_alone() -> None:
    fields = {
        "run": "monday", "round": 3, "reason": "late", "bytes": 7, "path": f"/x/{CANARY}",
        "charges": CANARY, "process": CANARY, "lines": True, "error": [CANARY + " x"],
    }  # fmt: skip
    found = json.loads(line("INFO", "consilium", "answer", fields))
    assert found.pop("time").endswith("Z")
    assert found == {
        "level": "info", "logger": "consilium", "event": "answer",
        "run": "monday", "round": 3, "reason": "late", "bytes": 7,
    }  # fmt: skip
    for name in ("run", "reason"):
        assert name not in json.loads(line("INFO", "consilium", "answer", {name: CANARY}))


def formatted(name: str, message: str, *values: object, **more: Any) -> dict[str, Any]:
    record = logging.makeLogRecord(
        {"name": name, "levelname": "WARNING", "msg": message, "args": values, **more}
    )
    content: dict[str, Any] = json.loads(Records().format(record))
    return content


def test_values_of_a_message_and_the_text_of_an_error_stay_here() -> None:
    found = formatted("consilium", "%s ended (%d)", CANARY, 3)
    assert (found["event"], found["logger"]) == ("… ended (…)", "consilium")
    found = formatted("consilium", "x", **told("answer", run="monday", name=CANARY))
    assert (found["event"], found["run"]) == ("answer", "monday") and "name" not in found
    assert formatted("pydicom", f"odd value {CANARY}")["event"] == journal.WITHHELD
    try:
        raise ValueError(CANARY) from OSError(CANARY)
    except ValueError:
        found = formatted("consilium.x", "it failed", exc_info=sys.exc_info())
    assert found["error"][0] == "ValueError" and "OSError" in found["error"]
    assert CANARY not in json.dumps(found)


def test_flowers_lines_are_kept_without_their_values() -> None:
    """As Flower 1.41 writes them, with colours and without."""
    found = read(
        "\x1b[92mINFO \x1b[0m:      Starting Flower SuperNode\n",
        f"ERROR :     Failed to push task output: {CANARY}",
        f"WARNING :   Failed to receive message 77: {CANARY}",
        f"INFO :      {CANARY}",
    )
    assert [record["event"] for record in found] == [
        "Starting Flower SuperNode",
        "Failed to push task output: …",
        "Failed to receive message …: …",
        journal.WITHHELD,
    ]
    assert [record["level"] for record in found] == ["info", "error", "warning", "warning"]
    assert CANARY not in json.dumps(found)


def test_tracebacks_are_types_and_places() -> None:
    """Of a real interpreter that dies of an error with a name in it, over several lines."""
    code = (
        f"def read():\n    raise ValueError('cannot read {CANARY}\\n{CANARY}: on a line of its own')\n"
        "try:\n    read()\nexcept ValueError as error:\n"
        f"    raise RuntimeError('{CANARY}') from error\n"
    )
    died = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert died.stderr.count(CANARY) >= 3
    found = read(*died.stderr.splitlines(keepends=True))
    errors = [record["error"][0] for record in found if record["event"] == "error"]
    assert errors == ["ValueError", "RuntimeError"]
    assert CANARY not in json.dumps(found) and journal.WITHHELD in {r["event"] for r in found}
    with_file = read(
        "Traceback (most recent call last):",
        f'  File "/data/{CANARY}/site-packages/pydicom/filereader.py", line 12, in dcmread',
        f'    open("/data/{CANARY}.dcm")',
        f"pydicom.errors.InvalidDicomError: /data/{CANARY}.dcm is not DICOM",
    )
    assert [r["error"] for r in with_file] == [["InvalidDicomError", "filereader:dcmread:12"]]
    odd = read("Traceback (most recent call last):", f"{CANARY.replace('^', '')}: text")
    assert [record["error"] for record in odd] == [[]]


def test_what_nobody_knows_is_counted_and_not_shown() -> None:
    found = read(*[f"{CANARY} {number}" for number in range(5)], "INFO : Starting Flower SuperNode")
    assert [(r["event"], r.get("lines")) for r in found] == [
        (journal.WITHHELD, 1), (journal.WITHHELD, 4), ("Starting Flower SuperNode", None),
    ]  # fmt: skip


def test_records_of_a_child_are_taken_only_if_nothing_is_hidden_in_them() -> None:
    good = line("INFO", "consilium", "answer", {"run": "monday", "round": 2})
    assert json.loads(accepted(good, "superexec") or "")["process"] == "superexec"
    base = json.loads(good)
    for change in (
        {"event": CANARY}, {"time": CANARY}, {"level": CANARY}, {"logger": CANARY},
        {"event": ["answer"]}, {"level": ["info"]},
    ):  # fmt: skip
        text = json.dumps(base | change)
        try:
            assert accepted(text, "superexec") is None
        except TypeError:
            pytest.fail(f"{change} was not refused but fell over")
    smuggled = json.dumps(base | {"name": CANARY, "run": CANARY, "process": "other"})
    assert CANARY not in (accepted(smuggled, "superexec") or "") != ""
    for text in ("[]", "7", "{", '{"time": 1}', "[" * 100_000):
        assert accepted(text, "superexec") is None


def supervised(folder: Path, code: str) -> list[str]:
    """What is in a child's log after it wrote what this code writes."""
    child = Child("superexec", [sys.executable, "-c", code], {}, folder / "logs" / "superexec.log")
    child.start()
    assert child.process is not None and child.process.wait(60) == 0
    wait_until(lambda: "the_end" not in code or "other" in _text(child.log), seconds=0.2)
    deadline = time.monotonic() + 20
    while '"lines": 2' not in _text(child.log) and time.monotonic() < deadline:
        time.sleep(0.05)
    Supervisor([child]).stop()
    return _text(child.log).splitlines()


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_a_child_that_prints_names_tells_none_and_is_never_held_up(tmp_path: Path) -> None:
    """More than a pipe holds, a line without end, bytes that are no text."""
    code = (
        "import sys, os\n"
        f"for number in range(20000): print('{CANARY}', number)\n"
        f"sys.stdout.flush(); os.write(2, b'\\xff\\x00' + b'{CANARY}' * 50000 + b'\\n')\n"
        "print('INFO :      Starting Flower SuperNode', flush=True)\n"
        f"for number in range(3): print('{CANARY}', flush=True)\n"
    )
    lines = supervised(tmp_path, code)
    assert CANARY not in "".join(lines)
    records = [json.loads(text) for text in lines]
    assert {"time", "level", "logger", "event", "process"} <= records[0].keys()
    assert all(record.keys() <= {"time", "level", "logger", "event", *FIELDS} for record in records)
    assert "Starting Flower SuperNode" in {record["event"] for record in records}
    assert sum(record.get("lines", 0) for record in records) > 20_000


def test_files_rotate_and_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "_LARGEST", 2000)
    sink = journal.sink(tmp_path / "logs" / "a.log")
    for number in range(500):
        child_output._write(sink, iter([line("INFO", "flwr", "x", {"round": number})]))
    sink.close()
    files = list((tmp_path / "logs").iterdir())
    assert len(files) == 6 and sum(path.stat().st_size for path in files) <= 6 * 2000
    assert '"round": 499' in (tmp_path / "logs" / "a.log").read_text()


def test_in_a_container_records_go_to_standard_output(tmp_path: Path) -> None:
    code = (
        "import sys, threading; from pathlib import Path; from logging import getLogger\n"
        "from federation import journal; from federation.processes import Child, wait_until\n"
        f"journal.keep(Path(r'{tmp_path}') / 'own.log')\n"
        f"says = [sys.executable, '-c', 'print(\"{CANARY}\")']\n"
        "child = Child('supernode', says, {}, Path('no.log'))\n"
        "child.start(); child.process.wait()\n"
        "assert wait_until(lambda: threading.active_count() == 1, seconds=60)\n"  # all was read
        f"getLogger('consilium').warning('%s ended', '{CANARY}')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={journal.VARIABLE: "stdout", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    events = [json.loads(text)["event"] for text in done.stdout.splitlines()]
    assert events == [journal.WITHHELD, "… ended"]
    assert CANARY not in done.stdout + done.stderr and list(tmp_path.iterdir()) == []


def test_the_vocabulary_is_that_of_the_installed_code() -> None:
    words = vocabulary()
    assert {"Starting Flower SuperNode", "… ended (…); starting it again in … s"} <= words.keys()
    assert not any(len(text.replace("…", "").strip()) < 8 for text in words)


def test_our_own_messages_are_literals() -> None:
    """Else a value would stand in the template itself."""
    calls = 0
    for package in ("federation", "server_app", "client_app"):
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                match node:
                    case ast.Call(
                        func=ast.Attribute(
                            value=ast.Name(id="log" | "record" | "logger"),
                            attr="debug" | "info" | "warning" | "error" | "critical" | "exception",
                        ),
                        args=[first, *_],
                    ):
                        calls += 1
                        assert isinstance(first, ast.Constant), (file.name, node.lineno)
    assert calls >= 3
