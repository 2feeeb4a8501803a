"""A hospital's backup: whole while it is at work, no step back in its ledger, whole after any kill."""

from __future__ import annotations

import fcntl
import hashlib
import json
import multiprocessing
import os
import signal
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from client_app import identity
from client_app.audit import Audit
from client_app.backup import back_up, restore
from client_app.cli import app
from client_app.imaging.pseudonym import load_key
from client_app.ledger import Budget, Ledger, cohort_id
from client_app.site import Privacy, Site, read_site
from federation import archive, state_version
from federation.privacy.accounting import Mechanism
from federation.schema import ConfigError, parse
from federation.state_version import RESTORING
from server_app.home import Federation, Home
from tests.provisioned import provisioned

WORDS = "correct horse battery"
FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "_SCRYPT", {"n": 2, "r": 8, "p": 1})


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A hospital with keys, a roster, a ledger of three charges, and what no backup may hold."""
    state = tmp_path / "north" / "state"
    home = provisioned(
        Federation(name="a", host="127.0.0.1", port=1, hospitals=["north"]),
        Home(tmp_path / "coordinator"),
        {"north": state},
    )
    content = {
        "hospital": "north",
        "kit": str(home.kit("north")),
        "state": str(state),
        "data": {"root": str(tmp_path)},
        "privacy": {"patients": 100, "epsilon": 8.0},
    }
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(content))
    made = parse(Site, content)
    state_version.settle(state, "hospital")
    (state / "roster.json").write_bytes((home.kit("north") / "roster.json").read_bytes())
    Ledger.create(state / "ledger.sqlite", cohort_id(load_key(state / "pseudonym.key"), "north"))
    for number in range(1, 4):
        charge(made, number)
    on_request = ("local/run", "residuals/run", "encrypted/run")
    for name in ("secure/run", "cache", *on_request, "counted", "answers"):
        (state / name).mkdir(parents=True)
        (state / name / "file").write_text(f"CANARY of {name}")
    return made


def charge(site: Site, round_: int) -> None:
    audit = Audit(site.state / "audit.jsonl")
    head = audit.append("request", run="monday", round=round_, bytes=1)
    cohort = cohort_id(load_key(site.state / "pseudonym.key"), "north")
    with Ledger.open(site.state / "ledger.sqlite", cohort) as ledger:
        spent = ledger.charge(
            run="monday", round=round_, request=f"{round_:064x}", experiment="0" * 64,
            mechanisms=[Mechanism(1.0, 0.1, 5)], budget=Budget(8.0, 1e-5, "rdp"), lodged=None,
            attempts=1, audit_head=head,
        )  # fmt: skip
    audit.append("charge", run="monday", round=round_, charges=spent.lodged.charges)


def charges(site: Site) -> int:
    cohort = cohort_id(load_key(site.state / "pseudonym.key"), "north")
    with Ledger.open(site.state / "ledger.sqlite", cohort) as ledger:
        return ledger.verify()[0]


def elsewhere(site: Site, tmp_path: Path, name: str = "new") -> Site:
    return site.model_copy(update={"state": tmp_path / name})


def content_of(folder: Path) -> dict[str, str]:
    """Of all files but those that restoring and serving make."""
    skipped = ("services.lock", "backup.lock", "-wal", "-shm")
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(skipped)
    }


def test_what_comes_back_is_what_cannot_be_made_anew(site: Site, tmp_path: Path) -> None:
    made = back_up(site, tmp_path / "b", WORDS)
    assert (made.charges, made.entries) == (3, 6)
    new = elsewhere(site, tmp_path)
    restore(new, tmp_path / "b", WORDS)
    assert charges(new) == 3
    events = [entry.event for entry in Audit(new.state / "audit.jsonl").entries()]
    assert events == ["request", "charge"] * 3 + ["restored"]
    kept = content_of(site.state)
    found = content_of(new.state)
    for name in ("pseudonym.key", "roster.json", "identity/identity.key", "identity/node.key"):
        assert found[name] == kept[name]
    assert identity.load(new).hospital == "north"
    assert not any(
        name.startswith(("secure", "cache", "local", "residuals", "encrypted", "answers"))
        for name in found
    )
    assert "counted/file" in found
    assert not (new.state / ".restore").exists() and not (site.state / ".backup").exists()


def test_local_and_encrypted_come_on_request_and_secure_never(site: Site, tmp_path: Path) -> None:
    back_up(site, tmp_path / "b", WORDS, ("local", "encrypted"))
    new = elsewhere(site, tmp_path)
    restore(new, tmp_path / "b", WORDS)
    for folder in ("local", "residuals", "encrypted"):
        assert (new.state / folder / "run/file").exists()
    assert not (new.state / "secure").exists()


def test_a_ledger_never_goes_back(site: Site, tmp_path: Path) -> None:
    """One charge after the backup is enough; it is refused in words, and nothing was touched."""
    back_up(site, tmp_path / "b", WORDS)
    charge(site, 4)
    before = content_of(site.state)
    with pytest.raises(ConfigError, match="knows of 4 charges and the backup's of 3"):
        restore(site, tmp_path / "b", WORDS)
    assert content_of(site.state) == before and charges(site) == 4


@pytest.mark.parametrize("damage", ["gone", "random"])
def test_nor_where_only_its_head_tells_how_far_it_was(
    damage: str, site: Site, tmp_path: Path
) -> None:
    back_up(site, tmp_path / "b", WORDS)
    charge(site, 4)
    ledger = site.state / "ledger.sqlite"
    for path in site.state.glob("ledger.sqlite*"):
        path.unlink()
    if damage == "random":
        ledger.write_bytes(os.urandom(9000))
    with pytest.raises(ConfigError, match="restoring it would forget"):
        restore(site, tmp_path / "b", WORDS)


def test_a_damaged_ledger_of_the_same_length_is_mended_in_place(site: Site, tmp_path: Path) -> None:
    """A log beside the damaged file is not played into the new one; what is newer stays."""
    back_up(site, tmp_path / "b", WORDS)
    entries = Audit(site.state / "audit.jsonl").verify()[0]
    ledger = site.state / "ledger.sqlite"
    database = sqlite3.connect(ledger)
    database.execute("CREATE TABLE foreigner (a)")  # stays in the log while the connection is open
    database.commit()
    assert (site.state / "ledger.sqlite-wal").stat().st_size > 0
    log = (site.state / "ledger.sqlite-wal").read_bytes()
    database.close()
    ledger.write_bytes(os.urandom(9000))
    (site.state / "ledger.sqlite-wal").write_bytes(log)
    restore(site, tmp_path / "b", WORDS)
    assert charges(site) == 3
    assert Audit(site.state / "audit.jsonl").verify()[0] == entries + 1
    charge(site, 4)
    assert charges(site) == 4
    assert (site.state / "secure/run/file").exists()


def test_other_keys_are_not_replaced(site: Site, tmp_path: Path) -> None:
    back_up(site, tmp_path / "b", WORDS)
    (site.state / "identity/identity.key").write_bytes(b"rotated since")
    with pytest.raises(ConfigError, match=r"identity\.key is there and differs"):
        restore(site, tmp_path / "b", WORDS)


def test_a_state_in_use_another_hospital_and_newer_code_are_refused(
    site: Site, tmp_path: Path
) -> None:
    back_up(site, tmp_path / "b", WORDS)
    with (site.state / "services.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="is in use; end hospital start first"):
            restore(site, tmp_path / "b", WORDS)
    other = elsewhere(site, tmp_path).model_copy(update={"hospital": "south"})
    with pytest.raises(ConfigError, match="backup of 'north', not of 'south'"):
        restore(other, tmp_path / "b", WORDS)
    file = site.state / state_version.FILE
    file.write_text(json.dumps({"kind": "hospital", "version": state_version.VERSION + 1}))
    back_up(site, tmp_path / "c", WORDS)
    with pytest.raises(ConfigError, match="newer Consilium"):
        restore(elsewhere(site, tmp_path, "other"), tmp_path / "c", WORDS)


def test_what_is_not_whole_is_not_backed_up(site: Site, tmp_path: Path) -> None:
    log = site.state / "audit.jsonl"
    log.write_bytes(log.read_bytes().replace(b'"round":2', b'"round":9'))
    with pytest.raises(ConfigError, match="was altered"):
        back_up(site, tmp_path / "b", WORDS)
    assert not (tmp_path / "b").exists()


def test_a_backup_while_rounds_are_charged_is_whole(site: Site, tmp_path: Path) -> None:
    """Another process charges without a pause; each backup holds a ledger and a log that fit."""

    def busy() -> None:
        for number in range(4, 10_000):
            charge(site, number)

    at_work = FORK.Process(target=busy)
    at_work.start()
    try:
        for number in range(4):
            made = back_up(site, tmp_path / f"b{number}", WORDS)
            new = elsewhere(site, tmp_path, f"new{number}")
            restore(new, tmp_path / f"b{number}", WORDS)
            assert charges(new) == made.charges is not None
            heads = {entry.hash for entry in Audit(new.state / "audit.jsonl").entries()}
            with Ledger.open(
                new.state / "ledger.sqlite",
                cohort_id(load_key(new.state / "pseudonym.key"), "north"),
            ) as ledger:
                assert all(one.audit_head in heads for one in ledger.charges())
    finally:
        at_work.kill()
        at_work.join()


def killed_at(step: int, what: Callable[[], object]) -> bool:
    """Whether a process was killed at its `step`-th step onto the disk; it ends by itself otherwise."""

    def dying() -> None:
        left = step
        names = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "open"}

        def look(event: str, _: object) -> None:
            nonlocal left
            if event in names:
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(look)
        what()
        os._exit(0)

    process = FORK.Process(target=dying)
    process.start()
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def test_a_backup_that_is_killed_leaves_none_and_the_next_is_whole(
    site: Site, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    out, step = tmp_path / "out" / "b", 1
    while killed_at(step, lambda: back_up(site, out, WORDS)):
        if out.exists():  # it was there whole: killed while the deed was recorded
            restore(elsewhere(site, tmp_path, f"after-{step}"), out, WORDS)
            out.unlink()
        step += 7
    assert step > 30
    assert [path.name for path in out.parent.iterdir()] == ["b"]
    assert not (site.state / ".backup").exists()
    restore(elsewhere(site, tmp_path), out, WORDS)
    assert charges(site) == 3


def test_a_restore_that_is_killed_serves_nothing_until_it_is_done_again(
    site: Site, tmp_path: Path
) -> None:
    """Killed at one step after the other, in place: whoever looks meanwhile is refused or sees a whole
    ledger, and the same restore ends it."""
    back_up(site, tmp_path / "b", WORDS)
    names, step = set(), 1
    while True:
        new = elsewhere(site, tmp_path, f"new-{step}")
        killed = killed_at(step, lambda new=new: restore(new, tmp_path / "b", WORDS))  # type: ignore[misc]
        if (new.state / RESTORING).exists():
            names.add("unfinished")
            with pytest.raises(ConfigError, match="Run the same restore again"):
                state_version.require(new.state, "hospital")
        elif (new.state / "ledger.sqlite").exists():
            names.add("whole")
            assert charges(new) == 3
        else:
            names.add("nothing")
            assert not (new.state / "pseudonym.key").exists()
        if not killed:
            break
        restore(new, tmp_path / "b", WORDS)
        assert charges(new) == 3
        assert Audit(new.state / "audit.jsonl").verify()[0] >= 7
        step += 5
    assert names == {"nothing", "unfinished", "whole"}


def test_another_backup_cannot_go_on_where_one_was_broken_off(site: Site, tmp_path: Path) -> None:
    back_up(site, tmp_path / "b", WORDS)
    charge(site, 4)
    back_up(site, tmp_path / "c", WORDS)
    new = elsewhere(site, tmp_path)
    new.state.mkdir()
    (new.state / RESTORING).write_text("0" * 64)
    with pytest.raises(ConfigError, match="another backup"):
        restore(new, tmp_path / "c", WORDS)


def test_the_commands_as_a_person_types_them(site: Site, tmp_path: Path) -> None:
    runner, out = CliRunner(), tmp_path / "b"
    (tmp_path / "words").write_text(f"{WORDS}\n")
    given = ["--site", str(tmp_path / "site.yaml")]
    from_file = [*given, "--passphrase-file", str(tmp_path / "words")]
    more = [*given, "--local", "--encrypted"]
    done = runner.invoke(app, ["backup", str(out), *more], input=f"{WORDS}\n{WORDS}\n")
    assert done.exit_code == 0 and "a ledger of 3 charges" in done.output, done.output
    assert WORDS not in done.output
    refused = runner.invoke(app, ["restore", str(out), *given], input="something else entirely\n")
    assert "passphrase is wrong" in str(refused.exception)
    state = read_site(tmp_path / "site.yaml").state
    state.rename(tmp_path / "away")
    state.mkdir()
    (state / RESTORING).write_text("of a restore that was broken off")
    refused = runner.invoke(app, ["ledger", "verify", *given])
    assert isinstance(refused.exception, ConfigError)
    (state / RESTORING).unlink()
    done = runner.invoke(app, ["restore", str(out), *from_file])
    assert done.exit_code == 0 and "After an older backup" in done.output, done.output
    done = runner.invoke(app, ["ledger", "verify", *given])
    assert done.exit_code == 0 and "3" in done.output
    assert {path.name for path in state.iterdir()} >= {"local", "residuals", "encrypted"}


def test_without_a_ledger_there_is_a_backup_all_the_same(site: Site, tmp_path: Path) -> None:
    for path in site.state.glob("ledger.*"):
        path.unlink()
    plain = site.model_copy(update={"privacy": None})
    assert back_up(plain, tmp_path / "b", WORDS).charges is None
    new = elsewhere(plain, tmp_path)
    restore(new, tmp_path / "b", WORDS)
    assert not (new.state / "ledger.sqlite").exists()
    assert isinstance(new.privacy, (Privacy, type(None)))
