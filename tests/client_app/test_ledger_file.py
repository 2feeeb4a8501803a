"""The ledger's file: what was charged stays charged, whatever happens to the disk."""

from __future__ import annotations

import json
import os
import resource
import shutil
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client_app import ledger_file
from client_app.ledger import Ledger, LedgerError, cohort_id
from client_app.ledger_file import LedgerFile
from federation.messages import Lodged, Reason
from federation.privacy.accounting import Mechanism
from federation.schema import ConfigError
from tests.client_app.charging import COHORT, KEY, RDP, charge, charged, opened, refused, unusable


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "state" / "ledger.sqlite"
    Ledger.create(path, COHORT)
    return path


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with Ledger.open(path, COHORT) as ledger:
        yield ledger


# --- nothing is taken back -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE charges SET content = '{}' WHERE position = 2",
        "UPDATE OR REPLACE charges SET position = 1 WHERE position = 3",
        "DELETE FROM charges WHERE position = 3",
        "DELETE FROM charges",
        "INSERT OR REPLACE INTO charges VALUES (2, '{}', 'x')",
        "REPLACE INTO charges VALUES (3, '{}', 'x')",
        "INSERT INTO charges VALUES (-1, '{}', 'x')",
        "INSERT INTO charges VALUES (5, '{}', 'x')",
        "INSERT INTO charges (content, hash) VALUES ('{}', 'x')",
    ],
)
def test_sql_cannot_change_what_was_charged(path: Path, statement: str) -> None:
    before = charged(path, 3)
    database = sqlite3.connect(path)
    with pytest.raises(sqlite3.IntegrityError, match="a charge is"):
        database.execute(statement)
    database.close()
    assert opened(path) == (before.charges, before.head)


def edit(path: Path, *statements: str, guards_too: bool = False) -> None:
    """Change a ledger as its owner could: the triggers are taken off and, unless told, put back."""
    database = sqlite3.connect(path)
    triggers = database.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'")
    guards = triggers.fetchall()
    for name, _ in guards:
        database.execute(f"DROP TRIGGER {name}")
    for statement in statements:
        database.execute(statement)
    for _, sql in guards if not guards_too else []:
        database.execute(sql)
    database.commit()
    database.close()


TAMPERED = {
    "altered": ["UPDATE charges SET content = replace(content, '\"round\": 2', '\"round\": 9')"],
    "cheaper": ["UPDATE charges SET content = replace(content, '[2.0, ', '[4.0, ')"],
    "one hash": ["UPDATE charges SET hash = substr(hash, 2) || '0' WHERE position = 2"],
    "dropped": ["DELETE FROM charges WHERE position = 2"],
    "dropped, closed up": [
        "DELETE FROM charges WHERE position = 2",
        "UPDATE charges SET position = 2 WHERE position = 3",
        "UPDATE charges SET position = 3 WHERE position = 4",
    ],
    "last dropped": ["DELETE FROM charges WHERE position = 4"],
    "all dropped": ["DELETE FROM charges WHERE position > 0"],
    "first dropped": ["DELETE FROM charges WHERE position = 0"],
    "nothing left": ["DELETE FROM charges"],
    "reordered": [
        "UPDATE charges SET position = 99 WHERE position = 2",
        "UPDATE charges SET position = 2 WHERE position = 3",
        "UPDATE charges SET position = 3 WHERE position = 99",
    ],
    "moved": ["UPDATE charges SET position = 7 WHERE position = 4"],
    "inserted": [
        "UPDATE charges SET position = 5 WHERE position = 4",
        "UPDATE charges SET position = 4 WHERE position = 3",
        "INSERT INTO charges SELECT 3, content, hash FROM charges WHERE position = 2",
    ],
    "added": ["INSERT INTO charges SELECT 5, content, hash FROM charges WHERE position = 4"],
    "other cohort": ["UPDATE charges SET content = replace(content, 'cohort', 'x')"],
}


@pytest.mark.parametrize("statements", TAMPERED.values(), ids=TAMPERED)
def test_one_row_that_is_not_as_it_was_is_found(path: Path, statements: list[str]) -> None:
    charged(path, 4)
    edit(path)
    assert opened(path)[0] == 4  # as it was
    with Ledger.open(path, COHORT) as open_before:
        edit(path, *statements)
        for action in (open_before.verify, open_before.charges, lambda: charge(open_before, 5)):
            refused(Reason.LEDGER_UNUSABLE, action)  # type: ignore[arg-type]
    unusable(path)


