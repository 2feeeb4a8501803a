"""What the coordinator keeps of the hospitals' ledgers: with it a hospital notices an older copy.

    lodgings/HOSPITAL.json   how many charges that ledger had when last heard of, and the last's hash

They outlive every run: a ledger is the patients', whatever is made of their images. A count never
falls. A hospital that lost its ledger for good, and its patients' key with it, begins anew only when
the coordinator's people delete its file here, after they have spoken to it.
"""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from federation.messages import Lodged
from federation.schema import ConfigError
from server_app.state import write_atomically


@dataclass(frozen=True)
class Lodgings:
    """The files in one folder, which is made with the first. Several runs may use them at once."""

    folder: Path

    def of(self, hospitals: Iterable[str]) -> dict[str, Lodged]:
        """What was lodged, of those hospitals whose ledger was heard of.

        Raises:
            ConfigError: a file that was damaged.
        """
        known = {name: self._read(name) for name in hospitals}
        return {name: lodged for name, lodged in known.items() if lodged is not None}

    def keep(self, heard: Mapping[str, Lodged]) -> None:
        """Have these on the disk, but for those of which more was heard already.

        Raises:
            ConfigError: a file that was damaged.
        """
        if not heard:
            return
        self.folder.mkdir(mode=0o750, exist_ok=True)
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another run's process may be at it
            for name, lodged in heard.items():
                known = self._read(name)
                if known is None or lodged.charges > known.charges:
                    write_atomically(self._file(name), json.dumps(asdict(lodged)).encode())

    def _file(self, hospital: str) -> Path:
        return self.folder / f"{hospital}.json"

    def _read(self, hospital: str) -> Lodged | None:
        path = self._file(hospital)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        lodged = parse(content)
        if lodged is None:
            raise ConfigError(
                f"{path} is damaged: bring it back from a backup, or delete it; without it the next "
                f"run cannot tell {hospital} that its ledger is an older copy"
            )
        return lodged


def agrees(said: Lodged, lodged: Lodged | None) -> bool:
    """Whether a ledger of which `said` is told can be the one that `lodged` was told of before."""
    if lodged is None:
        return True
    return said.charges > lodged.charges or said == lodged


def parse(content: bytes | str) -> Lodged | None:
    """What `keep` wrote; None if it is anything else."""
    try:
        lodged = Lodged(**json.loads(content))
    except (ValueError, TypeError):
        return None
    whole = type(lodged.charges) is int and lodged.charges >= 0
    digest = isinstance(lodged.head, str) and re.fullmatch(r"[0-9a-f]{64}", lodged.head)
    return lodged if whole and digest else None
