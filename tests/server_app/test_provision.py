"""Provisioning: certificates a TLS peer accepts, secrets nobody else reads, a roster that is signed."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    load_pem_private_key,
    load_ssh_private_key,
)

from client_app import identity
from client_app.kit import read_kit
from client_app.site import Site
from federation import public_identity
from federation.public_identity import SUFFIX
from federation.schema import ConfigError, parse
from server_app import authority, membership
from server_app.control import Control
from server_app.home import Federation, Home, read_federation
from server_app.provision import provision, renew
from tests.provisioned import PASSPHRASE, provisioned

FEDERATION = Federation(name="test", host="127.0.0.1", port=9000, hospitals=["north", "east"])


STATES = {name: Path(name) / "state" for name in FEDERATION.hospitals}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    states = {name: tmp_path / state for name, state in STATES.items()}
    return provisioned(FEDERATION, Home(tmp_path / "coordinator"), states)


def site(kit: Path, hospital: str = "north") -> Site:
    data = {"root": "r", "layout": "dicom"}
    state = kit.parents[2] / hospital / "state"
    return parse(Site, {"hospital": hospital, "kit": kit, "state": state, "data": data})


def test_private_files_are_private_and_all_others_hold_no_secret(home: Home) -> None:
    secret = {"ca.p12", "server.key", "identity.key", "superexec.secret"}
    for path in home.path.rglob("*"):
        if path.is_file():
            assert (path.stat().st_mode & 0o077 == 0) == (path.name in secret), path
            assert (b"PRIVATE KEY" in path.read_bytes()) == (path.suffix == ".key"), path


def secrets_of(state: Path) -> list[bytes]:
    """A hospital's private keys in every form in which they could lie somewhere."""
    own = load_pem_private_key((state / "identity" / "identity.key").read_bytes(), None)
    node = load_ssh_private_key((state / "identity" / "node.key").read_bytes(), None)
    assert isinstance(own, Ed25519PrivateKey)
    assert isinstance(node, ec.EllipticCurvePrivateKey)
    number = node.private_numbers().private_value
    raws = [own.private_bytes_raw(), number.to_bytes(48, "big"), number.to_bytes(48, "little")]
    encoded = [base64.b64encode(raw).rstrip(b"=")[:-1] for raw in raws]
    files = [path.read_bytes() for path in (state / "identity").glob("*.key")]
    lines = [line for file in files for line in file.splitlines() if b"-----" not in line][:-1]
    # an OpenSSH file's first lines are public
    private = [line for line in lines if b"AAAAB" not in line and b"b3BlbnNzaC1r" not in line]
    return [*raws, *encoded, *(raw.hex().encode() for raw in raws), *private[:1]]


def test_no_private_key_of_a_hospital_is_at_the_coordinator(home: Home) -> None:
    names = set()
    for path in home.path.rglob("*"):
        if path.is_file():
            names.add(path.name)
            content = path.read_bytes()
            for state in STATES.values():
                for secret in secrets_of(home.path.parent / state):
                    assert secret not in content, path
    assert "node.key" not in names
    kit = {path.name for path in home.kit("north").iterdir()}
    assert kit == {"ca.crt", "coordinator.pub", "kit.json", "roster.json"}
    # and the scan finds them where they are
    own = home.path.parent / STATES["north"]
    hospitals = b"".join(path.read_bytes() for path in own.rglob("*.key"))
    assert any(secret in hospitals for secret in secrets_of(own))


def test_a_hospital_reads_its_kit(home: Home) -> None:
    north = site(home.kit("north"))
    kit = read_kit(north)
    assert (kit.federation, kit.superlink) == ("test", "127.0.0.1:9000")
    assert kit.roster().names() == ["east", "north"]
    assert (kit.roster().version, kit.roster().previous) == (1, "")
    assert identity.load(north).roster.sha256() == home.roster().sha256()


def test_another_hospitals_kit_and_a_damaged_one_are_refused(home: Home) -> None:
    with pytest.raises(ConfigError, match="kit of 'north', not of 'east'"):
        read_kit(site(home.kit("north"), "east"))
    for content in ("{", "[]", '{"federation": 1, "hospital": "north", "superlink": ""}'):
        (home.kit("north") / "kit.json").write_text(content)
        with pytest.raises(ConfigError, match="damaged"):
            read_kit(site(home.kit("north")))


