"""The Gaussian mechanism on a sum of clipped contributions, one a patient.

Bounding and adding noise are one object's two steps: noise can only be added to what was bounded, and
what was bounded can only be had with noise. Adding or removing one patient moves the sum by at most
`clipping_norm`, so `noised` is one `accounting.Mechanism` step (Dwork & Roth 2014, theorem A.1; Abadi
et al. 2016).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.linalg import vector_norm

from federation.privacy.csprng import Csprng

# The noised sum is rounded to multiples of σ C / 2**20: far coarser than float64, in which the noise
# is made, so that which values can be reached does not tell what was added (Mironov 2012).
_LATTICE = 2.0**-20
_AT_ONCE = 1 << 18  # numbers worked on at a time: they stay in the processor's cache

# In float32 the norm of millions of numbers comes out up to 7e-4 too small. Of 512 of them it is right
# to 2e-6, which the margin makes up for: a norm is never taken for less than it is.
_ROW = 512
_MARGIN = 1 + 2.0**-18
_SAFE_IN_FLOAT32 = (1e-12, 1e15)  # norms whose squares neither vanish nor overflow


class ClippedSum:
    """Σ over patients of their contribution, each scaled to an L2 norm of at most `clipping_norm`.

    Contributions are lists of tensors in one order and of one set of shapes (a network's gradients, or
    one vector). They are added in float64, so that rounding does not grow with the number of patients.
    A contribution with a NaN or an infinite norm counts as zero: that it was there does not show.
    """

    def __init__(
        self, like: Sequence[Tensor], clipping_norm: float, device: torch.device | None = None
    ) -> None:
        if not 0 < clipping_norm < math.inf:
            raise ValueError("clipping_norm must be finite and above 0")
        self.clipping_norm = clipping_norm
        self._shapes = [tensor.shape for tensor in like]
        self._flat = torch.zeros(
            sum(tensor.numel() for tensor in like), dtype=torch.float64, device=device
        )
        self._views = self._shaped()
        self._zeroed = torch.zeros((), dtype=torch.int64, device=device)

    @property
    def zeroed(self) -> int:
        """How many contributions counted as zero: without noise, so it must never leave."""
        return int(self._zeroed)

    def add(self, contribution: Sequence[Tensor] | None) -> None:
        """One patient's whole contribution. To add a patient twice breaks the bound.

        Args:
            contribution: None: it could not be made, so it counts as zero.
        """
        if contribution is None:
            self._zeroed += 1
            return
        if [tensor.shape for tensor in contribution] != self._shapes:
            raise ValueError("a contribution of other shapes")
        parts = [tensor.detach() for tensor in contribution]
        if self._flat.device.type == "cpu":
            self._add_part_by_part(parts)
        else:
            self._add_without_waiting(parts)

    def _add_part_by_part(self, parts: Sequence[Tensor]) -> None:
        norm = _norm(parts)
        if not math.isfinite(norm):
            self._zeroed += 1
            return
        scale = min(1.0, self.clipping_norm / norm) if norm > 0 else 1.0
        for view, part in zip(self._views, parts, strict=True):
            # Piece by piece: PyTorch copies what it adds to float64 first, and large copies are slow.
            into, given = view.view(-1), part.reshape(-1)
            for start in range(0, len(into), _AT_ONCE):
                piece = slice(start, start + _AT_ONCE)
                into[piece].add_(given[piece], alpha=scale)

    def _add_without_waiting(self, parts: Sequence[Tensor]) -> None:
        """The same on the device alone: to ask whether the norm is finite would wait for a GPU."""
        whole = torch.cat([part.reshape(-1) for part in parts]).double()
        norm = vector_norm(whole)
        usable = torch.isfinite(norm)
        scale = (self.clipping_norm / norm).clamp(max=1.0)
        self._flat.add_(torch.where(usable, whole.mul_(scale), 0.0))
        self._zeroed += ~usable

    def noised(self, noise_multiplier: float, csprng: Csprng) -> list[Tensor]:
        """The sum with N(0, (σ C)²) on each coordinate, float64 in the contributions' shapes; once.

        Raises:
            ValueError: no noise, or the sum was given out before.
        """
        if not 0 < noise_multiplier < math.inf:
            raise ValueError("noise_multiplier must be finite and above 0")
        if not self._views:
            raise ValueError("a sum is given out once: with other noise it would tell more")
        spread = noise_multiplier * self.clipping_norm
        cell = spread * _LATTICE
        given, self._views = self._views, []
        for start in range(0, self._flat.numel(), _AT_ONCE):
            part = self._flat[start : start + _AT_ONCE]
            part.add_(csprng.gaussian(len(part)).to(part.device), alpha=spread)
            part.div_(cell).round_().mul_(cell)
        return given

    def _shaped(self) -> list[Tensor]:
        """The flat sum's parts in the contributions' shapes, on the same memory."""
        sizes = [math.prod(shape) for shape in self._shapes]
        ends = torch.tensor([0, *sizes]).cumsum(0).tolist()
        return [
            self._flat[end - size : end].view(shape)
            for size, end, shape in zip(sizes, ends[1:], self._shapes, strict=True)
        ]


def _norm(parts: Sequence[Tensor]) -> float:
    """L2 norm over all parts, never less than it is and at most 4e-6 of it more."""
    if all(part.dtype == torch.float32 for part in parts):
        rows: list[Tensor] = []
        for part in parts:
            flat = part.reshape(-1)
            whole = flat.numel() // _ROW * _ROW
            rows.append(vector_norm(flat[:whole].view(-1, _ROW), dim=1))
            rows.append(vector_norm(flat[whole:]).view(1))
        norm = float(vector_norm(torch.cat(rows).double())) * _MARGIN
        if _SAFE_IN_FLOAT32[0] < norm < _SAFE_IN_FLOAT32[1]:
            return norm
    norms = [vector_norm(part, dtype=torch.float64) for part in parts]
    return float(vector_norm(torch.stack(norms)))
