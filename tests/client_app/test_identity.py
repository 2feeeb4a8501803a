"""A hospital's keys and its pinned roster: made here, kept here, and nothing swapped behind its back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from typer.testing import CliRunner

from client_app import identity
from client_app.audit import Audit
from client_app.cli import app
from client_app.kit import read_kit
from client_app.site import Site
from federation import public_identity, roster
from federation.roster import Roster
from federation.schema import ConfigError, parse
from server_app import membership
from server_app.home import Federation, Home
from tests.provisioned import provisioned, send

NAMES = ["north", "east", "west"]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A federation whose kits lie at its hospitals NAME/, with keys in NAME/state."""
    home = Home(tmp_path / "coordinator")
    content = Federation(name="test", host="127.0.0.1", port=9000, hospitals=NAMES)
    provisioned(content, home, {name: tmp_path / name / "state" for name in NAMES})
    for name in NAMES:
        home.kit(name).rename(tmp_path / name / "kit")
        (tmp_path / name / "site.yaml").write_text(
            f"hospital: {name}\nkit: kit\nstate: state\ndata: {{root: images, layout: dicom}}\n"
        )
    return home


@pytest.fixture
def north(home: Home) -> Site:
    return site(home, "north")


def site(home: Home, name: str) -> Site:
    folder = home.path.parent / name
    content = {
        "hospital": name, "kit": folder / "kit", "state": folder / "state",
        "data": {"root": folder / "images", "layout": "dicom"},
    }  # fmt: skip
    return parse(Site, content)


def hospital(site: Site, *arguments: str, code: int = 0) -> str:
    """The command in this process; its output, with the error's text if there was one."""
    file = site.kit.parent / "site.yaml"
    done = CliRunner().invoke(app, [*arguments, "--site", str(file)])
    if isinstance(done.exception, ConfigError):
        assert code == 1, done.exception
        return done.output + str(done.exception)
    assert done.exit_code == code, done.output
    return done.output


def private(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*.key"))}


# --- keys ---


def test_keys_are_made_whole_private_and_once(tmp_path: Path) -> None:
    state = tmp_path / "deep" / "state"
    member = identity.create(state, "north")
    folder = state / "identity"
    assert sorted(path.name for path in folder.iterdir()) == [
        "identity.key",
        "node.key",
        "north.identity.json",
    ]
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert public_identity.read(folder / "north.identity.json").member == member
    before = private(folder)
    with pytest.raises(ConfigError, match="never overwritten"):
        identity.create(state, "north")
    assert private(folder) == before
    assert sorted(path.name for path in state.iterdir()) == ["identity", "identity.lock"]


def test_the_public_half_holds_no_private_one(tmp_path: Path) -> None:
    identity.create(tmp_path, "north")
    public = (tmp_path / "identity" / "north.identity.json").read_bytes()
    for content in private(tmp_path).values():
        assert not any(line in public for line in content.splitlines() if len(line) > 20)


def test_load_gives_the_keys_that_the_roster_names(north: Site) -> None:
    own = identity.load(north)
    member = own.roster.member("north")
    assert member is not None
    member.identity().verify(own.key.sign(b"word"), b"word")
    node = load_ssh_private_key(own.node_key.read_bytes(), None)
    assert roster.node_line(node.public_key()) == member.node_key  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["identity.key", "node.key"])
def test_keys_that_others_may_read_or_that_are_damaged_are_refused(north: Site, name: str) -> None:
    path = north.state / "identity" / name
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        identity.load(north)
    path.chmod(0o600)
    identity.load(north)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match="bring it back from a backup"):
        identity.load(north)
    path.unlink()
    with pytest.raises(ConfigError, match="are not those that the roster"):
        identity.load(north)


def test_other_keys_than_the_rosters_are_refused_with_what_to_do(north: Site, home: Home) -> None:
    (north.state / "identity").rename(north.state / "away")
    with pytest.raises(ConfigError, match="make them with hospital join"):
        identity.load(north)
    identity.create(north.state, "north")
    with pytest.raises(ConfigError, match="rotate --lost"):
        identity.load(north)
    said = hospital(north, "start", code=1)
    assert "are not those that the roster of version 1 names for north" in said


def test_a_hospital_that_is_not_on_the_roster_does_not_start(home: Home, north: Site) -> None:
    membership.remove(home, "north")
    hospital(north, "roster", "accept", str(home.roster_file), "--yes")
    with pytest.raises(ConfigError, match="not on the roster of version 2"):
        identity.load(north)