def halves(folder: Path, *names: str) -> Path:
    """A folder with what these hospitals sent."""
    folder.mkdir()
    for name in names:
        content = public_identity.write(
            name, Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP384R1())
        )
        (folder / f"{name}{SUFFIX}").write_bytes(content)
    return folder


def refused(sent: Path, tmp_path: Path) -> str:
    home = Home(tmp_path / "none")
    with pytest.raises(ConfigError) as refusal:
        provision(FEDERATION, home, sent, passphrase=PASSPHRASE)
    assert not home.path.exists()
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_missing_halves_are_named_with_the_command(tmp_path: Path) -> None:
    for folder in (halves(tmp_path / "sent"), tmp_path / "nowhere"):
        said = refused(folder, tmp_path)
        assert "no public half of east, north: each of them runs hospital identity create" in said
    assert "no public half of east:" in refused(halves(tmp_path / "one", "north"), tmp_path)


def test_a_half_that_is_of_nobody_is_refused(tmp_path: Path) -> None:
    sent = halves(tmp_path / "sent", "north", "east", "mole")
    assert "is of no hospital in federation.yaml" in refused(sent, tmp_path)
    (sent / f"mole{SUFFIX}").rename(sent / f"\x1b[2Jx{SUFFIX}")
    assert "\x1b" not in refused(sent, tmp_path)


def test_a_half_under_another_hospitals_name_is_refused(tmp_path: Path) -> None:
    sent = halves(tmp_path / "sent", "north", "east")
    shutil.copy(sent / f"north{SUFFIX}", sent / f"east{SUFFIX}")
    assert "is of 'north'; a file has its hospital's name" in refused(sent, tmp_path)


@pytest.mark.parametrize("shared", ["identity", "node key"])
def test_one_key_for_two_hospitals_is_refused(shared: str, tmp_path: Path) -> None:
    sent = halves(tmp_path / "sent")
    own, node = Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP384R1())
    for name in FEDERATION.hospitals:
        content = public_identity.write(
            name,
            own if shared == "identity" else Ed25519PrivateKey.generate(),
            node if shared == "node key" else ec.generate_private_key(ec.SECP384R1()),
        )
        (sent / f"{name}{SUFFIX}").write_bytes(content)
    assert f"east and north have the same {shared}" in refused(sent, tmp_path)


def test_hostile_halves_are_refused(tmp_path: Path) -> None:
    sent = halves(tmp_path / "sent", "north", "east")
    path = sent / f"north{SUFFIX}"
    whole = path.read_bytes()
    other = json.loads((sent / f"east{SUFFIX}").read_bytes())
    swapped = json.loads(whole) | {"node_key": other["node_key"]}
    for content, words in (
        (b"", "is not the public half"),
        (b"[" * 10_000, "is not the public half"),
        (whole[:-20], "is not the public half"),
        (b" " * 100_000, "larger than"),
        (json.dumps(swapped).encode(), "a signature in it is wrong"),
    ):
        path.write_bytes(content)
        assert words in refused(sent, tmp_path)
    path.unlink()
    os.mkfifo(path)  # would be waited for
    assert "is not a file" in refused(sent, tmp_path)


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
    before = home.roster_file.read_bytes()
    with pytest.raises(ConfigError, match="not empty"):
        provision(
            FEDERATION, home, home.path.parent / "coordinator-identities", passphrase=PASSPHRASE
        )
    assert home.roster_file.read_bytes() == before


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
    provision(FEDERATION, other, home.path.parent / "coordinator-identities", passphrase=PASSPHRASE)
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


