"""The coordinator's folder: where everything of one federation lies at the coordinator.

federation.yaml   name, address and hospitals     roster.json      signed, see federation/roster.py
ca.crt ca.p12     the federation's authority      server.crt .key  the SuperLink's TLS certificate
identity.key      signs the roster                superexec.secret
database/         Flower's state                  runs/RUN/        see server_app/state.py
hospitals/NAME/   the kit for each hospital       logs/ flower/    of the processes
lodgings/         see server_app/lodgings.py      rosters/N.json   each version of the roster
sweeps/SWEEP.json see server_app/sweep.py         suspended.json   see server_app/suspensions.py
bundles/SHA256/   see server_app/signed_bundles.py STATE_VERSION   see federation/state_version.py

`ca.p12` is encrypted, and nothing that runs needs it: it may lie elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from pydantic import Field, StringConstraints

from federation import roster, state_version
from federation.roster import Member, Roster
from federation.schema import Closed, ConfigError, parse
from server_app.lodgings import Lodgings
from server_app.signed_bundles import SignedBundles
from server_app.suspensions import Suspensions

HOME_VARIABLE = "CONSILIUM_COORDINATOR"  # the folder's path, in the environment of its processes

HospitalName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,40}$")]


class Federation(Closed):
    """`federation.yaml`: who is in it or invited, and where hospitals dial to."""

    name: str = Field(pattern=r"^[a-z][a-z0-9-]{0,40}$")
    host: str = Field(pattern=r"^[A-Za-z0-9.-]+$", description="DNS name or IPv4 hospitals dial")
    port: int = Field(ge=1, le=65535)
    listen: str = Field(
        default="127.0.0.1",
        pattern=r"^[A-Za-z0-9.-]+$",
        description="IPv4 that the SuperLink binds, or a name by which the coordinator's own machines "
        "alone reach it",
    )
    listen_port: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="where it binds, if a front door has the other port",
    )
    hospitals: list[HospitalName] = Field(min_length=1)

    @property
    def bound_port(self) -> int:
        """The port of the SuperLink itself."""
        return self.listen_port or self.port


@dataclass(frozen=True)
class Home:
    """Paths of the coordinator's folder, and what is read from it."""

    path: Path

    @property
    def runs(self) -> Path:
        return self.path / "runs"

    @property
    def sweeps(self) -> Path:
        return self.path / "sweeps"

    @property
    def ca_certificate(self) -> Path:
        return self.path / "ca.crt"

    @property
    def ca_key(self) -> Path:
        """Where the authority's key lies unless it was put elsewhere."""
        return self.path / "ca.p12"

    @property
    def server_certificate(self) -> Path:
        return self.path / "server.crt"

    @property
    def server_key(self) -> Path:
        return self.path / "server.key"

    @property
    def superexec_secret(self) -> Path:
        return self.path / "superexec.secret"

    @property
    def database(self) -> Path:
        """In a folder of its own, which containers keep on a volume of its own."""
        return self.path / "database" / "superlink.db"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def flower(self) -> Path:
        return self.path / "flower"

    @property
    def lodgings(self) -> Lodgings:
        return Lodgings(self.path / "lodgings")

    @property
    def suspensions(self) -> Suspensions:
        return Suspensions(self.path / "suspended.json")

    @property
    def bundles(self) -> SignedBundles:
        return SignedBundles(self.path / "bundles")

    @property
    def services(self) -> Path:
        """Holds the process id of `coordinator start` while it runs."""
        return self.path / "services.pid"

    @property
    def kits(self) -> Path:
        return self.path / "hospitals"

    def kit(self, hospital: str) -> Path:
        return self.kits / hospital

    @property
    def roster_file(self) -> Path:
        return self.path / "roster.json"

    @property
    def rosters(self) -> Path:
        """Every version of the roster, as N.json."""
        return self.path / "rosters"

    def federation(self) -> Federation:
        """Raises ConfigError: not a provisioned folder, or newer code made it."""
        file = self.path / "federation.yaml"
        state_version.require(self.path, "coordinator")
        if not file.exists():
            raise ConfigError(
                f"{self.path} is not a coordinator's folder; make one with: "
                f"coordinator provision FILE --home {self.path}, or name yours with --home"
            )
        return read_federation(file)

    def identity(self) -> Ed25519PrivateKey:
        """The coordinator's own, by which rosters are signed. Raises ConfigError: there is none."""
        file = self.path / "identity.key"
        try:
            key = load_pem_private_key(file.read_bytes(), password=None)
        except (FileNotFoundError, ValueError, TypeError):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError(f"{file} is not an Ed25519 key; bring it back from a backup")
        return key

    def roster(self) -> Roster:
        """The newest.

        Raises:
            ConfigError: not a provisioned folder, a roster that was changed, or none yet.
        """
        newest = self.newest_roster()
        if newest is None:
            raise ConfigError(
                "no hospital is admitted yet: each sends the NAME.identity.json that hospital join "
                "makes; take it in with coordinator admit FILE"
            )
        return newest

    def newest_roster(self) -> Roster | None:
        """As `roster`; None where no hospital was ever admitted."""
        self.federation()
        if not self.roster_file.exists() and not any(self.rosters.glob("*.json")):
            return None
        return roster.read(self.roster_file, self.identity().public_key())

    def members(self) -> tuple[Member, ...]:
        """The hospitals on the newest roster, if any is on one yet. Raises ConfigError: as `roster`."""
        newest = self.newest_roster()
        return () if newest is None else newest.members

    def invited(self) -> list[str]:
        """Hospitals that have a kit and are not admitted yet."""
        admitted = {member.name for member in self.members()}
        return [name for name in self.federation().hospitals if name not in admitted]


def read_federation(path: Path) -> Federation:
    """Raises ConfigError: no such file, not YAML, or not a federation."""
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"there is no {path}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {str(error).splitlines()[0]}") from None
    return parse(Federation, content, where=path.name)
