"""Makes a federation: an authority, the server's certificate, keys and a kit for each hospital.

Private keys are files of mode 0600. In this version the hospitals' keys are made here and travel in
their kits; hand a kit over on a way that only its hospital can read, and delete it here afterwards.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import os
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from federation import roster
from federation.roster import Member, Roster
from federation.schema import ConfigError
from server_app.home import Federation, Home

CA_LIFETIME = timedelta(days=3650)
SERVER_LIFETIME = timedelta(days=397)

PrivateKey = ec.EllipticCurvePrivateKey | Ed25519PrivateKey


def provision(federation: Federation, home: Home) -> Roster:
    """Fill an empty folder with all that a federation needs.

    Raises:
        ConfigError: the folder holds something already, or hospitals' names repeat.
    """
    if len(set(federation.hospitals)) != len(federation.hospitals):
        raise ConfigError("federation.yaml: a hospital is named twice")
    if home.path.exists() and any(home.path.iterdir()):
        raise ConfigError(f"{home.path} is not empty; choose another --home")
    home.path.mkdir(parents=True, exist_ok=True)
    home.path.chmod(0o700)
    home.runs.mkdir()

    identity = Ed25519PrivateKey.generate()
    _write_secret(home.path / "identity.key", _pem(identity))
    _write_secret(home.superexec_secret, secrets.token_hex(32).encode())
    ca_key = _certificates(federation, home)
    _write_secret(home.path / "ca.key", _pem(ca_key))

    keys = {name: (ec.generate_private_key(ec.SECP384R1()), Ed25519PrivateKey.generate())
            for name in federation.hospitals}  # fmt: skip
    members = [_member(name, node, own) for name, (node, own) in sorted(keys.items())]
    signed = Roster(federation.name, tuple(members))
    content = roster.sign(signed, identity)
    (home.path / "roster.json").write_bytes(content)
    public = identity.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for name, (node, own) in keys.items():
        kit = home.kit(name)
        kit.mkdir(parents=True)
        kit.chmod(0o700)
        _write_secret(
            kit / "node.key",
            node.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()),
        )
        _write_secret(kit / "identity.key", _pem(own))
        (kit / "roster.json").write_bytes(content)
        (kit / "coordinator.pub").write_bytes(public)
        (kit / "ca.crt").write_bytes(home.ca_certificate.read_bytes())
        (kit / "kit.json").write_text(
            json.dumps({
                "federation": federation.name,
                "hospital": name,
                "superlink": f"{federation.host}:{federation.port}",
            }, indent=1)
        )  # fmt: skip
    # Last, so that a folder with this file is a whole one.
    (home.path / "federation.yaml").write_text(
        yaml.safe_dump(federation.model_dump(), sort_keys=False)
    )
    return signed


def _member(name: str, node: ec.EllipticCurvePrivateKey, own: Ed25519PrivateKey) -> Member:
    node_key = node.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    raw = own.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return Member(name, node_key, base64.b64encode(raw).decode())


def _certificates(federation: Federation, home: Home) -> ec.EllipticCurvePrivateKey:
    """Write ca.crt, server.crt and server.key; the authority's key is returned."""
    ca_key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Consilium {federation.name}")])
    now = datetime.now(UTC) - timedelta(minutes=5)  # clocks differ a little between sites
    ca = (
        x509.CertificateBuilder()
        .subject_name(authority)
        .issuer_name(authority)
        .public_key(ca_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + CA_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )
    server = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, federation.host)]))
        .issuer_name(authority)
        .public_key(server_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + SERVER_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(_names(federation.host)), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )
    home.ca_certificate.write_bytes(ca.public_bytes(Encoding.PEM))
    home.server_certificate.write_bytes(server.public_bytes(Encoding.PEM))
    _write_secret(home.server_key, _pem(server_key))
    return ca_key


def _names(host: str) -> list[x509.GeneralName]:
    """The names under which the SuperLink is reached: by hospitals, and from its own machine."""
    names: list[x509.GeneralName] = [x509.DNSName("localhost")]
    addresses = {"127.0.0.1"}
    try:
        addresses.add(str(ipaddress.ip_address(host)))
    except ValueError:
        names.append(x509.DNSName(host))
    return names + [x509.IPAddress(ipaddress.ip_address(a)) for a in sorted(addresses)]


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, serialization.PrivateFormat.PKCS8, NoEncryption())


def _write_secret(path: Path, content: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
