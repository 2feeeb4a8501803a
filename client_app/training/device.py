"""Which processor trains."""

from __future__ import annotations

import os
import re

import torch

from federation.schema import ConfigError


def pick_device(name: str) -> torch.device:
    """The device of this name.

    Args:
        name: `cpu`, `cuda`, `cuda:N`, or `auto`: the first GPU, and the CPU where there is none.

    Raises:
        ConfigError: no such name, or a GPU that this machine or this PyTorch lacks.
    """
    present = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda", 0) if present else torch.device("cpu")
    if name == "cpu":
        return torch.device("cpu")
    match = re.fullmatch(r"cuda(?::(\d+))?", name)
    if match is None:
        raise ConfigError(f"device is {name!r}: use auto, cpu, cuda or cuda:N")
    index = int(match[1] or 0)
    if index >= present:
        found = f"{present} GPU(s) are usable" if present else "no GPU is usable"
        raise ConfigError(
            f"device is {name!r}, but {found} here: check nvidia-smi and that PyTorch was "
            "built for CUDA, or use device=auto or device=cpu"
        )
    return torch.device("cuda", index)


def feeding_processes(device: torch.device, wanted: int | None) -> int:
    """How many processes prepare batches: as the site wants, or as the device needs.

    On a CPU none: they would take the cores that train. A GPU is fed by all cores but one, eight at
    the most.
    """
    if wanted is not None:
        return wanted
    return min(8, len(os.sched_getaffinity(0)) - 1) if device.type == "cuda" else 0
