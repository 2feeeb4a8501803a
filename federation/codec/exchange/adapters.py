"""Low-rank adapters: of a large weight W only B in W + B·A travels, of which A is known to all.

A weight (o, …) counts as a matrix (o, d) over its d inputs. A is (rank, d) with orthonormal rows, drawn
anew each round from the experiment's seed, and frozen: sums of B are then sums of updates, which sums of
products B·A with an A of each hospital's own are not (FFA-LoRA: Sun et al. 2024, arXiv:2403.12313).
Since each round has another A, the model is not bound to one subspace (Hao et al. 2024,
arXiv:2402.03293). Biases, normalisation, the last layer and small weights travel whole.

Training inside `restrict` moves W within the subspace, so B = ΔW·Aᵀ loses nothing. Of an update that
does not lie in it, the part that does is sent: ‖ΔW − B·A‖² is (1 − rank / d)·‖ΔW‖² in the mean over A
where rank divides d, and never more than ‖ΔW‖².

Each of A's rows is a sum of d / rank inputs with random signs, over sqrt(d / rank); no input is in two
rows. So A is orthonormal without any linear algebra, and A and B·A have the same bits on every machine.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from federation.codec import _shared
from federation.codec.exchange import Exchange, Segment
from federation.privacy import fit
from federation.schema import Closed

LINEAR = True


class Options(Closed):
    rank: int = Field(default=8, ge=1, le=4096)
    scale: float = Field(
        default=1.0,
        gt=0,
        le=1000,
        description="W + scale·B·A in training: how far a step of Adam on B moves W",
    )


@dataclass(frozen=True)
class Basis:
    """A: input j is in row `rows[j]` with the coefficient `coefficients[j]`, and in no other."""

    rank: int
    rows: NDArray[np.int64]
    coefficients: NDArray[np.float64]

    def project(self, weight: NDArray[Any]) -> NDArray[np.float64]:
        """B = W·Aᵀ: (o, d) to (o, rank)."""
        matrix: NDArray[np.float64] = weight.astype(np.float64) @ self.matrix().T
        return matrix

    def expand(self, adapter: NDArray[Any]) -> NDArray[Any]:
        """B·A: (o, rank) to (o, d)."""
        product: NDArray[Any] = adapter[:, self.rows] * self.coefficients.astype(adapter.dtype)
        return product

    def matrix(self) -> NDArray[np.float64]:
        """A (rank, d)."""
        matrix = np.zeros((self.rank, len(self.rows)))
        matrix[self.rows, np.arange(len(self.rows))] = self.coefficients
        return matrix


def basis(rank: int, inputs: int, *parts: object) -> Basis:
    """A for `inputs` ≥ `rank`, drawn from the parts."""
    words = _shared.words(inputs, "adapters", *parts)
    order = np.argsort(words, kind="stable")
    rows = np.empty(inputs, np.int64)
    rows[order] = np.arange(inputs) * rank // inputs
    signs = np.where(words & np.uint64(1), 1.0, -1.0)
    return Basis(rank, rows, signs / np.sqrt(np.bincount(rows, minlength=rank))[rows])


class Adapters(Exchange):
    whole = False

    def __init__(self, options: Options, network: nn.Module, seed: int) -> None:
        super().__init__(network, lambda name: True)
        self.options, self.seed = options, seed
        self.adapted = frozenset(_adapted(network, options.rank))
        self.segments = tuple(map(self._segment, self.segments))

    def project(self, whole: NDArray[np.float32], *, round: int) -> NDArray[np.float32]:
        moving = np.empty(sum(segment.size for segment in self.segments), np.float32)
        for name, of_whole, of_moving in self._slices():
            part: NDArray[Any] = whole[of_whole]
            if name in self.adapted:
                matrix = part.reshape(self.shapes[name][0], -1)
                part = self._basis(name, round).project(matrix).reshape(-1)
            moving[of_moving] = part
        return moving

    def expand(self, moving: NDArray[Any], *, round: int) -> NDArray[Any]:
        whole = np.empty(sum(map(math.prod, self.shapes.values())), moving.dtype)
        for name, of_whole, of_moving in self._slices():
            part = moving[of_moving]
            if name in self.adapted:
                adapter = part.reshape(self.shapes[name][0], -1)
                part = self._basis(name, round).expand(adapter).reshape(-1)
            whole[of_whole] = part
        return whole

    @contextlib.contextmanager
    def restrict(self, network: nn.Module, *, round: int) -> Iterator[None]:
        """Adapters beside the frozen weights; afterwards merged, with the network's own names."""
        layers: list[tuple[nn.Module, bool]] = []
        try:
            for name in sorted(self.adapted):
                layer = network.get_submodule(name.rpartition(".")[0])
                layers.append((layer, bool(layer.weight.requires_grad)))
                attach(layer, self._basis(name, round), self.options.scale)
            yield
        finally:
            for layer, trained in layers:
                if parametrize.is_parametrized(layer, "weight"):
                    merge(layer)
                    layer.weight.requires_grad_(trained)

    def _segment(self, segment: Segment) -> Segment:
        if segment.name not in self.adapted:
            return segment
        size = self.shapes[segment.name][0] * self.options.rank
        return Segment(segment.name, size, factor=self.options.scale)

    def _basis(self, name: str, round: int) -> Basis:
        inputs = math.prod(self.shapes[name][1:])
        return basis(self.options.rank, inputs, self.seed, round, name)

    def _slices(self) -> Iterator[tuple[str, slice, slice]]:
        at = moved = 0
        for segment in self.segments:
            size = math.prod(self.shapes[segment.name])
            yield segment.name, slice(at, at + size), slice(moved, moved + segment.size)
            at, moved = at + size, moved + segment.size


