"""The demo: hospitals with phantom images that differ, a federation of real processes, one run.

Everything runs on loopback and is taken down at the end, on Ctrl-C and on failure.
"""

from __future__ import annotations

import csv
import math
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console

from client_app.imaging import phantoms, public_images
from client_app.imaging.public_images import Dealt
from federation.command_line import runs_as
from federation.privacy import accounting
from federation.processes import free_port, wait_until
from federation.schema import ConfigError, Experiment
from server_app import compose
from server_app.control import Control, Unreachable
from server_app.home import Home

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("north", "east", "west", "south", "harbour", "valley", "hill", "lake")
SAMPLES_SEED = 10_001  # phantoms for the report that no hospital has
PUBLIC_SEED = 20_001  # and those that a hospital calls public

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console()


@app.command()
def demo(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Hydra overrides, such as rounds=3.")
    ] = None,
    hospitals: Annotated[int, typer.Option(min=2, max=len(NAMES), help="How many.")] = 3,
    patients: Annotated[
        int | None,
        typer.Option(
            min=20,
            help="Phantom patients a hospital; 70, 140 of size_skew; 240 under privacy.",
            show_default=False,
        ),
    ] = None,
    experiment: Annotated[str, typer.Option(help="One of configs/experiment/.")] = "demo",
    alpha: Annotated[
        float | None,
        typer.Option(help=f"Dirichlet's α of label_skew; {phantoms.ALPHA}.", show_default=False),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Public images to deal in place of phantoms.", show_default=False),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the run's folder and report go.")] = ROOT
    / "demo",
    keep: Annotated[bool, typer.Option("--keep", help="Leave the state folder.")] = False,
) -> None:
    """Train one model over hospitals that differ, and write the report.

    Examples: scripts/demo --hospitals 4 rounds=5 strategy=fedadam
    scripts/demo --experiment tumour_segmentation
    scripts/demo --experiment private_demo privacy.epsilon=3
    scripts/demo --experiment label_skew --alpha 0.1 strategy=fedavg
    scripts/demo --experiment scanner_skew --images ../shared/data/nih_cxr
    """
    if alpha is not None and experiment != "label_skew":
        raise ConfigError("--alpha goes with --experiment label_skew")
    if images is not None and patients is not None:
        raise ConfigError("--patients is how many phantoms are made, and --images has patients")
    chosen = [f"experiment={experiment}", *(overrides or [])]
    # composed here, so that a misspelt override is refused before anything is made
    composed = compose.experiment(chosen)
    task = composed.task.name
    if patients is None:
        patients = 70 if composed.privacy is None else 240
        if experiment == "size_skew":
            patients *= 2  # of which the smallest hospital gets a fifth
    out.mkdir(parents=True, exist_ok=True)
    state = Path(tempfile.mkdtemp(prefix="state-", dir=out))
    names = NAMES[:hospitals]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with ExitStack() as running:
            dealt = _dealt(state, experiment, task, names, patients, alpha, images)
            sites = [
                _hospital(state, composed, name, n, patients, dealt.get(name))
                for n, name in enumerate(names)
            ]
            home = _federation(state, names)
            _samples(state, task)
            _start(running, state, home, task, names, sites)
            run = f"demo-{time.strftime('%Y%m%d-%H%M%S')}"
            code = _run(home, [f"run={run}", *chosen])
            if (home.runs / run / "model.safetensors").exists():
                shutil.copytree(home.runs / run, out / run)
                _finish(home, run, out / run, state)
        if code:
            raise ConfigError(f"the run failed; logs are kept with --keep (exit code {code})")
    finally:
        if keep:
            console.print(f"state folder: {state}")
        else:
            shutil.rmtree(state, ignore_errors=True)


def _federation(state: Path, names: tuple[str, ...]) -> Home:
    """Provision from the public halves that the hospitals made, and hand the kits over."""
    console.rule("a federation")
    file = state / "federation.yaml"
    content = {"name": "demo", "host": "127.0.0.1", "port": free_port(), "hospitals": list(names)}
    file.write_text(yaml.safe_dump(content))
    home = Home(state / "coordinator")
    passphrase = state / "ca.passphrase"
    passphrase.write_text(secrets.token_hex(16))
    _command(
        "coordinator", "provision", str(file), "--identities", str(state / "identities"),
        "--home", str(home.path), "--passphrase-file", str(passphrase),
    )  # fmt: skip
    for name in names:
        shutil.copytree(home.kit(name), state / name / "kit")
    return home


def _dealt(
    state: Path,
    experiment: str,
    task: str,
    names: tuple[str, ...],
    patients: int,
    alpha: float | None,
    images: Path | None,
) -> dict[str, Dealt]:
    """Each hospital's public images, or phantoms whose hospitals differ in one thing alone."""
    folders = [state / name / "data" for name in names]
    alpha = phantoms.ALPHA if alpha is None else alpha
    if images is not None:
        parts = public_images.deal(images, task, experiment, folders, alpha=alpha)
        for name, part in zip(names, parts, strict=True):
            words = ", ".join(f"{count} {label}" for label, count in part.labels.items())
            told = f"{name}: {part.patients} patients, {part.images} images"
            console.print(f"{told}: {words}" if words else told)
        return dict(zip(names, parts, strict=True))
    if experiment not in phantoms.SKEWS:
        return {}
    made = phantoms.write_skewed(experiment, task, folders, patients=patients, alpha=alpha)
    dealt = {}
    for name, data in zip(names, made, strict=True):
        rows = list(csv.DictReader((data.root.parent / "labels.csv").read_text().splitlines()))
        counted = sorted(Counter(row["label"] for row in rows).items())
        words = ", ".join(f"{count} {label}" for label, count in counted)
        count = len({row["patient"] for row in rows})
        console.print(f"{name}: {count} patients; labels: {words}")
        dealt[name] = Dealt(data, count, len(rows))
    return dealt


