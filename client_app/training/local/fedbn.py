"""FedBN: the normalisation layers stay (Li et al. 2021, arXiv:2102.07623, algorithm 1)."""

from __future__ import annotations

from client_app.training.local._layers import build

__all__ = ["build"]