def test_a_chain_that_was_made_anew_is_found_by_its_head(path: Path) -> None:
    lodged = charged(path, 3)
    database = sqlite3.connect(path)
    rows = database.execute("SELECT content FROM charges ORDER BY position").fetchall()
    database.close()
    contents = [content.replace("[2.0, ", "[9.0, ") for (content,) in rows]
    previous, statements = "", []
    for position, content in enumerate(contents):
        previous = ledger_file._hash(previous, content)
        statements.append(
            f"UPDATE charges SET content = '{content}', hash = '{previous}' "
            f"WHERE position = {position}"
        )
    edit(path, *statements)
    unusable(path, "older copy")
    # whoever forges that file too still meets what the coordinator was told
    ledger_file._write_head(path.with_suffix(".head"), Lodged(3, previous), COHORT)
    with Ledger.open(path, COHORT) as ledger:
        refused(Reason.LEDGER_UNUSABLE, lambda: charge(ledger, 4, lodged=lodged), "coordinator")


def test_a_ledger_without_its_triggers_is_refused(path: Path) -> None:
    charged(path, 1)
    edit(path, guards_too=True)
    unusable(path, "triggers")


# --- older, damaged, somebody else's --------------------------------------------------------------


def test_a_restored_older_copy_is_refused(path: Path, tmp_path: Path) -> None:
    head = path.with_suffix(".head")
    charged(path, 2)
    for file in (path, head):
        shutil.copy2(file, tmp_path)
    lodged = charged(path, 1)
    newer = head.read_bytes()
    shutil.copy2(tmp_path / path.name, path)
    unusable(path, "older copy")
    # with its own head it looks sound from here: what the coordinator heard tells
    shutil.copy2(tmp_path / head.name, head)
    with Ledger.open(path, COHORT) as ledger:
        for action in (
            lambda: charge(ledger, 3, lodged=lodged),
            lambda: ledger.spent("monday", RDP, lodged),
        ):
            refused(Reason.LEDGER_UNUSABLE, action, "older copy")
        assert ledger.verify()[0] == 2
        other = charge(ledger, 3, Mechanism(9.0, 0.1, 1)).lodged
        assert other.charges == lodged.charges
        refused(Reason.LEDGER_UNUSABLE, lambda: charge(ledger, 4, lodged=lodged), "older copy")
    head.write_bytes(newer)
    unusable(path, "older copy")


def test_what_the_coordinator_heard_may_be_long_ago(path: Path) -> None:
    with Ledger.open(path, COHORT) as ledger:
        heard = [ledger.spent("monday", RDP).lodged]
        for round_ in range(1, 4):
            heard.append(charge(ledger, round_, lodged=heard[0]).lodged)
        for round_, lodged in enumerate(heard, start=4):
            charge(ledger, round_, lodged=lodged)
        for wrong in (Lodged(0, "0" * 64), Lodged(2, heard[1].head), Lodged(99, heard[3].head)):
            refused(Reason.LEDGER_UNUSABLE, lambda w=wrong: charge(ledger, 9, lodged=w))  # type: ignore[misc]


def test_a_new_ledger_in_an_old_ones_place_is_noticed(path: Path) -> None:
    lodged = charged(path, 0)
    for file in path.parent.iterdir():
        file.unlink()
    Ledger.create(path, COHORT)
    with Ledger.open(path, COHORT) as ledger:
        refused(Reason.LEDGER_UNUSABLE, lambda: charge(ledger, 1, lodged=lodged))


def test_a_charge_still_in_the_log_is_not_lost_unnoticed(path: Path, tmp_path: Path) -> None:
    """A backup while the service runs, without the write-ahead log."""
    with Ledger.open(path, COHORT) as ledger:
        charge(ledger, 1)
        shutil.copytree(path.parent, tmp_path / "whole")
        shutil.copytree(path.parent, tmp_path / "part")
    assert opened(tmp_path / "whole" / path.name)[0] == 1
    (tmp_path / "part" / f"{path.name}-wal").unlink()
    unusable(tmp_path / "part" / path.name, "older copy")