def build(options: Options, network: nn.Module, seed: int) -> Exchange:
    return Adapters(options, network, seed)


class _Adapter(nn.Module):
    """W to W + scale·B·A; B starts at 0."""

    def __init__(self, weight: Tensor, of: Basis, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.b = nn.Parameter(weight.new_zeros(weight.shape[0], of.rank))
        self.a: Tensor
        matrix = torch.from_numpy(of.matrix()).to(weight)
        self.register_buffer("a", matrix, persistent=False)

    def forward(self, frozen: Tensor) -> Tensor:
        with torch.autocast(
            frozen.device.type, enabled=False
        ):  # what is merged is what was trained
            return frozen + (self.scale * (self.b @ self.a)).view(frozen.shape)


def attach(layer: nn.Module, of: Basis, scale: float) -> None:
    """Let training move the layer's weight by B·A alone."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    parametrize.register_parametrization(layer, "weight", _Adapter(weight, of, scale))
    layer.parametrizations.weight.original.requires_grad_(False)  # type: ignore[union-attr]


def merge(layer: nn.Module) -> None:
    """The layer as before `attach`, its weight with B·A in it."""
    with torch.no_grad():
        merged = layer.weight.detach().clone()  # type: ignore[operator]
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
        layer.weight.copy_(merged)  # type: ignore[operator]
    for own in [name for name in layer._parameters if name != "weight"]:
        layer._parameters[own] = layer._parameters.pop(own)  # the weight is the first one again


def _adapted(network: nn.Module, rank: int) -> Iterator[str]:
    """Names of weights of which B has at most half the numbers."""
    last = set(fit.head(network))
    uses = Counter(id(p) for _, p in network.named_parameters(remove_duplicate=False))
    for name, layer in network.named_modules():
        if isinstance(layer, (_ConvNd, nn.Linear)):
            own = f"{name}.weight" if name else "weight"
            inputs = math.prod(layer.weight.shape[1:])
            if own not in last and uses[id(layer.weight)] == 1 and inputs >= 2 * rank:
                yield own
