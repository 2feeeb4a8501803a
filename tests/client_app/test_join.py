"""An invitation is taken up: keys made at the hospital, admitted by telephone, roster taken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client_app import identity
from client_app.audit import Audit
from client_app.cli import app as hospital_app
from client_app.kit import read_kit
from client_app.site import Site
from federation import public_identity
from federation.schema import ConfigError, parse
from server_app import membership
from server_app.cli import app as coordinator_app
from server_app.home import Federation, Home
from server_app.provision import provision
from tests.provisioned import PASSPHRASE

NAMES = ["north", "east"]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "coordinator")
    content = Federation(name="test", host="h.example", port=9000, hospitals=NAMES)
    provision(content, made, passphrase=PASSPHRASE)
    for name in NAMES:
        shutil.copytree(made.kit(name), tmp_path / name / "kit")
        (tmp_path / name / "site.yaml").write_text(
            f"hospital: {name}\nkit: kit\nstate: state\ndata: {{root: images}}\n"
        )
    return made


def call(*words: str, code: int = 0) -> str:
    app = hospital_app if words[0] == "hospital" else coordinator_app
    done = CliRunner().invoke(app, list(words[1:]))
    assert (done.exit_code != 0) == bool(code), done.output
    return done.output + (str(done.exception) if done.exception else "")


def joined(home: Home, name: str) -> dict[str, str]:
    folder = home.path.parent
    site = str(folder / name / "site.yaml")
    said: dict[str, str] = json.loads(
        call("hospital", "join", "--site", site, "--out", str(folder), "--json")
    )
    return said


def site(home: Home, name: str) -> Site:
    folder = home.path.parent / name
    content = {"hospital": name, "kit": folder / "kit", "state": folder / "state"}
    return parse(Site, content | {"data": {"root": folder}})


def test_an_invitation_has_no_secret_and_no_roster(home: Home) -> None:
    for name in NAMES:
        kit = {path.name: path.read_bytes() for path in home.kit(name).iterdir()}
        assert set(kit) == {"ca.crt", "coordinator.pub", "kit.json"}
        assert not any(b"PRIVATE" in content for content in kit.values())
    assert home.members() == ()
    assert home.invited() == ["east", "north"]
    with pytest.raises(ConfigError, match="no hospital is admitted yet"):
        home.roster()


def test_from_invitation_to_roster(home: Home) -> None:
    told = {name: joined(home, name) for name in NAMES}
    assert {one["kit"] for one in told.values()} == {membership.fingerprint_of_kits(home)}
    north = site(home, "north")
    with pytest.raises(ConfigError, match=r"no roster is in force here yet.*roster accept"):
        read_kit(north).pin()
    files = [told[name]["file"] for name in NAMES]
    heard = [part for name in NAMES for part in ("--fingerprint", told[name]["fingerprint"])]
    where = ("--home", str(home.path))
    assert "nobody is there to confirm" in call("coordinator", "admit", *files, *where, code=1)
    wrong = [*heard[:3], "0" * 32]
    assert "said to be another" in call("coordinator", "admit", *files, *wrong, *where, code=1)
    assert "give one for each" in call("coordinator", "admit", *files, *heard[:2], *where, code=1)
    assert home.members() == (), "nothing was changed"
    call("coordinator", "admit", *files, *heard, *where)
    assert (home.roster().version, home.roster().names()) == (1, ["east", "north"])

    accept = ("hospital", "roster", "accept", str(home.roster_file), "--site")
    file = str(home.path.parent / "north" / "site.yaml")
    said = call(*accept, file, code=1)
    assert "the first roster here, version 1" in said
    assert f"ADDED    east\n    {told['east']['fingerprint']}" in said
    assert not read_kit(north).pinned.exists()
    call(*accept, file, "--yes")
    assert identity.load(north).roster.sha256() == home.roster().sha256()
    assert [entry.event for entry in Audit(north.state / "audit.jsonl").entries()] == [
        "identity",
        "roster",
    ]


def test_one_that_joins_later_takes_the_roster_that_names_it(home: Home) -> None:
    file = joined(home, "north")["file"]
    membership.admit(home, Path(file))
    kit = home.path.parent / "east" / "kit"
    shutil.rmtree(kit)
    shutil.copytree(home.kit("east"), kit)
    assert (kit / "roster.json").exists()
    east, where = site(home, "east"), str(home.path.parent / "east" / "site.yaml")
    half = joined(home, "east")["file"]
    accept = ("hospital", "roster", "accept", str(home.roster_file), "--yes", "--site", where)
    assert "does not name east" in call(*accept, code=1)
    with pytest.raises(ConfigError, match="no roster is in force"):
        read_kit(east).pin()
    membership.admit(home, Path(half))
    assert "version 2 is in force" in call(*accept)
    assert identity.load(east).roster.version == 2


def test_joining_again_makes_nothing_new(home: Home) -> None:
    first = joined(home, "north")
    assert joined(home, "north") == first
    shutil.rmtree(site(home, "north").state / "identity")
    assert joined(home, "north")["fingerprint"] != first["fingerprint"]


def test_a_kit_that_was_changed_is_refused_or_shows(home: Home) -> None:
    kit = home.path.parent / "north" / "kit"
    told = membership.fingerprint_of_kits(home)
    other = home.path.parent / "other"
    thief = Federation(name="test", host="h.example", port=9000, hospitals=["north"])
    provision(thief, Home(other), passphrase=PASSPHRASE)
    for name in ("ca.crt", "coordinator.pub"):
        before = (kit / name).read_bytes()
        shutil.copy(Home(other).kit("north") / name, kit / name)
        assert read_kit(site(home, "north")).fingerprint() != told
        (kit / name).write_bytes(before)
    (kit / "ca.crt").write_bytes((home.path / "server.crt").read_bytes())
    state = home.path.parent / "new"
    said = call("hospital", "join", str(kit), "--state", str(state), code=1)
    assert "not an authority's certificate" in said
    assert not state.exists()


def test_invited_removed_and_back_with_new_keys_alone(home: Home) -> None:
    membership.remove(home, "east")
    assert home.invited() == ["north"] and not home.kit("east").exists()
    half = Path(joined(home, "north")["file"])
    membership.admit(home, half)
    membership.invite(home, "west")
    assert public_identity.read(half).member.name == "north"
    with pytest.raises(ConfigError, match="cannot be empty"):
        membership.remove(home, "north")
    with pytest.raises(ConfigError, match="invited already"):
        membership.invite(home, "west")
