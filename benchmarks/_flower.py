"""Flower's own side of the comparison: its FedAvg, its processes, its defaults.

Its ClientApp imports NumPy and nothing else and adds a constant: a hospital's real one would import
PyTorch and MONAI for every message, so the comparison is in Flower's favour.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from math import prod
from pathlib import Path

from _federation import HOSPITALS, LOOPBACK, Measured, make_home, node_key
from _processes import QUIET, BenchmarkFailed, Processes

from federation.processes import free_port, listens
from server_app.control import Control
from server_app.home import Home

_PROGRAMS = Path(sys.executable).parent

_PYPROJECT = """\
[project]
name = "stock"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "bench"

[tool.flwr.app.components]
serverapp = "stock.server:app"
clientapp = "stock.client:app"

[tool.flwr.app.config]
rounds = 3
"""

_SERVER = '''\
import json
import os
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


class Timed(FedAvg):
    """FedAvg that notes when its rounds start."""

    def __init__(self):
        super().__init__(fraction_evaluate=0.0, min_train_nodes=2, min_available_nodes=2)
        self.starts = []

    def configure_train(self, server_round, arrays, config, grid):
        self.starts.append(time.time())
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        assert len(replies) == 2 and not any(reply.has_error() for reply in replies)
        return super().aggregate_train(server_round, replies)


@app.main()
def main(grid, context):
    shapes = json.loads(os.environ["STOCK_SHAPES"])
    rng = np.random.default_rng(0)
    arrays = ArrayRecord([rng.standard_normal(shape, dtype=np.float32) for shape in shapes])
    strategy = Timed()
    strategy.start(
        grid=grid, initial_arrays=arrays, num_rounds=int(context.run_config["rounds"])
    )
    out = Path(os.environ["STOCK_RESULT"])
    out.with_suffix(".part").write_text(json.dumps([*strategy.starts, time.time()]))
    out.with_suffix(".part").replace(out)
'''

_CLIENT = """\
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message, context):
    # not the same constant everywhere: Flower would send equal arrays of two hospitals only once
    step = float(context.node_config["step"])
    arrays = [array + step for array in message.content["arrays"].to_numpy_ndarrays()]
    content = RecordDict(
        {"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 1})}
    )
    return Message(content=content, reply_to=message)
"""


def measure(folder: Path, shapes: Sequence[tuple[int, ...]], rounds: int) -> Measured:
    """Run stock Flower in `folder` on float32 arrays of these shapes."""
    home = make_home(folder / "home")
    result = folder / "starts.json"
    app = _write_app(folder / "app")
    address = f"{LOOPBACK}:{home.federation().port}"
    with Processes(folder / "logs", _role) as processes:
        processes.start("superlink", _superlink(home), _environment(folder, "superlink"))
        processes.wait(
            lambda: listens(LOOPBACK, home.federation().port), "the SuperLink", seconds=120
        )
        processes.start(
            "superexec",
            _superexec(address, home.superexec_secret, home.ca_certificate),
            _environment(folder, "superexec")
            | {"STOCK_SHAPES": json.dumps(shapes), "STOCK_RESULT": str(result)},
        )
        with Control(home) as control:
            control.register(home.roster().members)
            for number, name in enumerate(HOSPITALS, 1):
                _start_hospital(processes, home, folder, name, step=0.01 * number)
            members = home.roster().members
            processes.wait(
                lambda: list(control.hospitals(members).values()) == ["online"] * len(members),
                "hospitals online",
                seconds=120,
            )
            run = _start_run(app, home, folder, rounds)
            processes.wait(
                lambda: result.exists() or control.run(run).finished,
                "the run",
                seconds=120 + 120 * rounds,
            )
        if not result.exists():
            raise BenchmarkFailed(
                f"stock Flower's run failed:\n{processes.tail('superexec')}\n"
                f"{processes.tail('superlink')}"
            )
    marks = json.loads(result.read_text())
    payload = sum(_npy_size(shape) for shape in shapes)
    return Measured(
        system="Flower",
        parameters=sum(prod(shape) for shape in shapes),
        rounds=tuple(end - start for start, end in itertools.pairwise(marks))[:-1],
        bytes_down=payload,
        bytes_up=payload,
        peaks=dict(processes.peaks),
    )


def _npy_size(shape: tuple[int, ...]) -> int:
    """Bytes of a float32 array as Flower sends it, in NumPy's file format."""
    return 4 * prod(shape) + 128


def _superlink(home: Home) -> list[str]:
    return [
        _program("flower-superlink"),
        "--host", LOOPBACK, "--port", str(home.federation().port),
        "--ssl-ca-certfile", str(home.ca_certificate),
        "--ssl-certfile", str(home.server_certificate),
        "--ssl-keyfile", str(home.server_key),
        "--enable-supernode-auth",
        "--isolation", "process",
        "--superexec-auth-secret-file", str(home.superexec_secret),
        "--disable-runtime-dependency-installation",
        "--database", str(home.database),
    ]  # fmt: skip


def _start_hospital(
    processes: Processes, home: Home, folder: Path, name: str, *, step: float
) -> None:
    """As ours: the SuperExec reaches its SuperNode over loopback without TLS, with a secret."""
    runtime = f"{LOOPBACK}:{free_port()}"
    supernode = [
        _program("flower-supernode"),
        "--superlink", f"{LOOPBACK}:{home.federation().port}",
        "--root-certificates", str(home.ca_certificate),
        "--auth-supernode-private-key", str(node_key(home, name)),
        "--isolation", "process",
        "--superexec-auth-secret-file", str(home.superexec_secret),
        "--host", LOOPBACK, "--port", runtime.rpartition(":")[2],
        "--node-config", f"step={step}",
    ]  # fmt: skip
    label = f"{name}-supernode"
    processes.start(label, supernode, _environment(folder, label))
    label = f"{name}-superexec"
    command = _superexec(runtime, home.superexec_secret, None)
    processes.start(label, command, _environment(folder, label) | {"STOCK_HOSPITAL": name})


def _superexec(address: str, secret: Path, certificates: Path | None) -> list[str]:
    tls = ["--insecure"] if certificates is None else ["--root-certificates", str(certificates)]
    return [
        _program("flower-superexec"),
        "--runtime-api-address", address,
        *tls,
        "--superexec-auth-secret-file", str(secret),
    ]  # fmt: skip


def _start_run(app: Path, home: Home, folder: Path, rounds: int) -> int:
    """`flwr run`; the Flower run id."""
    environment = _environment(folder, "flwr")
    Path(environment["FLWR_HOME"], "config.toml").write_text(
        f'[superlink]\ndefault = "bench"\n\n[superlink.bench]\n'
        f'address = "{LOOPBACK}:{home.federation().port}"\n'
        f'root-certificates = "{home.ca_certificate.resolve()}"\n'
    )
    (folder / "run.toml").write_text(f"rounds = {rounds}\n")
    done = subprocess.run(
        [_program("flwr"), "run", ".", "bench", "--format", "json",
         "--run-config", str(folder / "run.toml")],
        check=False, cwd=app, env={**os.environ, **QUIET, **environment},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    try:
        answer = json.loads(done.stdout[done.stdout.index("{") :])
        return int(answer["run-id"])
    except (ValueError, KeyError) as error:
        raise BenchmarkFailed(f"flwr run: {done.stdout}{done.stderr}") from error


def _write_app(folder: Path) -> Path:
    package = folder / "stock"
    package.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(_PYPROJECT)
    (package / "__init__.py").write_text("")
    (package / "server.py").write_text(_SERVER)
    (package / "client.py").write_text(_CLIENT)
    return folder


def _environment(folder: Path, name: str) -> dict[str, str]:
    home = folder / "flwr" / name
    home.mkdir(parents=True)
    return {
        "FLWR_HOME": str(home.resolve()),
        "PATH": f"{_PROGRAMS}{os.pathsep}{os.environ.get('PATH', '')}",
    }


def _role(command: Sequence[str]) -> str | None:
    line = " ".join(command)
    for mark, role in (
        ("flower-superlink", "SuperLink"),
        ("flwr-serverapp", "ServerApp"),
        ("flower-supernode", "SuperNode"),
        ("flwr-clientapp", "ClientApp"),
    ):
        if mark in line:
            return role
    if "flower-superexec" in line:
        return (
            "SuperExec (coordinator)"
            if "--root-certificates" in command
            else "SuperExec (hospital)"
        )
    return None


def _program(name: str) -> str:
    return str(_PROGRAMS / name)
