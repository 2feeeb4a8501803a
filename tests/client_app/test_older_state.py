"""A state folder of version 1, written byte by byte as code before `STATE_VERSION` did, is opened."""

from __future__ import annotations

import hashlib
import hmac
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from client_app.audit import Audit
from client_app.imaging.pseudonym import load_key
from client_app.ledger import Budget, Ledger, cohort_id
from federation import state_version
from federation.privacy.accounting import Mechanism

LEDGER = (
    """CREATE TABLE charges (
    position INTEGER PRIMARY KEY,  -- from 0, without gaps
    content TEXT NOT NULL,         -- canonical JSON
    hash TEXT NOT NULL             -- SHA-256 of the previous row's hash and this row's content
) STRICT""",
    """CREATE TRIGGER only_the_next BEFORE INSERT ON charges
WHEN NEW.position IS NOT (SELECT coalesce(max(position) + 1, 0) FROM charges)
BEGIN SELECT RAISE(ABORT, 'a charge is only added at the end'); END""",
    """CREATE TRIGGER no_update BEFORE UPDATE ON charges
BEGIN SELECT RAISE(ABORT, 'a charge is never changed'); END""",
    """CREATE TRIGGER no_delete BEFORE DELETE ON charges
BEGIN SELECT RAISE(ABORT, 'a charge is never removed'); END""",
)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Plain writing: none of the project's code is asked."""
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    key = bytes(range(32))
    (folder / "pseudonym.key").write_bytes(key)
    (folder / "pseudonym.key").chmod(0o600)
    cohort = hmac.new(key, b"cohort\0north", hashlib.sha256).hexdigest()
    first = {"cohort": cohort, "created": "2026-11-01T00:00:00.000000+00:00", "format": 1}
    charge = {
        "accountant": "rdp", "audit_head": "", "delta": 1e-5, "epsilon": 0.5,
        "experiment": "0" * 64, "mechanisms": [[1.0, 0.1, 5]], "request": "1" * 64, "round": 1,
        "run": "monday", "time": "2026-11-02T00:00:00.000000+00:00",
    }  # fmt: skip
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as database:
        for statement in LEDGER:
            database.execute(statement)
        previous = ""
        for position, row in enumerate((first, charge)):
            content = json.dumps(row, sort_keys=True)
            previous = hashlib.sha256(f"{previous}\n{content}".encode()).hexdigest()
            database.execute("INSERT INTO charges VALUES (?, ?, ?)", (position, content, previous))
        database.commit()
    (folder / "ledger.sqlite").chmod(0o600)
    head = json.dumps({"charges": 1, "cohort": cohort, "head": previous})
    (folder / "ledger.head").write_text(head)
    entry = {
        "sequence": 1, "time": "2026-11-02T00:00:00.000+00:00", "event": "started",
        "fields": {"hospital": "north"},
    }  # fmt: skip
    text = json.dumps(entry, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(bytes(32) + text.encode()).hexdigest()
    line = json.dumps(
        entry | {"previous": "0" * 64, "hash": digest}, sort_keys=True, separators=(",", ":")
    )
    (folder / "audit.jsonl").write_text(line + "\n")
    (folder / "audit.head").write_text(f'{{"hash":"{digest}","sequence":1}}')
    return folder


def test_it_is_opened_gone_on_with_and_marked(state: Path) -> None:
    assert state_version.require(state, "hospital") == 1
    state_version.settle(state, "hospital")
    assert state_version.require(state, "hospital") == state_version.VERSION
    audit = Audit(state / "audit.jsonl")
    audit.append("started", hospital="north", state_version=state_version.VERSION)
    assert audit.verify()[0] == 2
    cohort = cohort_id(load_key(state / "pseudonym.key"), "north")
    with Ledger.open(state / "ledger.sqlite", cohort) as ledger:
        ledger.charge(
            run="monday", round=2, request="2" * 64, experiment="0" * 64,
            mechanisms=[Mechanism(1.0, 0.1, 5)], budget=Budget(8.0, 1e-5, "rdp"), lodged=None,
            attempts=1,
        )  # fmt: skip
        assert [one.round for one in ledger.charges()] == [1, 2]