def test_the_certificate_has_the_name_behind_a_front_door_and_its_port_is_not_the_doors(
    tmp_path: Path,
) -> None:
    behind = FEDERATION.model_copy(
        update={"host": "fl.example.org", "listen": "superlink", "listen_port": 8000}
    )
    states = {name: tmp_path / state for name, state in STATES.items()}
    (tmp_path / "coordinator" / "database").mkdir(parents=True)  # volumes, with nothing in them
    home = provisioned(behind, Home(tmp_path / "coordinator"), states)
    certificate = x509.load_pem_x509_certificate(home.server_certificate.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fl.example.org", "localhost", "superlink"]
    assert home.federation().bound_port == 8000
    with Control(home) as control:
        assert control.address == "superlink:8000"
    kit = json.loads((home.kit("north") / "kit.json").read_text())
    assert kit["superlink"] == "fl.example.org:9000"


@pytest.mark.parametrize("listen", ["super link", "[::]", "a;b", ""])
def test_what_no_name_and_no_address_is_refused(listen: str) -> None:
    content = {**FEDERATION.model_dump(), "listen": listen}
    with pytest.raises(ConfigError, match="listen"):
        parse(Federation, content)


def test_the_authoritys_key_opens_with_its_passphrase_alone(home: Home) -> None:
    key, certificate = authority.unseal(home.ca_key, PASSPHRASE)
    assert key.public_key() == certificate.public_key()
    with pytest.raises(ConfigError, match="another passphrase"):
        authority.unseal(home.ca_key, PASSPHRASE + "x")
    content = home.ca_key.read_bytes()
    assert key.private_numbers().private_value.to_bytes(32, "big") not in content


def test_a_short_passphrase_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fewer than 12"):
        provision(FEDERATION, Home(tmp_path / "none"), passphrase="short")
    assert not (tmp_path / "none").exists()


def test_the_passphrase_comes_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "passphrase"
    file.write_text("from a file, long\n")
    monkeypatch.setenv(authority.PASSPHRASE_VARIABLE, "from the environment")
    assert authority.passphrase(file, new=True) == "from a file, long"
    assert authority.passphrase(None, new=True) == "from the environment"
    monkeypatch.delenv(authority.PASSPHRASE_VARIABLE)
    with pytest.raises(ConfigError, match="--passphrase-file"):
        authority.passphrase(None, new=False)


def test_an_authority_that_is_kept_elsewhere(tmp_path: Path) -> None:
    """Nothing daily needs it: hospitals are admitted and put out without, and it renews from there."""
    home, away = Home(tmp_path / "coordinator"), tmp_path / "stick" / "ca.p12"
    with pytest.raises(ConfigError, match="--ca-key"):
        provision(FEDERATION, home, passphrase=PASSPHRASE, ca_key=away)
    away.parent.mkdir()
    provision(FEDERATION, home, passphrase=PASSPHRASE, ca_key=away)
    assert not home.ca_key.exists()
    away.rename(away.with_suffix(".out"))
    membership.admit(home, *sorted(halves(tmp_path / "sent", "north", "east").iterdir()))
    membership.remove(home, "east")
    with pytest.raises(ConfigError, match="name it with --ca-key"):
        renew(home, PASSPHRASE)
    renew(home, PASSPHRASE, ca_key=away.with_suffix(".out"))


def test_a_renewed_certificate_is_taken_by_the_kits_that_are_out(home: Home) -> None:
    kit = (home.kit("north") / "ca.crt").read_bytes()
    before = home.server_certificate.read_bytes(), home.server_key.read_bytes()
    renew(home, PASSPHRASE)
    assert (home.kit("north") / "ca.crt").read_bytes() == kit
    after = home.server_certificate.read_bytes(), home.server_key.read_bytes()
    assert all(old != new for old, new in zip(before, after, strict=True))
    assert home.server_key.stat().st_mode & 0o777 == 0o600
    assert handshake(home, home) == "TLSv1.3"


def test_another_authoritys_key_renews_nothing(home: Home, tmp_path: Path) -> None:
    other = Home(tmp_path / "other")
    provision(FEDERATION, other, passphrase=PASSPHRASE)
    before = home.server_certificate.read_bytes()
    with pytest.raises(ConfigError, match="another authority's key"):
        renew(home, PASSPHRASE, ca_key=other.ca_key)
    assert home.server_certificate.read_bytes() == before


@pytest.mark.parametrize(
    ("listen", "names"),
    [
        ("superlink", {"localhost", "fl.example.org", "superlink"}),
        ("0.0.0.0", {"localhost", "fl.example.org"}),
    ],
)
def test_the_certificate_has_every_name_that_is_dialled(
    listen: str, names: set[str], tmp_path: Path
) -> None:
    home = Home(tmp_path / "named")
    told = FEDERATION.model_copy(update={"host": "fl.example.org", "listen": listen})
    provision(told, home, passphrase=PASSPHRASE)
    server = x509.load_pem_x509_certificate(home.server_certificate.read_bytes())
    found = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(found.get_values_for_type(x509.DNSName)) == names
    assert [str(one) for one in found.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
