"""Randomness that nobody can predict or repeat: AES-256 in counter mode, keyed by the operating system.

PyTorch's and NumPy's generators are seeded and predictable, so none of them is used for noise or for
who is sampled. A generator is good for one process: a forked child draws a key of its own.
"""

from __future__ import annotations

import math
import os

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from torch import Tensor

_KEY_BYTES = 32
_AT_ONCE = 1 << 18  # numbers made at a time: bounds the memory
_FRACTION = (1 << 52) - 1  # the bits of a float64's fraction
_ONE = 1023 << 52  # the float64 1.0


class Csprng:
    """AES-256-CTR (NIST SP 800-38A) under a key from `os.urandom`, which is never written down."""

    def __init__(self) -> None:
        self._process = -1
        self._stream: CipherContext

    def bytes(self, count: int) -> bytes:
        if self._process != os.getpid():  # the first call, or the first after a fork
            nonce = bytes(16)  # each key serves one stream
            cipher = Cipher(algorithms.AES(os.urandom(_KEY_BYTES)), modes.CTR(nonce))
            self._stream = cipher.encryptor()
            self._process = os.getpid()
        return self._stream.update(bytes(count))

    def uniform(self, count: int) -> Tensor:
        """float64 (count,), each a multiple of 2**-52 in [0, 1)."""
        words = np.frombuffer(self.bytes(8 * count), dtype=np.int64)
        # 52 random bits as the fraction of a number in [1, 2)
        fractions = torch.from_numpy(words & _FRACTION).bitwise_or_(_ONE)
        return fractions.view(torch.float64).sub_(1)

    def gaussian(self, count: int) -> Tensor:
        """float64 (count,), standard normal (Box & Muller 1958)."""
        made = torch.empty(count, dtype=torch.float64)
        for start in range(0, count, _AT_ONCE):
            part = made[start : start + _AT_ONCE]
            pairs = (len(part) + 1) // 2
            # 1 - u lies in (0, 1]
            radius = self.uniform(pairs).neg_().log1p_().mul_(-2).sqrt_()
            angle = self.uniform(pairs).mul_(2 * math.pi)
            torch.mul(radius, angle.cos(), out=part[:pairs])
            part[pairs:] = radius.mul_(angle.sin_())[: len(part) - pairs]
        return made

    def sample(self, count: int, rate: float) -> list[int]:
        """Positions in a Poisson sample: each of `count` is in it with chance `rate`, by itself."""
        chosen: list[int] = torch.nonzero(self.uniform(count) < rate).flatten().tolist()
        return chosen
