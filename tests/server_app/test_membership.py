"""Hospitals come, go and get new keys: each change one signed version, whole or not at all."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client_app import identity
from client_app.site import Site
from federation import public_identity, roster
from federation.public_identity import succeeds
from federation.schema import ConfigError, parse
from server_app import membership
from server_app.cli import app
from server_app.home import Federation, Home
from tests.provisioned import PASSPHRASE, provisioned, send

NAMES = ["north", "east"]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    content = Federation(name="test", host="127.0.0.1", port=9000, hospitals=NAMES)
    states = {name: tmp_path / name / "state" for name in NAMES}
    return provisioned(content, Home(tmp_path / "coordinator"), states)


def made(folder: Path, name: str) -> Path:
    """The public half of new keys."""
    identity.create(folder / f"{name}-keys", name)
    sent = folder / f"{name}-sent"
    sent.mkdir()
    return send(folder / f"{name}-keys", name, sent)


def rotation(home: Home, name: str) -> Path:
    folder = home.path.parent
    site = parse(
        Site,
        {
            "hospital": name, "kit": home.kit(name), "state": folder / name / "state",
            "data": {"root": folder},
        },
    )  # fmt: skip
    identity.rotate(site)
    return send(site.state, name, folder)


def assert_whole(home: Home, names: list[str]) -> None:
    """All that hangs on the newest version is of it."""
    current = home.roster()
    assert current.names() == names
    content = home.roster_file.read_bytes()
    assert sorted(path.name for path in home.kits.iterdir()) == names
    for name in names:
        assert (home.kit(name) / "roster.json").read_bytes() == content
    assert home.federation().hospitals == names
    key = home.identity().public_key()
    versions = [
        roster.read(home.rosters / f"{number}.json", key)
        for number in range(1, current.version + 1)
    ]
    for before, after in itertools.pairwise(versions):
        assert (after.version, after.previous) == (before.version + 1, before.sha256())
    assert versions[-1].sha256() == current.sha256()


def test_versions_follow_from_one_another(home: Home, tmp_path: Path) -> None:
    assert_whole(home, ["east", "north"])
    changed = membership.admit(home, made(tmp_path, "west"))
    assert (changed.roster.version, changed.registered) == (2, False)
    assert_whole(home, ["east", "north", "west"])
    before = home.roster().member("north")
    membership.rotate(home, rotation(home, "north"), lost=False)
    after = home.roster().member("north")
    assert before is not None and after is not None
    assert not after.same_keys(before)
    assert succeeds(after, before)
    assert_whole(home, ["east", "north", "west"])
    membership.remove(home, "east")
    assert_whole(home, ["north", "west"])
    assert home.roster().version == 4
    assert home.roster().member("north") == after


def test_what_cannot_be_added_is_refused_and_nothing_changes(home: Home, tmp_path: Path) -> None:
    taken = made(tmp_path, "north")
    unsigned = rotation(home, "east")
    first = tmp_path / "coordinator-identities"
    before = home.roster_file.read_bytes()
    refusals: list[tuple[Callable[[], object], str]] = [
        (lambda: membership.admit(home, taken), "is on the roster already"),
        (lambda: membership.admit(home, tmp_path / "none"), "hospital join"),
        (lambda: membership.remove(home, "mars"), "'mars' is not on the roster: east, north"),
        (lambda: membership.rotate(home, taken, lost=False), "--lost"),
        (
            lambda: membership.rotate(home, made(tmp_path, "mars"), lost=True),
            "'mars' is not on the roster",
        ),
        (
            lambda: membership.rotate(home, first / "north.identity.json", lost=True),
            "on the roster already",
        ),
    ]
    for call, words in refusals:
        with pytest.raises(ConfigError) as refused:
            call()
        assert words in str(refused.value)
        assert "\n" not in str(refused.value)
    membership.remove(home, "east")
    with pytest.raises(ConfigError, match="replaces keys of east, which is not on the roster"):
        membership.admit(home, unsigned)
    with pytest.raises(ConfigError, match="cannot be empty"):
        membership.remove(home, "north")
    assert home.roster().version == 2
    assert (home.rosters / "1.json").read_bytes() == before


def test_a_rotation_signed_by_somebody_else_needs_lost_and_loses_its_proof(
    home: Home, tmp_path: Path
) -> None:
    """A thief's chain of keys does not pass for the hospital's."""
    identity.create(tmp_path / "thief" / "state", "north")
    kit = tmp_path / "thief" / "kit"
    other = Home(tmp_path / "thief" / "coordinator")
    thief = send(tmp_path / "thief" / "state", "north", tmp_path)
    sent = tmp_path / "sent"
    sent.mkdir()
    thief.rename(sent / thief.name)
    from server_app.provision import provision

    content = Federation(name="test", host="h", port=1, hospitals=["north"])
    provision(content, other, sent, passphrase=PASSPHRASE)
    other.kit("north").rename(kit)
    thiefs = {
        "hospital": "north", "kit": kit, "state": tmp_path / "thief" / "state",
        "data": {"root": tmp_path},
    }  # fmt: skip
    identity.rotate(parse(Site, thiefs))
    chained = send(tmp_path / "thief" / "state", "north", tmp_path)
    with pytest.raises(ConfigError, match="is not signed by the identity of north"):
        membership.rotate(home, chained, lost=False)
    before = home.roster().member("north")
    membership.rotate(home, chained, lost=True)
    after = home.roster().member("north")
    assert before is not None and after is not None
    assert not succeeds(after, before)
    assert after.succeeds == ""


def test_keys_that_were_put_out_never_come_back(home: Home, tmp_path: Path) -> None:
    first = tmp_path / "coordinator-identities"
    membership.remove(home, "east")
    with pytest.raises(ConfigError, match="had in version 1 of the roster"):
        membership.admit(home, first / "east.identity.json")
    membership.rotate(home, rotation(home, "north"), lost=False)
    with pytest.raises(ConfigError, match="keys are never used again"):
        membership.rotate(home, first / "north.identity.json", lost=True)
    membership.admit(home, made(tmp_path, "east"))
    assert_whole(home, ["east", "north"])


def test_a_stolen_public_half_under_another_name_is_refused(home: Home, tmp_path: Path) -> None:
    """It proves the other name alone; and with a name of its own it would have to prove the keys."""
    content = (tmp_path / "coordinator-identities" / "north.identity.json").read_bytes()
    (tmp_path / "mole.identity.json").write_bytes(content.replace(b'"north"', b'"mole"'))
    with pytest.raises(ConfigError, match="a signature in it is wrong"):
        membership.admit(home, tmp_path / "mole.identity.json")


class Killed(BaseException):
    """In place of a `kill -9` before a file gets its name."""


def test_killed_between_writes_the_next_command_completes(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = made(tmp_path, "west")
    real, left = os.replace, [-1]

    def replace(*arguments, **options):  # type: ignore[no-untyped-def]
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        return real(*arguments, **options)

    monkeypatch.setattr(os, "replace", replace)
    versions = set()
    for steps in range(100):
        left[0] = steps
        try:
            membership.admit(home, half)
            finished = True
        except Killed:
            finished = False
        except ConfigError as already:  # decided in the try before, and completed by this one
            assert "is on the roster already" in str(already)
            finished = True
        left[0] = -1
        versions.add(home.roster().version)
        if finished:
            break
    assert versions == {1, 2}
    assert steps > 5, "it was stopped at several places"
    assert_whole(home, ["east", "north", "west"])


def test_an_older_roster_put_back_is_not_signed_over(home: Home, tmp_path: Path) -> None:
    old = home.roster_file.read_bytes()
    membership.admit(home, made(tmp_path, "west"))
    home.roster_file.write_bytes(old)
    with pytest.raises(ConfigError, match="put the newest of rosters/ in its place"):
        membership.remove(home, "north")
    home.roster_file.write_bytes((home.rosters / "2.json").read_bytes())
    membership.remove(home, "north")
    assert_whole(home, ["east", "west"])


def test_the_commands_say_what_to_send_to_whom(home: Home, tmp_path: Path) -> None:
    def call(*arguments: str) -> str:
        done = CliRunner().invoke(app, [*arguments, "--home", str(home.path)])
        assert done.exit_code == 0, done.output
        return done.output

    half = made(tmp_path, "west")
    told = public_identity.read(half).member.fingerprint().replace(" ", "").upper()
    said = call("admit", str(half), "--fingerprint", told)
    west = home.roster().member("west")
    assert west is not None
    assert f"west\n    {west.fingerprint()}" in said
    assert f"Send {home.roster_file} to every hospital" in said
    assert "is told at the next coordinator start" in said
    assert "version 3" in call("rotate", str(rotation(home, "north")))
    assert "version 4" in call("remove", "east")
    listed = call("hospitals")
    assert home.roster().sha256() in listed
    assert all(member.fingerprint() in listed for member in home.roster().members)
