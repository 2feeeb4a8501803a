"""The private loop: differentially private gradient descent whose unit is the patient.

    for each step:
        for each patient of a Poisson sample:                   # by the CSPRNG; there may be none
            g = gradient of the mean loss over k of its images, each augmented anew
            total += g · min(1, C / ‖g‖)                        # one clip a patient
        gradient = (total + N(0, (σC)²)) / (q · public size)    # noise by the CSPRNG; always

(Abadi et al. 2016, arXiv:1607.00133, section 3; patients as units as in McMahan et al. 2018,
arXiv:1710.06963; augmentations inside the clip as in De et al. 2022, arXiv:2204.13650.) All that comes
after, the optimiser, its weight decay and the proximal term, works on the noised sum and costs nothing.

So that a patient moves the sum by at most C, its gradient is a function of the weights, its own images
and its own coins: augmentation and dropout are seeded by (seed, step, pseudonym), whoever else was
drawn. What goes wrong with a patient's images makes it count as zero, and does not show.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice

import torch
from torch import Tensor, nn

from client_app.training.feed import Batch, Draw, Items, batches_of, out_of_memory
from client_app.training.local import Correction
from client_app.training.loop import (
    add_corrections,
    channels_last,
    half_precision,
    make_optimizer,
    reproducible,
    send,
)
from federation.privacy import fit, per_sample
from federation.privacy.csprng import Csprng
from federation.privacy.mechanism import ClippedSum
from federation.schema import ConfigError, PatientDP, Training
from federation.tasks import Task, seeded

Patients = Sequence[tuple[str, Sequence[int]]]
"""Each patient's pseudonym, and where its cases stand among the items."""

# For float16 alone. PyTorch's scaler adapts to the data, which then shows in everybody's gradient.
_HALF_SCALE = 2.0**10


@dataclass(frozen=True)
class Done:
    """For the hospital's own eyes: it has no noise and must never leave.

    Attributes:
        zeroed: how often a patient that was drawn counted as zero, because of an image that cannot be
            read, or a loss or gradient that is not finite.
    """

    steps: int
    zeroed: int


class BuffersChanged(RuntimeError):
    """Training changed what has no gradient and so no noise: the network must not leave."""