# --- the pinned roster ---


def test_the_first_roster_is_pinned_and_a_swapped_kit_changes_nothing(
    home: Home, north: Site, tmp_path: Path
) -> None:
    read_kit(north).pin()
    identity.create(tmp_path / "mole", "mole")
    membership.admit(home, send(tmp_path / "mole", "mole", tmp_path))
    (north.kit / "roster.json").write_bytes(home.roster_file.read_bytes())
    kit = read_kit(north)
    assert kit.pin().names() == kit.roster().names() == sorted(NAMES)
    assert identity.load(north).roster.version == 1
    assert "hospital roster accept" in hospital(north, "roster", "show")


def test_two_rosters_of_one_version_are_noticed(home: Home, north: Site) -> None:
    kit = read_kit(north)
    first = kit.pin()
    other = Roster("test", tuple(m for m in first.members if m.name != "west"))
    (north.kit / "roster.json").write_bytes(roster.sign(other, home.identity()))
    with pytest.raises(ConfigError, match="told different hospitals different things"):
        kit.pin()


def test_another_coordinators_kit_does_not_replace_the_pinned_one(
    home: Home, north: Site, tmp_path: Path
) -> None:
    read_kit(north).pin()
    thief = Ed25519PrivateKey.generate()
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    (north.kit / "coordinator.pub").write_bytes(
        thief.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    mine = Roster("test", home.roster().members, 2, home.roster().sha256())
    (north.kit / "roster.json").write_bytes(roster.sign(mine, thief))
    with pytest.raises(ConfigError, match="coordinator signed"):
        identity.load(north)
    assert "coordinator signed" in hospital(north, "start", code=1)


def test_an_added_hospital_gets_in_only_by_hand(home: Home, north: Site, tmp_path: Path) -> None:
    identity.create(tmp_path / "mole", "mole")
    added = membership.admit(home, send(tmp_path / "mole", "mole", tmp_path)).roster
    mole = added.member("mole")
    assert mole is not None
    said = hospital(north, "roster", "accept", str(home.roster_file), code=1)
    assert f"ADDED    mole\n    {mole.fingerprint()}" in said
    assert "nobody is there to confirm" in said
    assert read_kit(north).roster().version == 1
    said = hospital(north, "roster", "accept", str(home.roster_file), "--yes")
    assert "version 2 is in force" in said
    assert read_kit(north).roster().sha256() == added.sha256()
    last = list(Audit(north.state / "audit.jsonl").entries())[-1]
    assert last.event == "roster"
    assert (last.fields["version"], last.fields["roster"]) == (2, added.sha256())
    assert last.fields["added"] == ["mole"]


def test_a_terminal_is_asked_and_no_means_no(
    home: Home, north: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    from client_app import membership as commands

    membership.remove(home, "west")
    for answer, version in ((False, 1), (True, 2)):
        monkeypatch.setattr(commands, "_confirmed", lambda answer=answer: answer)
        hospital(north, "roster", "accept", str(home.roster_file), code=0 if answer else 1)
        assert read_kit(north).roster().version == version


def test_an_older_or_equal_roster_is_refused(home: Home, north: Site) -> None:
    membership.remove(home, "west")
    hospital(north, "roster", "accept", str(home.roster_file), "--yes")
    for version, words in ((1, "a roster never goes back"), (2, "pinned here already")):
        file = str(home.rosters / f"{version}.json")
        assert words in hospital(north, "roster", "accept", file, "--yes", code=1)
    assert read_kit(north).roster().version == 2


def test_a_roster_that_forked_off_is_refused(home: Home, north: Site, tmp_path: Path) -> None:
    """A coordinator that told this hospital another version 1 than the others."""
    first = home.roster()
    fork = replace(first, members=first.members[:2])
    second = Roster("test", first.members, 2, fork.sha256())
    (tmp_path / "fork.json").write_bytes(roster.sign(second, home.identity()))
    said = hospital(north, "roster", "accept", str(tmp_path / "fork.json"), "--yes", code=1)
    assert "does not follow from the roster pinned here" in said
    elsewhere = Roster("other", first.members, 2, first.sha256())
    (tmp_path / "fork.json").write_bytes(roster.sign(elsewhere, home.identity()))
    said = hospital(north, "roster", "accept", str(tmp_path / "fork.json"), "--yes", code=1)
    assert "federation 'other'" in said


def test_skipped_versions_are_said(home: Home, north: Site, tmp_path: Path) -> None:
    membership.remove(home, "west")
    identity.create(tmp_path / "hill", "hill")
    membership.admit(home, send(tmp_path / "hill", "hill", tmp_path))
    said = hospital(north, "roster", "accept", str(home.roster_file), "--yes")
    assert "version 2 was never seen here" in said
    assert "ADDED    hill" in said
    assert "REMOVED  west" in said


def test_a_roster_that_gives_somebody_else_this_hospitals_name_is_refused(
    home: Home, north: Site, tmp_path: Path
) -> None:
    identity.create(tmp_path / "thief", "north")
    membership.rotate(home, send(tmp_path / "thief", "north", tmp_path), lost=True)
    said = hospital(north, "roster", "accept", str(home.roster_file), "--yes", code=1)
    assert "would pass for this hospital" in said
    assert read_kit(north).roster().version == 1


def test_a_swapped_key_of_another_hospital_is_shown_as_not_signed(
    home: Home, north: Site, tmp_path: Path
) -> None:
    before = home.roster().member("east")
    identity.create(tmp_path / "thief", "east")
    membership.rotate(home, send(tmp_path / "thief", "east", tmp_path), lost=True)
    after = home.roster().member("east")
    said = hospital(north, "roster", "accept", str(home.roster_file), code=1)
    assert before is not None and after is not None
    assert f"NEW KEYS east\n    {after.fingerprint()}" in said
    assert "NOT signed by the key known here" in said
    assert before.fingerprint() in said


# --- rotation ---


def test_a_rotation_takes_effect_with_the_roster_and_deletes_the_old_keys(
    home: Home, north: Site, tmp_path: Path
) -> None:
    old = identity.load(north)
    old_files = private(north.state)
    hospital(north, "identity", "rotate", "--out", str(tmp_path))
    assert identity.load(north).key.private_bytes_raw() == old.key.private_bytes_raw()
    assert "new keys wait" in hospital(north, "identity", "rotate", code=1)
    membership.rotate(home, tmp_path / "north.identity.json", lost=False)
    assert identity.load(north).roster.version == 1, "the roster is not accepted yet"
    hospital(north, "roster", "accept", str(home.roster_file), "--yes")
    new = identity.load(north)
    member = new.roster.member("north")
    assert member is not None
    member.identity().verify(new.key.sign(b"word"), b"word")
    assert new.node_key == north.state / "identity" / "node.key"
    assert not (north.state / "identity" / "next").exists()
    left = b"".join(path.read_bytes() for path in north.state.rglob("*") if path.is_file())
    assert not any(content in left for content in old_files.values())
    assert json.loads(hospital(north, "identity", "show", "--json"))["waiting"] is False
    # and the others see that the old key signed for the new one
    east = site(home, "east")
    said = hospital(east, "roster", "accept", str(home.roster_file), "--yes")
    assert "signed by the key known here" in said
    assert "NOT" not in said


def test_a_lost_identity_comes_back_under_new_keys(home: Home, north: Site, tmp_path: Path) -> None:
    (north.state / "identity").rename(north.state / "lost")
    hospital(north, "identity", "create", "--out", str(tmp_path))
    with pytest.raises(ConfigError, match="--lost"):
        membership.rotate(home, tmp_path / "north.identity.json", lost=False)
    membership.rotate(home, tmp_path / "north.identity.json", lost=True)
    hospital(north, "roster", "accept", str(home.roster_file), "--yes")
    assert identity.load(north).roster.version == 2


class Killed(BaseException):
    """In place of a `kill -9` between two system calls that change the disk."""


CHANGES = ("os.rename", "os.replace", "os.unlink", "os.rmdir", "os.link")


@pytest.fixture
def mortal(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Ends the process's work before its n-th change of a name on the disk; [-1] counts only."""
    left = [-1]
    seen = [0]

    def dying(real):  # type: ignore[no-untyped-def]
        def call(*arguments, **options):  # type: ignore[no-untyped-def]
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            seen[0] += 1
            return real(*arguments, **options)

        return call

    for name in CHANGES:
        module, attribute = name.split(".")
        monkeypatch.setattr(sys.modules[module], attribute, dying(getattr(os, attribute)))
    yield left


def test_accepting_a_rotation_killed_anywhere_leaves_the_old_or_the_new_identity(
    home: Home, north: Site, tmp_path: Path, mortal: list[int]
) -> None:
    identity.rotate(north)
    rotated = membership.rotate(home, send(north.state, "north", tmp_path), lost=False).roster
    kit = read_kit(north)
    kit.pin()
    content = home.roster_file.read_bytes()
    versions = []
    for steps in range(20):
        mortal[0] = steps
        try:
            kit.put(content)
            identity.settle(north, kit.roster())
            finished = True
        except Killed:
            finished = False
        mortal[0] = -1
        own = identity.load(north)  # of one version or the other, both keys of it
        member = own.roster.member("north")
        assert member is not None
        assert roster.identity_text(own.key.public_key()) == member.identity_key
        node = load_ssh_private_key(own.node_key.read_bytes(), None)
        assert roster.node_line(node.public_key()) == member.node_key  # type: ignore[arg-type]
        versions.append(own.roster.version)
        if finished:
            break
    assert versions[0] == 1
    assert versions[-1] == rotated.version == 2
    assert len(versions) > 3, "it was stopped at several places"
    assert not (north.state / "identity" / "next").exists()


KILLED_AT_A_CALL = """
    import os, signal, sys
    from pathlib import Path
    from client_app import identity

    left = int(sys.argv[2])

    def deadly(real):
        def call(*arguments, **options):
            global left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return real(*arguments, **options)
        return call

    for name in ("open", "fsync", "rename", "mkdir"):
        setattr(os, name, deadly(getattr(os, name)))
    identity.create(Path(sys.argv[1]), "north")
"""


def test_create_killed_anywhere_leaves_a_whole_folder_or_none(tmp_path: Path) -> None:
    """A real `kill -9` before the n-th system call that writes or names something."""
    program = [sys.executable, "-c", textwrap.dedent(KILLED_AT_A_CALL)]
    killed = []
    for calls in (0, 2, 3, 5, 7, 8, 9, 10, 30):
        state = tmp_path / str(calls)
        state.mkdir()
        ended = subprocess.run([*program, str(state), str(calls)], check=False, timeout=60)
        killed.append(ended.returncode == -signal.SIGKILL)
        assert killed[-1] or ended.returncode == 0
        if not (state / "identity").exists():
            identity.create(state, "north")
        assert [path.name for path in state.glob(".identity-*")] == []
        assert len(private(state)) == 2
        assert public_identity.read(state / "identity" / "north.identity.json")
    assert killed[0]
    assert killed.count(True) > 4
    assert not killed[-1]


def test_rotate_killed_is_tried_again(north: Site, mortal: list[int]) -> None:
    before = private(north.state)
    for steps in range(10):
        mortal[0] = steps
        try:
            identity.rotate(north)
            break
        except Killed:
            pass
        finally:
            mortal[0] = -1
        assert before.items() <= private(north.state).items()
        identity.load(north)
    assert len(private(north.state)) == 4


# --- commands ---


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["identity", "create"], "holds keys already"),
        (["roster", "accept", "none.json"], "there is no roster at none.json"),
    ],
)
def test_wrong_input_is_one_line(north: Site, arguments: list[str], words: str) -> None:
    said = hospital(north, *arguments, code=1)
    assert words in said
    assert len(said.splitlines()) == 1