def test_a_file_cut_anywhere_is_refused(path: Path, tmp_path: Path) -> None:
    charged(path, 12)
    content = path.read_bytes()
    shutil.copy2(path.with_suffix(".head"), tmp_path / "cut.head")
    cut = tmp_path / "cut.sqlite"
    pages = range(0, len(content), 4096)
    ends = {0, 1, 15, 16, 99, 100, 101, 4095, len(content) - 1, len(content) - 100}
    for end in sorted(ends | set(pages) | {page + 2000 for page in pages[:-1]}):
        cut.write_bytes(content[:end])
        cut.chmod(0o600)
        unusable(cut)
        assert cut.stat().st_size == end, "written to"
    cut.write_bytes(content)
    assert opened(cut)[0] == 12


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_byte_that_flipped_never_makes_charges_fewer(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Most are found; the others lie where SQLite keeps nothing, and change no charge."""
    base = tmp_path_factory.getbasetemp() / "flipped"
    if not base.exists():
        Ledger.create(base / "good.sqlite", COHORT)
        charged(base / "good.sqlite", 5)
    good = (base / "good.sqlite").read_bytes()
    shutil.copy2(base / "good.head", base / "bad.head")
    flipped = bytearray(good)
    flipped[data.draw(st.integers(0, len(good) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    bad = base / "bad.sqlite"
    bad.touch(mode=0o600)
    bad.write_bytes(flipped)
    try:
        found = opened(bad)
    except LedgerError as error:
        assert error.reason is Reason.LEDGER_UNUSABLE
    else:
        assert found == opened(base / "good.sqlite")


def test_what_is_no_ledger_is_refused_and_left_alone(tmp_path: Path) -> None:
    text = tmp_path / "text.sqlite"
    text.write_text("no database at all, but long enough to look at" * 10)
    empty = tmp_path / "empty.sqlite"
    empty.touch()
    other = tmp_path / "other.sqlite"
    database = sqlite3.connect(other)
    database.execute("CREATE TABLE charges (position INTEGER PRIMARY KEY, content, hash)")
    database.commit()
    database.close()
    (tmp_path / "folder.sqlite").mkdir()
    (tmp_path / "loop.sqlite").symlink_to("loop.sqlite")
    for file in (text, empty, other):
        file.chmod(0o600)
        content = file.read_bytes()
        unusable(file)
        assert file.read_bytes() == content
    unusable(tmp_path / "folder.sqlite", "not a file")
    unusable(tmp_path / "loop.sqlite", "cannot be looked at")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_refused(path: Path) -> None:
    path.chmod(0)
    unusable(path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_a_ledger_open_to_others_is_refused(path: Path, mode: int) -> None:
    path.chmod(mode)
    unusable(path, f"mode {mode:04o}.*0600")
    path.chmod(0o600)
    assert opened(path)[0] == 0


def test_nobody_else_can_read_any_of_its_files(path: Path) -> None:
    with Ledger.open(path, COHORT) as ledger:
        charge(ledger, 1)
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    names = {"ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm", "ledger.head"}
    assert modes == dict.fromkeys(names, 0o600)


def test_other_patients_do_not_pay(path: Path) -> None:
    charged(path, 1)
    assert cohort_id(KEY, "north") == COHORT
    for other in (cohort_id(KEY, "south"), cohort_id(bytes(32), "north")):
        refused(Reason.LEDGER_UNUSABLE, lambda c=other: opened(path, c), "other patients")  # type: ignore[misc]


# --- missing, made, half made ---------------------------------------------------------------------


def test_a_missing_ledger_is_told_from_a_lost_one(path: Path) -> None:
    nowhere = path.with_name("none.sqlite")
    refused(Reason.NO_LEDGER, lambda: opened(nowhere), "hospital ledger create")
    assert not nowhere.exists()
    charged(path, 1)
    path.unlink()
    refused(Reason.NO_LEDGER, lambda: opened(path), "shows that there was one.*backup")


def test_a_ledger_is_made_once(path: Path) -> None:
    with pytest.raises(ConfigError, match="once"):
        Ledger.create(path, COHORT)
    charged(path, 1)
    path.unlink()
    with pytest.raises(ConfigError, match=r"ledger\.head shows that there was one"):
        Ledger.create(path, COHORT)
    path.with_suffix(".head").rename(path.with_name("ledger.sqlite-wal"))
    with pytest.raises(ConfigError, match="-wal shows that there was one"):
        Ledger.create(path, COHORT)
    with pytest.raises(ConfigError, match="cannot end in"):
        Ledger.create(path.with_name("a.head"), COHORT)
    with pytest.raises(ConfigError, match="cannot be made"):
        Ledger.create(path.with_name("ledger.sqlite-wal") / "below.sqlite", COHORT)
    assert [file.name for file in path.parent.iterdir()] == ["ledger.sqlite-wal"]


def test_a_crash_while_it_is_made_locks_nobody_out(path: Path) -> None:
    head = path.with_suffix(".head")
    head.unlink()
    assert opened(path)[0] == 0
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(LedgerFile, "note_head", crash)
        with pytest.raises(KeyboardInterrupt), Ledger.open(path, COHORT) as ledger:
            charge(ledger, 1)
    assert json.loads(head.read_text())["charges"] == 0
    assert charged(path, 1).charges == 2


def crash(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_crash_before_the_head_is_noted_counts_the_charge(path: Path) -> None:
    charged(path, 1)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(ledger_file, "_write_head", crash)
        with pytest.raises(KeyboardInterrupt), Ledger.open(path, COHORT) as ledger:
            charge(ledger, 2)
    with Ledger.open(path, COHORT) as ledger:
        assert ledger.verify()[0] == 2
        refused(Reason.REPLAYED, lambda: charge(ledger, 2, attempts=1))


def test_without_its_head_a_charged_ledger_is_refused_until_a_person_says_so(path: Path) -> None:
    charged(path, 2)
    head = path.with_suffix(".head")
    head.unlink()
    with pytest.raises(LedgerError, match=r"ledger\.head is gone") as caught:
        opened(path)
    head.write_text(str(caught.value)[str(caught.value).index("{") :])
    assert opened(path)[0] == 2


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"charges": 1}', '{"charges": -1, "head": "x"}', "\x00" * 9999]
)
def test_a_head_that_says_nothing_is_refused(path: Path, content: str) -> None:
    charged(path, 1)
    path.with_suffix(".head").write_text(content)
    unusable(path, r"ledger\.head (cannot be read|knows of -1)")


def test_a_charge_is_synced_when_it_is_told(ledger: Ledger) -> None:
    """kill -9 cannot show it: what was written survives a process, and only a sync a power cut."""
    charge(ledger, 1)
    database = ledger._file._database
    assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert database.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


# --- a disk that does not take it -----------------------------------------------------------------


def test_a_full_database_pays_for_nothing(ledger: Ledger, path: Path) -> None:
    charge(ledger, 1)
    database = ledger._file._database
    (pages,) = database.execute("PRAGMA page_count").fetchone()
    database.execute(f"PRAGMA max_page_count = {pages}")
    done = 1
    with pytest.raises(LedgerError, match="disk is full") as caught:
        for round_ in range(2, 50):
            charge(ledger, round_)
            done += 1
    assert caught.value.reason is Reason.LEDGER_UNUSABLE
    assert opened(path)[0] == done < 49


def test_a_disk_that_takes_no_more_pays_for_nothing(ledger: Ledger, path: Path) -> None:
    charge(ledger, 1)
    log = path.with_name("ledger.sqlite-wal").stat().st_size
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (log + 1000, 10):  # the row does not fit; neither does anything
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
        try:
            with pytest.raises(LedgerError) as caught:
                charge(ledger, 2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        assert caught.value.reason is Reason.LEDGER_UNUSABLE
        assert opened(path)[0] == 1
    assert charge(ledger, 2).lodged.charges == 2


def test_a_head_that_cannot_be_written_pays_for_nothing(
    ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(ledger_file, "write_private", full)
        refused(Reason.LEDGER_UNUSABLE, lambda: charge(ledger, 1), "cannot be written")
    assert opened(path)[0] == 1  # it counts all the same
    assert charge(ledger, 1).lodged.charges == 2
