"""Our side of the comparison: `coordinator start`, `hospital start` and `coordinator run`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from _federation import HOSPITALS, Measured, make_home
from _processes import QUIET, BenchmarkFailed, Processes

from federation.schema import Experiment
from server_app import compose
from server_app.control import Control, Unreachable
from server_app.home import Home
from server_app.state import RunFolder

PROBE = Path(__file__).resolve().parent / "_probe"
_PROGRAMS = Path(sys.executable).parent
_SIZE = 64  # pixels of an image's edge
_CLASSES = 2
_PATIENTS = 24
_RUN = "bench"


def overrides(parameters: int, rounds: int) -> list[str]:
    """An experiment that trains one step a round: a network of one hidden layer of the right width."""
    hidden = max(1, round((parameters - _CLASSES) / (_SIZE * _SIZE + 1 + _CLASSES)))
    return [
        "task=chest_xray",
        f"task.size={_SIZE}",
        "model=mlp",
        f"model.hidden=[{hidden}]",
        "name=bench",
        f"rounds={rounds}",
        "training.local_steps=1",
        "training.batch_size=2",
        "training.optimizer=sgd",
        "evaluation.every=100000",
        "participation.deadline=600",
    ]


def experiment(parameters: int, rounds: int) -> Experiment:
    return compose.experiment(overrides(parameters, rounds))


@dataclass(frozen=True)
class Real:
    """A coordinator and hospitals whose processes run."""

    home: Home
    folder: Path
    processes: Processes

    def run(self, name: str, experiment: Sequence[str], *, seconds: float) -> RunFolder:
        """A run to its end, which must be a good one.

        Raises:
            BenchmarkFailed: it fails, or takes longer.
        """
        command = [_program("coordinator"), "run", *experiment, f"run={name}"]
        command += ["--home", str(self.home.path)]
        self.processes.start(name, command, {}, may_end=True)
        self.processes.wait(
            lambda: self.processes.ended(name) is not None, "the run", seconds=seconds
        )
        result = RunFolder(self.home.runs / name)
        if not result.path.exists() or result.status()["state"] != "completed":
            tail = self.processes.tail(name)
            raise BenchmarkFailed(f"our run failed:\n{tail}\n{_logs(self.folder)}")
        return result


@contextmanager
def federation(
    folder: Path, hospitals: Sequence[str] = HOSPITALS, traces: Path | None = None
) -> Iterator[Real]:
    """`coordinator start` and each `hospital start` in `folder`, until the context is left.

    Args:
        traces: where the probe writes what happened when; none for no probe.
    """
    home = make_home(folder / "coordinator", hospitals)
    sites = [_site(home, folder, name, shift) for shift, name in enumerate(hospitals)]
    environment = {}
    if traces is not None:
        traces.mkdir()
        environment = {
            "PYTHONPATH": f"{PROBE}{os.pathsep}{QUIET['PYTHONPATH']}",
            "CONSILIUM_PROBE": str(traces),
        }
    with Processes(folder / "logs", role) as processes:
        start = [_program("coordinator"), "start", "--home", str(home.path)]
        processes.start("coordinator", start, environment)
        processes.wait(home.services.exists, "the coordinator's services", seconds=120)
        for name, site in zip(hospitals, sites, strict=True):
            command = [_program("hospital"), "start", "--site", str(site)]
            processes.start(name, command, environment)
        processes.wait(lambda: _all_online(home, hospitals), "hospitals online", seconds=240)
        yield Real(home, folder, processes)


def measure(folder: Path, parameters: int, rounds: int, traces: Path | None = None) -> Measured:
    """Run our system in `folder`.

    Args:
        parameters: wished for; the result has those that the network really has.
        traces: as in `federation`.
    """
    with federation(folder, traces=traces) as real:
        result = real.run(_RUN, overrides(parameters, rounds), seconds=120 + 60 * rounds)
    return _read(result, dict(real.processes.peaks))


def _read(result: RunFolder, peaks: dict[str, int]) -> Measured:
    metrics = result.metrics()
    rows = [row for row in metrics if row["kind"] == "round"]
    # a round lasts until the next one starts, so that saving the model is part of it
    starts = [seconds_of(row["started"]) for row in rows]
    ends = [*starts[1:], starts[-1] + rows[-1]["seconds"]]
    down, up = traffic(rows[-1])
    checkpoint = result.load()
    if checkpoint is None:
        raise BenchmarkFailed(f"{result.path} has no model")
    return Measured(
        system="Consilium",
        parameters=sum(array.size for array in checkpoint.model.values()),
        # the last round's saving was not seen, so the last round is left out
        rounds=tuple(
            end - start - max(h["seconds"] for h in row["hospitals"].values())
            for start, end, row in zip(starts, ends, rows, strict=True)
        )[:-1],
        bytes_down=down,
        bytes_up=up,
        peaks=peaks,
    )


def traffic(row: dict[str, Any]) -> tuple[int, int]:
    """Largest bytes down and up of a hospital in a round's row.

    Raises:
        BenchmarkFailed: a hospital was left out.
    """
    hospitals = row["hospitals"].values()
    if any(hospital["status"] != "ok" for hospital in hospitals):
        raise BenchmarkFailed(f"a hospital was left out: {json.dumps(row)}")
    return max(h["bytes_down"] for h in hospitals), max(h["bytes_up"] for h in hospitals)


def seconds_of(text: str) -> float:
    """A row's time since 1970."""
    return datetime.fromisoformat(text).timestamp()


def _site(home: Home, folder: Path, name: str, shift: int) -> Path:
    """A hospital with phantom radiographs; the path of its configuration."""
    place = folder / name
    subprocess.run(
        [_program("hospital"), "phantom", "--task", "chest_xray", "--patients", str(_PATIENTS),
         "--out", str(place / "phantoms"), "--site", str(shift)],
        env={**os.environ, **QUIET}, check=True, stdout=subprocess.DEVNULL, timeout=300,
    )  # fmt: skip
    content = {
        "hospital": name,
        "kit": str(home.kit(name)),
        "state": "state",
        "device": "cpu",
        "threads": 1,
        "data": {
            "root": "phantoms/images",
            "layout": "dicom",
            "labels": "phantoms/labels.csv",
        },
    }
    (place / "site.yaml").write_text(yaml.safe_dump(content))
    return place / "site.yaml"


def _all_online(home: Home, hospitals: Sequence[str]) -> bool:
    try:
        with Control(home) as control:
            states = control.hospitals(home.roster().members)
    except Unreachable:
        return False
    return all(states.get(name) == "online" for name in hospitals)


def role(command: Sequence[str]) -> str | None:
    line = " ".join(command)
    for mark, role in (
        ("flower-superlink", "SuperLink"),
        ("server_app.superlink", "SuperLink"),
        ("flwr-serverapp", "ServerApp"),
        ("flower-superexec", "SuperExec (coordinator)"),
        ("client_app.supernode", "SuperNode"),
        ("client_app.superexec", "SuperExec (hospital)"),
        ("multiprocessing.forkserver", "ClientApp"),
    ):
        if mark in line:
            return role
    return None


def _logs(folder: Path) -> str:
    paths = [*folder.glob("coordinator/logs/*.log"), *folder.glob("*/state/logs/*.log")]
    errors = [*folder.glob("*/state/errors.jsonl")]
    return "\n".join(
        f"--- {p.name}\n{p.read_text(errors='replace')[-2000:]}" for p in paths + errors
    )


def _program(name: str) -> str:
    return str(_PROGRAMS / name)
