"""The bundles that runs of this federation brought, and who signed them.

    bundles/SHA256/bundle.fab           the bundle, once a run was started with it
    bundles/SHA256/fpk_….signature.json a reviewer's signature of it, see `federation.review`

A signature may be here before its bundle is.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from federation import review
from federation.review import SUFFIX, Signature
from federation.schema import ConfigError
from server_app.state import write_atomically

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class SignedBundles:
    """The files in one folder, which is made with the first."""

    folder: Path

    def keep(self, bundle: bytes) -> str:
        """Have a bundle on the disk; its SHA-256."""
        sha256 = hashlib.sha256(bundle).hexdigest()
        if self.bundle(sha256) is None:
            write_atomically(self._made(sha256) / "bundle.fab", bundle)
        return sha256

    def bundle(self, sha256: str) -> bytes | None:
        """The bundle of this hash; None where there is none, or what lies in its place is another."""
        if not _SHA256.fullmatch(sha256):
            return None
        try:
            content = (self.folder / sha256 / "bundle.fab").read_bytes()
        except FileNotFoundError:
            return None
        return content if hashlib.sha256(content).hexdigest() == sha256 else None

    def add(self, signature: Signature) -> Path:
        """Keep a signature that `review.read` gave, in the place of an older one by the same key.

        Raises:
            ConfigError: the bundle has as many signatures as Flower is given.
        """
        path = self._made(signature.bundle) / f"{signature.key_id}{SUFFIX}"
        if not path.exists() and len(self.signatures(signature.bundle)) >= review.MOST:
            raise ConfigError(f"{path.parent} holds {review.MOST} signatures already")
        write_atomically(path, signature.content())
        return path

    def signatures(self, sha256: str) -> Sequence[Signature]:
        """The signatures of a bundle, one a key, first signed first.

        A file that is damaged is left out: a hospital would refuse it, and the others' may suffice.
        """
        found = {}
        for path in sorted((self.folder / sha256).glob(f"*{SUFFIX}"))[: review.MOST]:
            try:
                signature = review.read(path)
            except ConfigError:
                continue
            if signature.bundle == sha256:
                found[signature.key_id] = signature
        return sorted(found.values(), key=lambda one: (one.signed_at, one.key_id))

    def known(self) -> list[str]:
        """SHA-256s of all bundles that are here or have a signature here."""
        if not self.folder.is_dir():
            return []
        return sorted(path.name for path in self.folder.iterdir() if _SHA256.fullmatch(path.name))

    def _made(self, sha256: str) -> Path:
        folder = self.folder / sha256
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        return folder