def train(
    network: nn.Module,
    task: Task,
    items: Items,
    patients: Patients,
    training: Training,
    privacy: PatientDP,
    *,
    device: torch.device,
    seed: int,
    learning_rate: float,
    public_size: int,
    workers: int = 0,
    csprng: Csprng | None = None,
    correct: Correction | None = None,
) -> Done:
    """Train `network` in place, on `device`, for exactly `training.local_steps` steps.

    The weights are then one `accounting.of_training` away from those without any one patient, if the
    network passed `fit.require_private`. Without patients, or where nobody is drawn, a step is made of
    noise. No part of the noise or the samples comes from `seed`.

    Args:
        patients: in an order that does not depend on their images.
        learning_rate: of this round; `training.learning_rate` is the first round's.
        public_size: how many patients the hospital says it has. Sums are divided by
            `privacy.sampling_rate` times it, never by how many were drawn.
        workers: processes that make batches ahead; with none they are made here, one at a time.
        csprng: None: one with a key of its own.
        correct: what a strategy adds to each noised gradient; it may know of the patients only what had
            noise already.

    Raises:
        ConfigError: the noise was not found yet, or the engine does not suit the network.
        BuffersChanged: training changed a buffer.
        ValueError: a public size below 1.
        client_app.imaging.pool.NotStarted: a process that makes batches ended before it had any work.
        MemoryError, RuntimeError: too little memory here (`feed.out_of_memory`).
    """
    if privacy.noise_multiplier is None:
        raise ConfigError("privacy.noise_multiplier is missing; it is found before a run is sent")
    if public_size < 1:
        raise ValueError("public_size must be at least 1")
    csprng = csprng or Csprng()
    # All of them first: the feed is ahead of the noise, and one stream serves both.
    samples = [
        csprng.sample(len(patients), privacy.sampling_rate) for _ in range(training.local_steps)
    ]
    network.to(device).train()
    before = [buffer.clone() for buffer in network.buffers()]
    divisor = privacy.sampling_rate * public_size
    zeroed = 0
    feed = batches_of(
        task.augment,
        items,
        (
            Draw((step, patients[at][0]), _choose(*patients[at], privacy, seed, step))
            for step, sample in enumerate(samples)
            for at in sample
        ),
        seed=seed,
        workers=workers,
    )
    with (
        reproducible(device, seed),
        channels_last(network, task, device),
        fit.frozen(network, privacy) as parameters,
        _engine(network, task, parameters, device, training, privacy) as add,
        contextlib.closing(feed),
    ):
        optimizer = make_optimizer(network, training, learning_rate)
        start = [parameter.detach().clone() for parameter in parameters]
        for step, sample in enumerate(samples):
            total = ClippedSum(parameters, privacy.clipping_norm, device)
            seeds = [seeded(seed, "network", step, patients[at][0]).initial_seed() for at in sample]
            add(total, zip(seeds, islice(feed, len(sample)), strict=True))
            zeroed += total.zeroed
            noised = total.noised(privacy.noise_multiplier, csprng)
            for parameter, part, origin in zip(parameters, noised, start, strict=True):
                gradient = torch.div(part, divisor, out=torch.empty_like(parameter))
                if training.proximal_mu:
                    gradient.add_(parameter.detach() - origin, alpha=training.proximal_mu)
                parameter.grad = gradient
            if correct is not None:
                add_corrections(network, correct)
            optimizer.step()
            optimizer.zero_grad()
    if not all(map(torch.equal, before, network.buffers())):
        raise BuffersChanged("training changed the model's buffers, which have no noise")
    return Done(steps=training.local_steps, zeroed=zeroed)


def _choose(
    pseudonym: str, positions: Sequence[int], privacy: PatientDP, seed: int, step: int
) -> tuple[int, ...]:
    """k of a patient's items, each as often as it is augmented; fewer than k serve in turn."""
    source = seeded(seed, "images", step, pseudonym)
    order = torch.randperm(len(positions), generator=source).tolist()
    chosen = islice(cycle(order), privacy.images_per_patient)
    return tuple(positions[at] for at in chosen for _ in range(privacy.augmentations))


# --- engines: the clipped sum of a step ----------------------------------------------------------

Batches = Iterable[tuple[int, Batch | None]]
"""Of each patient of a sample the seed of its dropout, and its images if they could be made."""
Add = Callable[[ClippedSum, Batches], None]
"""Adds each patient's gradient to the sum, once."""


@contextlib.contextmanager
def _engine(
    network: nn.Module,
    task: Task,
    parameters: Sequence[nn.Parameter],
    device: torch.device,
    training: Training,
    privacy: PatientDP,
) -> Iterator[Add]:
    model = Model(network, task, device)
    if privacy.engine == "loop":
        yield partial(add_patients, model, parameters)
        return
    way = fit.per_sample_way(network, task, privacy)
    with per_sample.gradients_by(way, network, parameters) as gradients:
        yield partial(
            add_samples, model, parameters, gradients=gradients, at_once=training.batch_size
        )


