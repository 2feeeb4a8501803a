"""Makes a federation: an authority, the server's certificate, a first roster, a kit for each hospital.

The only private keys that are made here are the coordinator's own, in files of mode 0600. A hospital's
are made at the hospital, and a kit holds nothing secret.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from federation.roster import Roster
from federation.schema import ConfigError
from server_app.home import Federation, Home
from server_app.membership import publish, read_identities

CA_LIFETIME = timedelta(days=3650)
SERVER_LIFETIME = timedelta(days=397)

PrivateKey = ec.EllipticCurvePrivateKey | Ed25519PrivateKey


def provision(federation: Federation, home: Home, identities: Path) -> Roster:
    """Fill an empty folder with all that a federation needs.

    Args:
        identities: folder with the public half of each hospital's keys (`hospital identity create`).

    Raises:
        ConfigError: the folder holds something already, hospitals' names repeat, or a public half is
            missing or cannot be used. Then nothing was made.
    """
    if len(set(federation.hospitals)) != len(federation.hospitals):
        raise ConfigError("federation.yaml: a hospital is named twice")
    if home.path.exists() and any(not _is_empty_folder(path) for path in home.path.iterdir()):
        raise ConfigError(f"{home.path} is not empty; choose another --home")
    members = read_identities(identities, federation.hospitals)
    home.path.mkdir(parents=True, exist_ok=True)
    home.path.chmod(0o700)
    for folder in (home.runs, home.lodgings.folder, home.database.parent):
        folder.mkdir(exist_ok=True)

    identity = Ed25519PrivateKey.generate()
    _write_secret(home.path / "identity.key", _pem(identity))
    _write_secret(home.superexec_secret, secrets.token_hex(32).encode())
    ca_key = _certificates(federation, home)
    _write_secret(home.path / "ca.key", _pem(ca_key))

    signed = Roster(federation.name, members)
    publish(home, federation, signed)
    return signed


def _is_empty_folder(path: Path) -> bool:
    """As a volume that a container will fill is."""
    return path.is_dir() and not any(path.iterdir())


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
        .add_extension(x509.SubjectAlternativeName(_names(federation)), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )
    home.ca_certificate.write_bytes(ca.public_bytes(Encoding.PEM))
    home.server_certificate.write_bytes(server.public_bytes(Encoding.PEM))
    _write_secret(home.server_key, _pem(server_key))
    return ca_key


def _names(federation: Federation) -> list[x509.GeneralName]:
    """The names under which the SuperLink is reached: by hospitals, and from its own machines."""
    names, addresses = ["localhost"], {"127.0.0.1"}
    for host in dict.fromkeys((federation.host, federation.listen)):
        try:
            addresses.add(str(ipaddress.ip_address(host)))
        except ValueError:
            if host != "localhost":
                names.append(host)
    return [x509.DNSName(name) for name in names] + [
        x509.IPAddress(ipaddress.ip_address(a)) for a in sorted(addresses)
    ]


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
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write_secret(path: Path, content: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