def _hospital(
    state: Path,
    experiment: Experiment,
    name: str,
    number: int,
    patients: int,
    dealt: Dealt | None,
) -> Path:
    """A hospital's folder: images, labels, site configuration, keys and, for its budget, a ledger."""
    folder, task = state / name, experiment.task.name
    folder.mkdir(exist_ok=True)
    if dealt is None:
        # sizes differ, and so do scanners, ages and how frequent the finding is (the phantom's --site)
        count = patients + (number % 3 - 1) * patients // 4
        data = _phantoms(task, folder / "data", count, site=number, seed=number)
    else:
        count = dealt.patients
        data = {"data": dealt.data.model_dump(mode="json", exclude_defaults=True)}
    site = yaml.safe_load((ROOT / f"configs/site/{task}.yaml").read_text())
    site |= {"hospital": name, "threads": 1, **data}
    site["policy"]["smallest_group"] = 1  # of phantoms and public images nothing need be withheld
    if experiment.privacy is not None:
        site["privacy"] = _promise(experiment, count)
        if experiment.privacy.metrics == "public":
            public = _phantoms(task, folder / "public", 40, site=number, seed=PUBLIC_SEED + number)
            site["privacy"]["public"] = public["data"]
    path = folder / "site.yaml"
    path.write_text(yaml.safe_dump(site))
    _command(
        "hospital", "identity", "create", "--site", str(path), "--out", str(state / "identities"),
        quiet=True,
    )  # fmt: skip
    if experiment.privacy is not None:
        _command("hospital", "ledger", "create", "--site", str(path))
    return path


def _phantoms(task: str, folder: Path, patients: int, *, site: int, seed: int) -> dict[str, Any]:
    """Phantoms in a folder; the section of a site's configuration that says where they lie."""
    _command(
        "hospital", "phantom", "--task", task, "--patients", str(patients),
        "--site", str(site), "--seed", str(seed), "--out", str(folder),
    )  # fmt: skip
    section: dict[str, Any] = yaml.safe_load((folder / "site-data.yaml").read_text())
    return section


def _promise(experiment: Experiment, patients: int) -> dict[str, Any]:
    """A budget that this one run fits into, and about how many patients are trained on."""
    training = round(patients * (1 - experiment.evaluation.held_out))
    delta = min(1e-5, 1 / (10 * training))
    cost = accounting.epsilon(accounting.of_run(experiment), delta)
    return {"patients": training, "epsilon": max(8.0, math.ceil(cost)), "answer_every": 1.0}


def _samples(state: Path, task: str) -> None:
    """Phantoms that no hospital has; volumes as NIfTI, which the coordinator can read."""
    layout = ["--layout", "nifti"] if task in ("alzheimers", "tumour_segmentation") else []
    _command(
        "hospital", "phantom", "--task", task, "--patients", "30", *layout,
        "--seed", str(SAMPLES_SEED), "--out", str(state / "samples"), quiet=True,
    )  # fmt: skip


def _start(
    running: ExitStack,
    state: Path,
    home: Home,
    task: str,
    names: tuple[str, ...],
    sites: list[Path],
) -> None:
    console.rule("services")
    _service(running, state / "coordinator.log", "coordinator", "start", "--home", str(home.path))
    for site in sites:
        _service(running, site.parent / "hospital.log", "hospital", "start", "--site", str(site))
    # What IT does before the first round; it also reads the images into the cache.
    if not wait_until(lambda: _online(home) is not None, seconds=90):
        raise ConfigError("the SuperLink did not come up")
    _command("hospital", "check", "--site", str(sites[0]), "--task", task)
    if not wait_until(lambda: _online(home) == set(names), seconds=90):
        raise ConfigError("not all hospitals connected")
    console.print(f"connected: {', '.join(names)}")


def _run(home: Home, overrides: list[str]) -> int:
    console.rule("the run")
    return _call("coordinator", "run", *overrides, "--home", str(home.path))


def _finish(home: Home, run: str, folder: Path, state: Path) -> None:
    console.rule("the report")
    _command(
        "coordinator", "report", run, "--samples", str(state / "samples"), "--home", str(home.path),
        quiet=True,
    )  # fmt: skip
    shutil.copy(home.runs / run / "report.html", folder / "report.html")
    console.print(f"run folder  {folder}")
    console.print(f"report      {folder / 'report.html'}", style="bold")


def _online(home: Home) -> set[str] | None:
    """Connected hospitals, or None while the SuperLink is not up."""
    try:
        with Control(home) as control:
            states = control.hospitals(home.roster().members)
    except Unreachable:
        return None
    return {name for name, state in states.items() if state == "online"}


def _service(running: ExitStack, log: Path, *command: str) -> None:
    """A process that ends with the demo."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [_program(command[0]), *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches the demo, which ends its services in order
        )

    def end() -> None:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)

    running.callback(end)


def _command(*command: str, quiet: bool = False) -> None:
    if code := _call(*command, quiet=quiet):
        raise ConfigError(f"{' '.join(command[:2])} failed with exit code {code}")


def _call(*command: str, quiet: bool = False) -> int:
    output = subprocess.DEVNULL if quiet else None
    return subprocess.call([_program(command[0]), *command[1:]], stdout=output)


def _program(name: str) -> str:
    return str(Path(sys.executable).parent / name)


if __name__ == "__main__":
    sys.exit(runs_as("demo", app))