class Model:
    """The network on a processor, in half precision where that has it; gradients are float32."""

    def __init__(self, network: nn.Module, task: Task, device: torch.device) -> None:
        self.network, self.task, self.device = network, task, device
        self._half = half_precision(device)
        self.scale = _HALF_SCALE if self._half is torch.float16 else 1.0

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self._half, enabled=self._half is not None)

    def takes(self, images: Tensor) -> bool:
        return images.shape[1:] == (self.task.in_channels, *self.task.patch)

    def unscaled(self, gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        return gradients if self.scale == 1 else [g.float() / self.scale for g in gradients]


def add_patients(
    model: Model, parameters: Sequence[nn.Parameter], total: ClippedSum, batches: Batches
) -> None:
    """One backward pass a patient."""
    for seed, batch in batches:
        total.add(None if batch is None else _gradient_of(model, parameters, seed, batch))


def _gradient_of(
    model: Model, parameters: Sequence[nn.Parameter], seed: int, batch: Batch
) -> Sequence[Tensor] | None:
    """The gradient of a patient's mean loss; None or NaN if it has none."""
    images, labels = batch
    if not model.takes(images):
        return None
    torch.manual_seed(seed)
    try:
        with model.autocast():
            logits = model.network(send(images, model.device))
        loss = model.task.loss(logits.float(), send(labels, model.device))
        *gradients, last = torch.autograd.grad(
            loss * model.scale, parameters, allow_unused=True, materialize_grads=True
        )
    except Exception as error:
        if out_of_memory(error):
            raise
        return None
    # Without waiting for a GPU: NaN in one of them makes the patient count as zero.
    return model.unscaled([*gradients, last.where(torch.isfinite(loss.detach()), torch.nan)])


def add_samples(
    model: Model,
    parameters: Sequence[nn.Parameter],
    total: ClippedSum,
    batches: Batches,
    *,
    gradients: per_sample.Gradients,
    at_once: int,
) -> None:
    """Passes of `at_once` images; a patient's are summed, over passes too, and then clipped once."""
    open_sum: list[Tensor] | None = None  # of the patient whose images go on in the next pass
    images_left = _images_of(model, total, batches)
    while run := list(islice(images_left, at_once)):
        found = _gradients_of(model, parameters, gradients, run)
        numbers = sorted({one.patient for one in run})
        places = torch.tensor([numbers.index(one.patient) for one in run], device=model.device)
        sums = [g.new_zeros(len(numbers), *g.shape[1:]).index_add_(0, places, g) for g in found]
        if open_sum is not None:
            for of_patients, so_far in zip(sums, open_sum, strict=True):
                of_patients[0] += so_far
        complete = len(numbers) - (not run[-1].last)
        for at in range(complete):
            total.add(model.unscaled([of_patients[at] for of_patients in sums]))
        open_sum = None if run[-1].last else [of_patients[-1] for of_patients in sums]


@dataclass(frozen=True)
class _Image:
    """One image of a patient's batch; `share` is its weight in the patient's mean."""

    patient: int
    image: Tensor
    label: Tensor
    share: float
    last: bool


def _images_of(model: Model, total: ClippedSum, batches: Batches) -> Iterator[_Image]:
    for patient, (_, batch) in enumerate(batches):
        if batch is None or not model.takes(batch[0]):
            total.add(None)
            continue
        count = len(batch[0])
        for place, (image, label) in enumerate(zip(*batch, strict=True)):
            yield _Image(patient, image, label, 1 / count, place == count - 1)


def _gradients_of(
    model: Model,
    parameters: Sequence[nn.Parameter],
    gradients: per_sample.Gradients,
    run: Sequence[_Image],
) -> list[Tensor]:
    """(B, *shape) for each parameter, NaN for an image that has none: it spoils its patient alone."""
    losses: list[Tensor] = []

    def objective(logits: Tensor) -> Tensor:
        with torch.autocast(model.device.type, enabled=False):
            losses.extend(
                model.task.loss(logits[at : at + 1].float(), send(one.label[None], model.device))
                * (one.share * model.scale)
                for at, one in enumerate(run)
            )
            return torch.stack(losses).sum()

    images = send(torch.stack([one.image for one in run]), model.device)
    try:
        with model.autocast():
            found = gradients(images, objective)
    except Exception as error:
        if out_of_memory(error):
            raise
        if len(run) == 1:
            return [p.new_full((1, *p.shape), torch.nan) for p in parameters]
        alone = [_gradients_of(model, parameters, gradients, [one]) for one in run]
        return [torch.cat(of_parameter) for of_parameter in zip(*alone, strict=True)]
    found[-1][~torch.isfinite(torch.stack(losses).detach())] = torch.nan
    return found
