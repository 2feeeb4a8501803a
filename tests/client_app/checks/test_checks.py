"""`hospital check` says what is ready and what is not, whatever lies on the disk."""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from client_app.audit import Audit
from client_app.checks import PARTS, run_checks
from client_app.checks.finding import Level
from client_app.imaging.pseudonym import load_key
from client_app.ledger import Ledger, cohort_id
from client_app.site import Privacy, Site
from federation.processes import FLOWER_ENVIRONMENT
from federation.schema import ConfigError
from server_app.home import Federation, Home
from tests.provisioned import provisioned as provision


@pytest.fixture
def provisioned(site: Site, phantom_folder: Path, tmp_path: Path) -> Site:
    """A site with a kit (of a coordinator that is not up) and its own copy of the images."""
    home = Home(tmp_path / "coordinator")
    content = Federation(name="a", host="127.0.0.1", port=1, hospitals=["north"])
    provision(content, home, {"north": site.state})
    images = tmp_path / "images"
    shutil.copytree(phantom_folder / "images", images)
    data = site.data.model_copy(update={"root": images})
    return site.model_copy(update={"kit": home.kit("north"), "data": data})


@pytest.fixture(autouse=True)
def as_the_command_does(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in FLOWER_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def check(site: Site, task: str | None = "chest_xray") -> tuple[bool, str]:
    output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    found = run_checks(site, task, 0.25, Console(file=output, width=200))
    output.flush()
    good = all(one.level is not Level.PROBLEM for one in found)
    return good, output.buffer.getvalue().decode()  # type: ignore[attr-defined]


def levels(site: Site, *parts: str) -> dict[str, Level]:
    console = Console(file=io.StringIO())
    return {one.id: one.level for one in run_checks(site, None, 0.25, console, parts or PARTS)}


def test_each_thing_has_a_line(provisioned: Site) -> None:
    good, said = check(provisioned)
    assert not good  # nobody listens on that port
    assert "✗ way out: 127.0.0.1:1 does not answer" in said
    assert "– clock: cannot be seen before this is well: coordinator's certificate" in said
    assert "✓ kit: north in federation a" in said
    assert "✓ roster: version 1, signed by the coordinator, with 1 hospitals" in said
    assert "✓ device: cpu" in said
    assert "0 files or images set aside" in said
    assert "such as" not in said, "no table of nothing"


def test_patients_are_counted_by_label_and_by_group(provisioned: Site) -> None:
    _, said = check(provisioned)
    counts = {
        " ".join(words[:-4]): [int(word) for word in words[-4:]]
        for line in said.splitlines()
        if len(words := line.split()) > 4 and all(word.isdigit() for word in words[-4:])
    }
    everybody = counts["all"]
    assert everybody[0] + everybody[2] == 16
    assert min(everybody) > 0
    for name in ("label", "sex", "age_band", "manufacturer"):
        parts = [numbers for group, numbers in counts.items() if group.startswith(f"{name}: ")]
        total = [sum(column) for column in zip(*parts, strict=True)]
        assert total[1::2] == everybody[1::2], f"each image has one {name}"
        assert name != "label" or total == everybody, "and each patient one label"
    assert "label: pneumonia" in counts


def test_names_that_no_terminal_likes_stop_nothing(provisioned: Site) -> None:
    for name in (b"[bold] [red]_[", b"caf\xe9.dcm", b"new\nline.dcm"):
        (provisioned.data.root / os.fsdecode(name)).write_bytes(b"no image")
    odd = provisioned.data.root / "[" / "bold]"  # shown as [/bold], a closing tag of nothing
    odd.parent.mkdir()
    odd.write_bytes(b"no image")
    _, said = check(provisioned)
    assert re.search(r"^ +4 +not_dicom ", said, re.MULTILINE)
    assert "nothing to mend" in said


def test_a_task_that_policy_forbids_is_said(provisioned: Site) -> None:
    policy = provisioned.policy.model_copy(update={"tasks": ["hippocampus"]})
    _, said = check(provisioned.model_copy(update={"policy": policy}))
    assert "✗ patients for chest_xray: policy.tasks does not allow it" in said


def test_a_lost_key_is_noticed(provisioned: Site) -> None:
    check(provisioned)
    (provisioned.state / "pseudonym.key").unlink()
    _, said = check(provisioned)
    assert "restore the key from a backup" in said
    assert not (provisioned.state / "pseudonym.key").exists()


def test_what_cannot_be_seen_from_here_is_said_and_is_no_fault(provisioned: Site) -> None:
    found = levels(provisioned, "data", "device")
    assert {found[name] for name in ("kit", "roster", "port", "state", "audit")} == {Level.UNSEEN}
    assert found["images"] is found["device"] is Level.OK
    assert Level.PROBLEM not in found.values()
    with pytest.raises(ConfigError, match="known are site, connection"):
        levels(provisioned, "everything")


def test_a_state_folder_that_others_can_use(provisioned: Site) -> None:
    for mode, level in ((0o700, Level.OK), (0o750, Level.WARNING), (0o770, Level.PROBLEM)):
        provisioned.state.chmod(mode)
        assert levels(provisioned, "state")["state"] is level


def test_a_state_folder_that_cannot_be_written(
    provisioned: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, remedy in ((errno.ENOSPC, "make room there"), (errno.EROFS, "this user's")):

        def refused(number: int = number, **_: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("client_app.checks.machine.tempfile.NamedTemporaryFile", refused)
        console = Console(file=io.StringIO())
        found = {one.id: one for one in run_checks(provisioned, None, 0.25, console, ("state",))}
        assert found["state"].level is Level.PROBLEM and remedy in found["state"].text


def test_a_broken_audit_chain_is_a_problem(provisioned: Site) -> None:
    log = provisioned.state / "audit.jsonl"
    for hospital in ("one", "two"):
        Audit(log).append("started", hospital=hospital)
    assert levels(provisioned, "state")["audit"] is Level.OK
    log.write_text(log.read_text().replace("one", "six"))
    assert levels(provisioned, "state")["audit"] is Level.PROBLEM


def test_a_ledger_that_is_missing_or_altered_is_a_problem(provisioned: Site) -> None:
    private = provisioned.model_copy(update={"privacy": Privacy(patients=400)})
    assert levels(private, "state")["ledger"] is Level.PROBLEM
    file = private.state / "ledger.sqlite"
    Ledger.create(file, cohort_id(load_key(private.state / "pseudonym.key"), "north"))
    assert levels(private, "state")["ledger"] is Level.OK
    file.write_bytes(b"no database" * 1000)
    assert levels(private, "state")["ledger"] is Level.PROBLEM


def test_the_index_is_missed_and_then_seen(provisioned: Site) -> None:
    assert levels(provisioned, "data")["index"] is Level.WARNING
    check(provisioned)
    assert levels(provisioned, "data")["index"] is Level.OK


def test_code_that_anybody_may_send_and_telemetry_are_told(
    provisioned: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    loose = provisioned.policy.model_copy(update={"code": "any"})
    found = levels(provisioned.model_copy(update={"policy": loose}), "site")
    assert (found["configuration"], found["telemetry"]) == (Level.WARNING, Level.OK)
    monkeypatch.delenv("FLWR_TELEMETRY_ENABLED")
    assert levels(provisioned, "site")["telemetry"] is Level.PROBLEM