def test_create_needs_no_kit_and_prints_the_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text(
        "hospital: north\nkit: none\nstate: state\ndata: {root: images, layout: dicom}\n"
    )
    alone = parse(
        Site, {"hospital": "north", "kit": tmp_path / "none", "state": tmp_path / "state",
               "data": {"root": tmp_path}},
    )  # fmt: skip
    said = hospital(alone, "identity", "create", "--json", "--out", str(tmp_path / "out"))
    shown = json.loads(said)
    member = public_identity.read(Path(shown["file"])).member
    assert Path(shown["file"]) == tmp_path / "out" / "north.identity.json"
    assert shown["fingerprint"] == member.fingerprint()
    assert member.fingerprint() in hospital(alone, "identity", "show")
    said = hospital(alone, "start", code=1)
    assert "is not a kit" in said
    assert "coordinator provision or invite" in said


def test_a_damaged_public_half_is_said(north: Site) -> None:
    path = north.state / "identity" / "north.identity.json"
    path.write_bytes(public_identity.write("north", Ed25519PrivateKey.generate(), _node(north)))
    assert "is not of the keys beside it" in hospital(north, "identity", "show", code=1)
    path.unlink()
    assert "is missing" in hospital(north, "identity", "show", code=1)


def _node(site: Site):  # type: ignore[no-untyped-def]
    return load_ssh_private_key((site.state / "identity" / "node.key").read_bytes(), None)
