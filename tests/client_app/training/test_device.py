"""Which device a name stands for, with and without a GPU."""

from __future__ import annotations

import os

import pytest
import torch

from client_app.training.device import feeding_processes, pick_device
from federation.schema import ConfigError


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    count: int = request.param
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize("gpus", [0], indirect=True)
@pytest.mark.usefixtures("gpus")
def test_without_a_gpu_auto_is_the_cpu_and_cuda_is_refused() -> None:
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")
    for name in ("cuda", "cuda:0"):
        with pytest.raises(ConfigError, match=f"'{name}', but no GPU .* device=auto"):
            pick_device(name)


@pytest.mark.parametrize("gpus", [2], indirect=True)
@pytest.mark.usefixtures("gpus")
def test_with_gpus_auto_is_the_first() -> None:
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda", 0)
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"2 GPU\(s\) are usable"):
        pick_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "CPU", "cpu:0", "cuda:-1", ""])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="use auto, cpu, cuda or cuda:N"):
        pick_device(name)


def test_a_gpu_is_fed_by_processes_and_a_cpu_is_left_to_train(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    assert feeding_processes(torch.device("cpu"), None) == 0
    assert feeding_processes(torch.device("cuda", 0), None) == 5
    assert feeding_processes(torch.device("cpu"), 3) == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert feeding_processes(torch.device("cuda", 0), None) == 8
