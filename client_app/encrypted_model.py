"""`hospital model …`: models that only hospitals hold, for whoever may use them here.

    encrypted/RUN/run.json    the run's name and its experiment, beside its keys and its model

An exported model is a folder that `hospital predict` reads, like the one that a coordinator hands over
elsewhere. Nothing of it leaves the hospital but by the hands of whoever exports it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import safetensors.numpy
import typer
from rich.console import Console
from rich.table import Table

from client_app.encrypted_state import EncryptedRun, State
from client_app.policy import Refused
from client_app.private_file import printable, write_private
from client_app.site import SITE_VARIABLE, read_site
from federation.command_line import options
from federation.schema import ConfigError, Experiment

app = typer.Typer(
    **options("Models of runs under secure_aggregation=ckks, which only hospitals hold.")
)
console = Console()

SiteOption = Annotated[
    Path, typer.Option("--site", envvar=SITE_VARIABLE, help="The hospital's own configuration.")
]
DEFAULT_SITE = Path("site.yaml")


@dataclass(frozen=True)
class Record:
    """What a model is of. `experiment`: as `Experiment.canonical` writes it."""

    run: str
    experiment: str
    experiment_sha256: str

    @classmethod
    def of(cls, run: str, experiment: Experiment) -> Record:
        return cls(run, experiment.canonical(), experiment.sha256())

    def parsed(self) -> Experiment:
        """Raises ConfigError: of another version, or changed by hand."""
        return Experiment.from_canonical(self.experiment, self.experiment_sha256)


def keep_record(state: Path, record: Record) -> None:
    """Have it in the run's folder, once. Raises ConfigError: that cannot be written to."""
    file = EncryptedRun.of(state, record.run).folder / "run.json"
    if not file.exists():
        write_private(file, json.dumps(asdict(record)).encode())


@app.command(name="list")
def show(
    site: SiteOption = DEFAULT_SITE,
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON.")] = False,
) -> None:
    """The models held here, and after how many rounds.

    Example: hospital model list --site site.yaml
    """
    found = []
    for record in _records(read_site(site).state):
        experiment = record.parsed()
        held = _state(read_site(site).state, record)
        found.append(
            {
                "run": record.run,
                "task": experiment.task.name,
                "model": experiment.model.name,
                "round": 0 if held is None else held.round,
                "rounds": experiment.rounds,
            }
        )
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    if not found:
        console.print("no run under secure_aggregation=ckks has left a model here")
        return
    table = Table("run", "task", "model", "rounds")
    for row in found:
        rounds = f"{row['round']} of {row['rounds']}"
        table.add_row(*(printable(row[key]) for key in ("run", "task", "model")), rounds)
    console.print(table)


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="The run's name, as `hospital model list` shows it.")],
    out: Annotated[Path, typer.Option(help="Folder to make; `hospital predict` takes it.")],
    site: SiteOption = DEFAULT_SITE,
) -> None:
    """Write the model that this hospital holds of a run to a folder, for `hospital predict`.

    Example: hospital model export monday --out monday
    """
    state = read_site(site).state
    known = {record.run: record for record in _records(state)}
    if run not in known:
        names = ", ".join(printable(name) for name in sorted(known)) or "none"
        raise ConfigError(f"no model of a run {printable(run)!r} is held here; held: {names}")
    record = known[run]
    experiment, held = record.parsed(), _state(state, record)
    if held is None:
        raise ConfigError(f"no round of {printable(run)} has been opened here yet")
    if out.exists():
        raise ConfigError(f"{out} is there already; name another --out")
    weights = safetensors.numpy.save(held.model, {"round": str(held.round)})
    described = {"run": record.run, "experiment_sha256": record.experiment_sha256}
    write_private(out / "experiment.json", record.experiment.encode())
    write_private(out / "run.json", json.dumps(described, indent=1).encode())
    write_private(out / "model.safetensors", weights)
    console.print(
        f"{out}: the model after {held.round} of {experiment.rounds} rounds; "
        f"hospital predict {out} SERIES",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _records(state: Path) -> Iterator[Record]:
    for file in sorted((state / "encrypted").glob("*/run.json")):
        try:
            yield Record(**json.loads(file.read_bytes()))
        except (OSError, ValueError, TypeError):
            raise ConfigError(
                f"{file} is damaged; remove it, and the next round writes it anew"
            ) from None


def _state(state: Path, record: Record) -> State | None:
    try:
        return EncryptedRun.of(state, record.run).state(record.experiment_sha256)
    except Refused as error:
        raise ConfigError(
            f"the model held of {printable(record.run)} is of another experiment: {error.reason}"
        ) from None
