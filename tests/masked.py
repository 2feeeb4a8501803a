"""What tests of rounds under masks share: an experiment, hospitals that crash, and what they kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import safetensors.numpy
from flwr.app import Error, RecordDict
from flwr.common.constant import ErrorCode

from federation import wire
from federation.messages import Arrays, Phase, Request
from federation.schema import Experiment
from server_app.aggregation import Gathered
from server_app.state import RunFolder
from tests.hospitals import MASKS, Hospitals, content

STEPS = (Phase.ADVERTISE, Phase.SHARE, Phase.WORK, Phase.SIGN, Phase.OPEN)
CRASH = Error(ErrorCode.UNKNOWN, "a ClientApp that was ended")


def masked(**changes: Any) -> Experiment:
    return content(secure_aggregation=MASKS, **changes)


def gather(made: Hospitals, of: Experiment, run: str) -> Gathered:
    """The first round's sum, without anything that the conductor does with it."""
    folder, conductor, start = made.conductor(of, run)
    request = Request(folder.name, 1, evaluate=False, train=True)
    return conductor.aggregation.gather(conductor.hospitals, request, start)


def same(one: Arrays, other: Arrays) -> None:
    assert one.keys() == other.keys()
    for name, array in other.items():
        np.testing.assert_array_equal(one[name], array, err_msg=name)


def kept(made: Hospitals, name: str, of: Experiment) -> tuple[Arrays, int]:
    """The update of a hospital's newest answer on its disk, and how many patients it is of."""
    files = sorted(
        (made.sites[name].state / "answers").iterdir(), key=lambda f: f.stat().st_mtime_ns
    )
    records = wire.records_from_bytes(files[-1].read_bytes())
    return safetensors.numpy.load(wire.blob(records)), int(records["head"]["patients"])  # type: ignore[arg-type]


def rows(made: Hospitals, run: str) -> list[dict[str, Any]]:
    return RunFolder(made.folder / "runs" / run).metrics()


def crashing(at: Phase) -> Any:
    def meddle(request: Request, records: RecordDict, answer: Any) -> Any:
        return CRASH if request.phase is at else answer(records)

    return meddle


def steps(made: Hospitals) -> list[tuple[Phase, int]]:
    """Steps in their order, and how many hospitals were asked in each."""
    asked: list[tuple[Phase, int]] = []
    for _, request, _ in made.asked:
        if asked and asked[-1][0] is request.phase:
            asked[-1] = (request.phase, asked[-1][1] + 1)
        else:
            asked.append((request.phase, 1))
    return asked
