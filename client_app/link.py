"""The line between a hospital's two containers: SuperNode's Runtime API, and the SuperExec that asks it.

In one machine's process tree it is loopback. In containers only the SuperNode has a way out, and only
the SuperExec sees images, and they meet on a network that ends at the two. Whoever comes first makes a
secret and a TLS certificate in a folder that both see and nobody else; Compose keeps it in memory, so
that both are fresh whenever the hospital starts.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from federation.schema import ConfigError

LINK_VARIABLE = "CONSILIUM_LINK"  # the folder's path
HOST, PORT = "runtime", 9094  # the SuperNode's name on the inner network, and there alone
_LIFETIME = timedelta(days=3650)  # it ends with the containers


@dataclass(frozen=True)
class Link:
    """Files of the line. `certificate` is self-signed, and so its own authority."""

    folder: Path

    @property
    def secret(self) -> Path:
        return self.folder / "superexec.secret"

    @property
    def certificate(self) -> Path:
        return self.folder / "runtime.crt"

    @property
    def key(self) -> Path:
        return self.folder / "runtime.key"


def open_link(folder: Path) -> Link:
    """The line's files, made if they are not there. They appear whole or not at all.

    Raises:
        ConfigError: the folder is missing or cannot be written to.
    """
    made = folder / "link"
    try:
        handle = os.open(folder / "link.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be used ({error.strerror}): the SuperNode and the SuperExec of a hospital "
            f"need one folder that both can write to; name it with --link or {LINK_VARIABLE}"
        ) from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        if not made.exists():
            draft = Path(tempfile.mkdtemp(dir=folder, prefix=".draft-"))  # mode 0700
            try:
                _fill(Link(draft))
                draft.rename(made)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
    finally:
        os.close(handle)
    return Link(made)


def _fill(link: Link) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    now = datetime.now(UTC) - timedelta(minutes=5)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + _LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(HOST)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for path, content in (
        (link.secret, secrets.token_hex(32).encode()),
        (link.certificate, certificate.public_bytes(Encoding.PEM)),
        (link.key, pem),
    ):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
