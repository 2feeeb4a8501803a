"""Federations for tests, made the way people make them: keys at the hospitals, public halves sent."""

from __future__ import annotations

from pathlib import Path

from client_app import identity
from federation.public_identity import SUFFIX
from server_app.home import Federation, Home
from server_app.provision import provision

PASSPHRASE = "for tests alone, of no secret"


def provisioned(federation: Federation, home: Home, states: dict[str, Path]) -> Home:
    """The federation in `home`, with each hospital's keys in its state folder, by name."""
    sent = home.path.parent / f"{home.path.name}-identities"
    sent.mkdir()
    for name in federation.hospitals:
        identity.create(states[name], name)
        send(states[name], name, sent)
    provision(federation, home, sent, passphrase=PASSPHRASE)
    return home


def send(state: Path, name: str, folder: Path) -> Path:
    """Copy the newest public half there, as a hospital does; its path."""
    own = identity.folder_of(state)
    newest = own / "next" if (own / "next").exists() else own
    path = folder / f"{name}{SUFFIX}"
    path.write_bytes((newest / path.name).read_bytes())
    return path
