"""Our side of the comparison: `coordinator start`, `hospital start` and `coordinator run`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
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


def measure(folder: Path, parameters: int, rounds: int, traces: Path | None = None) -> Measured:
    """Run our system in `folder`.

    Args:
        parameters: wished for; the result has those that the network really has.
        traces: where the probe writes what happened when; none for no probe.
    """
    home = make_home(folder / "coordinator")
    sites = [_site(home, folder, name, shift) for shift, name in enumerate(HOSPITALS)]
    environment = {}
    if traces is not None:
        traces.mkdir()
        environment = {
            "PYTHONPATH": f"{PROBE}{os.pathsep}{QUIET['PYTHONPATH']}",
            "CONSILIUM_PROBE": str(traces),
        }
    with Processes(folder / "logs", _role) as processes:
        at_home = ["--home", str(home.path)]
        processes.start("coordinator", [_program("coordinator"), "start", *at_home], environment)
        processes.wait(home.services.exists, "the coordinator's services", seconds=120)
        for name, site in zip(HOSPITALS, sites, strict=True):
            command = [_program("hospital"), "start", "--site", str(site)]
            processes.start(name, command, environment)
        processes.wait(lambda: _all_online(home), "hospitals online", seconds=120)
        run = [_program("coordinator"), "run", *overrides(parameters, rounds), f"run={_RUN}"]
        processes.start("run", [*run, *at_home], {})
        processes.wait(
            lambda: processes.ended("run") is not None,
            "the run",
            seconds=120 + 60 * rounds,
            may_end=["run"],
        )
        result = RunFolder(home.runs / _RUN)
        if not result.path.exists() or result.status()["state"] != "completed":
            raise BenchmarkFailed(f"our run failed:\n{processes.tail('run')}\n{_logs(folder)}")
    return _read(result, dict(processes.peaks))


def _read(result: RunFolder, peaks: dict[str, int]) -> Measured:
    metrics = result.metrics()
    rows = [row for row in metrics if row["kind"] == "round"]
    # a round lasts until the next one starts, so that saving the model is part of it
    starts = [_time(row["started"]) for row in rows]
    ends = [*starts[1:], starts[-1] + rows[-1]["seconds"]]
    down, up = _traffic(rows[-1])
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


def _traffic(row: dict[str, Any]) -> tuple[int, int]:
    hospitals = row["hospitals"].values()
    if any(hospital["status"] != "ok" for hospital in hospitals):
        raise BenchmarkFailed(f"a hospital was left out: {json.dumps(row)}")
    return max(h["bytes_down"] for h in hospitals), max(h["bytes_up"] for h in hospitals)


def _time(text: str) -> float:
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


def _all_online(home: Home) -> bool:
    try:
        with Control(home) as control:
            states = control.hospitals(home.roster().members)
    except Unreachable:
        return False
    return [states.get(name) for name in HOSPITALS] == ["online"] * len(HOSPITALS)


def _role(command: Sequence[str]) -> str | None:
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
