"""The authority's key, `ca.p12`: PKCS #12, encrypted under a passphrase.

It signs the server's certificate and nothing else, once a year, so it is never in the clear on a disk,
and the file may be kept off the machine altogether (`--ca-key` on a medium that is taken out).
Key and certificate are encrypted by AES-256-CBC under PBKDF2 with 600,000 rounds of HMAC-SHA256;
`openssl pkcs12 -info -in ca.p12` reads it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import typer
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import PrivateFormat, pkcs12

from federation.schema import ConfigError

PASSPHRASE_VARIABLE = "CONSILIUM_CA_PASSPHRASE"  # noqa: S105 - its name
LEAST_LETTERS = 12
_ROUNDS = 600_000  # OWASP's figure for PBKDF2-HMAC-SHA256


def seal(key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate, passphrase: str) -> bytes:
    """The file's content."""
    encryption = (
        PrivateFormat.PKCS12.encryption_builder()
        .kdf_rounds(_ROUNDS)
        .key_cert_algorithm(pkcs12.PBES.PBESv2SHA256AndAES256CBC)
        .hmac_hash(hashes.SHA256())
        .build(passphrase.encode())
    )
    return pkcs12.serialize_key_and_certificates(b"authority", key, certificate, None, encryption)


def unseal(path: Path, passphrase: str) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """The key, and the certificate that it belongs to.

    Raises:
        ConfigError: no such file, another passphrase, or not what `seal` made.
    """
    try:
        key, certificate, _ = pkcs12.load_key_and_certificates(
            path.read_bytes(), passphrase.encode()
        )
    except FileNotFoundError:
        raise ConfigError(
            f"there is no {path}; where the authority's key lies elsewhere, name it with --ca-key"
        ) from None
    except ValueError:
        raise ConfigError(f"{path} does not open: another passphrase, or it is damaged") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or certificate is None:
        raise ConfigError(f"{path} is not an authority's key; coordinator provision makes it")
    return key, certificate


def passphrase(file: Path | None, *, new: bool) -> str:
    """From a file, the environment, or whoever sits at the terminal; the first of them that is there.

    Args:
        new: for a key that is being made: asked for twice, and not too short.

    Raises:
        ConfigError: there is nobody to ask, or it is too short.
    """
    if file is not None:
        try:
            said = file.read_text().rstrip("\r\n")
        except OSError as error:
            raise ConfigError(f"{file} cannot be read: {error.strerror}") from None
    elif PASSPHRASE_VARIABLE in os.environ:
        said = os.environ[PASSPHRASE_VARIABLE]
    elif sys.stdin.isatty():
        said = typer.prompt(
            "Passphrase of the authority's key", hide_input=True, confirmation_prompt=new, err=True
        )
    else:
        raise ConfigError(
            "the authority's key is encrypted, and nobody is there to be asked for its passphrase: give "
            f"it with --passphrase-file FILE or in {PASSPHRASE_VARIABLE}"
        )
    if new:
        require_length(said)
    return said


def require_length(said: str) -> None:
    """Raises ConfigError: a passphrase that is soon guessed."""
    if len(said) < LEAST_LETTERS:
        raise ConfigError(
            f"the passphrase has fewer than {LEAST_LETTERS} letters; take a longer one"
        )
