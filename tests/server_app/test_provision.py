"""Provisioning: certificates a TLS peer accepts, secrets nobody else reads, a roster that is signed."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from client_app.kit import read_kit
from client_app.site import Site
from federation.schema import ConfigError, parse
from server_app.home import Federation, Home, read_federation
from server_app.provision import provision

FEDERATION = Federation(name="test", host="127.0.0.1", port=9000, hospitals=["north", "east"])


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "coordinator")
    provision(FEDERATION, home)
    return home


def site(kit: Path, hospital: str = "north") -> Site:
    data = {"root": "r", "layout": "dicom"}
    return parse(Site, {"hospital": hospital, "kit": kit, "state": "s", "data": data})


def test_private_files_are_private_and_all_others_hold_no_secret(home: Home) -> None:
    secret = {"ca.key", "server.key", "identity.key", "node.key", "superexec.secret"}
    for path in home.path.rglob("*"):
        if path.is_file():
            assert (path.stat().st_mode & 0o077 == 0) == (path.name in secret), path
            assert ("PRIVATE KEY" in path.read_text()) == (path.suffix == ".key"), path


def test_a_hospital_reads_its_kit(home: Home) -> None:
    kit = read_kit(site(home.kit("north")))
    assert (kit.federation, kit.superlink) == ("test", "127.0.0.1:9000")
    assert kit.roster().names() == ["east", "north"]
    member = next(m for m in kit.roster().members if m.name == "north")
    key = load_ssh_private_key(kit.node_key.read_bytes(), None)
    assert isinstance(key, EllipticCurvePrivateKey)
    public = load_ssh_public_key(member.node_key.encode())
    assert key.public_key() == public


def test_another_hospitals_kit_and_a_readable_key_are_refused(home: Home) -> None:
    with pytest.raises(ConfigError, match="kit of 'north', not of 'east'"):
        read_kit(site(home.kit("north"), "east"))
    (home.kit("north") / "node.key").chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_kit(site(home.kit("north")))


def test_a_changed_roster_is_refused(home: Home) -> None:
    path = home.kit("north") / "roster.json"
    content = json.loads(path.read_text())
    content["roster"]["members"][0]["identity_key"] = content["roster"]["members"][1][
        "identity_key"
    ]
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="coordinator signed"):
        read_kit(site(home.kit("north"))).roster()
    assert home.roster().names() == ["east", "north"]  # the coordinator's own copy is whole


def test_a_full_folder_is_not_overwritten(home: Home) -> None:
    with pytest.raises(ConfigError, match="not empty"):
        provision(FEDERATION, home)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: a\nhost: h\nport: 1\nhospitals: []\n", "hospitals"),
        ("name: a\nhost: h\nport: 99999\nhospitals: [n]\n", "port is 99999"),
        ("name: a\nhost: h\nport: 1\nhospitls: [n]\n", "did you mean 'hospitals'"),
        ("name: a\nhost: h\nport: 1\nhospitals: [North]\n", "hospitals.0"),
        (": : :", "not YAML"),
    ],
)
def test_a_wrong_federation_file_is_one_line(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "federation.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"federation\.yaml") as refused:
        read_federation(path)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_tls_with_the_kit_and_the_server_certificate(home: Home) -> None:
    """A peer that trusts only the authority accepts the server, and no other authority's server."""
    other = Home(home.path.parent / "other")
    provision(FEDERATION, other)
    assert handshake(home, home) == "TLSv1.3"
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(home, other)


def handshake(server: Home, trusted: Home) -> str | None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server.server_certificate, server.server_key)
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        connection, _ = listener.accept()
        try:
            context.wrap_socket(connection, server_side=True).close()
        except (ssl.SSLError, OSError):
            connection.close()

    threading.Thread(target=accept, daemon=True).start()
    client = ssl.create_default_context(cafile=str(trusted.ca_certificate))
    with (
        socket.create_connection(listener.getsockname()) as plain,
        client.wrap_socket(plain, server_hostname="127.0.0.1") as secured,
    ):
        version = secured.version()
    listener.close()
    return version


def test_the_authority_cannot_be_used_as_a_server_and_the_server_signs_nothing(home: Home) -> None:
    ca, server = (
        x509.load_pem_x509_certificate(path.read_bytes())
        for path in (home.ca_certificate, home.server_certificate)
    )
    assert ca.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    assert not server.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    server.verify_directly_issued_by(ca)


def test_nothing_of_a_kit_is_needed_at_the_coordinator(home: Home) -> None:
    shutil.rmtree(home.path / "hospitals")
    assert home.roster().names() == ["east", "north"]
