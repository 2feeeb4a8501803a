"""Makes a federation: an authority, the server's certificate, a kit for each hospital.

The only private keys that are made here are the coordinator's own: the authority's encrypted, the others
in files of mode 0600. A hospital's are made at the hospital, and a kit holds nothing secret.
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

from federation import state_version
from federation.roster import Roster
from federation.schema import ConfigError
from server_app import authority
from server_app.home import Federation, Home
from server_app.membership import complete, publish, read_identities
from server_app.state import sync_folder, write_atomically

CA_LIFETIME = timedelta(days=3650)
SERVER_LIFETIME = timedelta(days=397)

PrivateKey = ec.EllipticCurvePrivateKey | Ed25519PrivateKey


def provision(
    federation: Federation,
    home: Home,
    identities: Path | None = None,
    *,
    passphrase: str,
    ca_key: Path | None = None,
) -> None:
    """Fill an empty folder with all that a federation needs.

    Args:
        identities: folder with the public half of each hospital's keys (`hospital identity create`), who
            are on the first roster then. None: each hospital has an invitation, and is admitted later.
        passphrase: under which the authority's key is encrypted.
        ca_key: where that key is to lie; None: in the folder.

    Raises:
        ConfigError: the folder holds something already, hospitals' names repeat, or a public half is
            missing or cannot be used. Then nothing was made.
    """
    if len(set(federation.hospitals)) != len(federation.hospitals):
        raise ConfigError("federation.yaml: a hospital is named twice")
    if home.path.exists() and any(not _is_empty_folder(path) for path in home.path.iterdir()):
        raise ConfigError(f"{home.path} is not empty; choose another --home")
    sealed = home.ca_key if ca_key is None else ca_key
    if ca_key is not None and (ca_key.exists() or not ca_key.parent.is_dir()):
        raise ConfigError(f"--ca-key {ca_key}: name a file that is not there, in a folder that is")
    authority.require_length(passphrase)
    members = None
    if identities is not None:
        members = read_identities(identities, federation.hospitals)
    home.path.mkdir(parents=True, exist_ok=True)
    home.path.chmod(0o700)
    state_version.settle(home.path, "coordinator")
    for folder in (home.runs, home.lodgings.folder, home.database.parent):
        folder.mkdir(exist_ok=True)

    identity = Ed25519PrivateKey.generate()
    _write_secret(home.path / "identity.key", _pem(identity))
    _write_secret(home.superexec_secret, secrets.token_hex(32).encode())
    key, certificate = _authority(federation)
    _write_secret(sealed, authority.seal(key, certificate, passphrase))
    home.ca_certificate.write_bytes(certificate.public_bytes(Encoding.PEM))
    _serve_with(home, *_server(federation, key, certificate))

    if members is None:
        complete(home, federation)
    else:
        publish(home, federation, Roster(federation.name, members))


def _is_empty_folder(path: Path) -> bool:
    """As a volume that a container will fill is."""
    return path.is_dir() and not any(path.iterdir())


def renew(home: Home, passphrase: str, *, ca_key: Path | None = None) -> x509.Certificate:
    """A new key and certificate for the server, by the same authority: no hospital notices.

    They count from the SuperLink's next start. Killed between its two files, the old certificate
    stands beside the new key and nothing can be served with them; once more mends it.

    Args:
        ca_key: where the authority's key lies; None: in the folder.

    Raises:
        ConfigError: that key does not open, is of another authority, or the authority has expired.
    """
    federation = home.federation()
    key, certificate = authority.unseal(ca_key or home.ca_key, passphrase)
    if certificate != x509.load_pem_x509_certificate(home.ca_certificate.read_bytes()):
        raise ConfigError(
            f"{ca_key or home.ca_key} is another authority's key than that of {home.ca_certificate}, "
            "which the hospitals hold"
        )
    if certificate.not_valid_after_utc <= datetime.now(UTC):
        raise ConfigError(
            f"the authority itself expired on {certificate.not_valid_after_utc:%Y-%m-%d}: hospitals "
            "need kits of a new federation (coordinator provision)"
        )
    server_key, server = _server(federation, key, certificate)
    _serve_with(home, server_key, server)
    return server


def _authority(federation: Federation) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Consilium {federation.name}")])
    begins = _begins()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + CA_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return key, certificate


def _server(
    federation: Federation, ca_key: ec.EllipticCurvePrivateKey, ca: x509.Certificate
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key, begins = ec.generate_private_key(ec.SECP256R1()), _begins()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, federation.host)]))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(min(begins + SERVER_LIFETIME, ca.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.SubjectAlternativeName(_names(federation.host, federation.listen)), critical=False
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )
    return key, certificate


def _serve_with(home: Home, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
    write_atomically(home.server_key, _pem(key), mode=0o600)
    write_atomically(home.server_certificate, certificate.public_bytes(Encoding.PEM))


def _begins() -> datetime:
    return datetime.now(UTC) - timedelta(minutes=5)  # clocks differ a little between sites


def _names(host: str, listen: str) -> list[x509.GeneralName]:
    """The names under which the SuperLink is reached: by hospitals, and by the coordinator's own side.

    In a network of containers that side dials a name (`listen: superlink`); an address to which
    all others are bound (0.0.0.0) is none that anybody dials.
    """
    names, addresses = {"localhost"}, {"127.0.0.1"}
    for one in (host, listen):
        try:
            address = ipaddress.ip_address(one)
        except ValueError:
            names.add(one)
        else:
            if not address.is_unspecified:
                addresses.add(str(address))
    return [
        *(x509.DNSName(name) for name in sorted(names)),
        *(x509.IPAddress(ipaddress.ip_address(address)) for address in sorted(addresses)),
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
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)
