"""The task's metrics on held-out patients as sums with noise: all that may leave of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from client_app.imaging.image import Case
from client_app.training.feed import Items
from client_app.training.loop import predict, predicting
from federation.messages import Tallied
from federation.privacy.csprng import Csprng
from federation.privacy.mechanism import ClippedSum
from federation.tasks import Tally, Task


def tally(
    network: nn.Module,
    task: Task,
    cases: Sequence[Case],
    items: Items,
    *,
    device: torch.device,
    noise_multiplier: float,
    csprng: Csprng | None = None,
) -> Tallied:
    """The task's tally over the patients of `cases`, with N(0, noise_multiplier²) on each number.

    One `accounting.Mechanism(noise_multiplier, 1, 1)`: a patient adds one vector with an L2 norm of at
    most 1, which the sum itself sees to, and nothing else of it shows. A patient of whom an image
    cannot be read, or an answer cannot be computed or is not finite, counts as zero; without patients
    the noise is all there is. The network is left in the mode it was in.

    Args:
        cases: held out; `items` are the same, loaded, in the same order.
        csprng: None: one with a key of its own.

    Raises:
        ValueError: the task has no tally, the noise is none, or cases and items are not as many.
        MemoryError, torch.OutOfMemoryError: the machine is too small; nothing was given out.
    """
    if task.tally is None:
        raise ValueError("the task has no tally: use privacy.metrics=none or public with it")
    if len(cases) != len(items):
        raise ValueError("cases and items must be as many")
    by_patient: dict[str, list[int]] = defaultdict(list)
    for position, case in enumerate(cases):
        by_patient[case.patient].append(position)
    total = ClippedSum([torch.empty(task.tally.size)], clipping_norm=1.0)
    with predicting(network, device):
        for positions in by_patient.values():
            total.add([_counted(network, task, task.tally, cases, items, positions, device)])
    (values,) = total.noised(noise_multiplier, csprng or Csprng())
    return Tallied(values.numpy(), noise=noise_multiplier * total.clipping_norm)


def _counted(
    network: nn.Module,
    task: Task,
    how: Tally,
    cases: Sequence[Case],
    items: Items,
    positions: Sequence[int],
    device: torch.device,
) -> Tensor:
    """One patient's count, float64 (size,); zero where it fails: why could tell of the patient."""
    try:
        counted = how.count(
            [predict(network, task, cases[at], items[at], device) for at in positions]
        )
        if counted.shape == (how.size,):
            return counted
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception:  # noqa: S110
        pass
    return torch.zeros(how.size, dtype=torch.float64)
