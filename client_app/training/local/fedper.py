"""FedPer: the last layers stay (Arivazhagan et al. 2019, arXiv:1912.00818, algorithm 1)."""

from __future__ import annotations

from client_app.training.local._layers import build

__all__ = ["build"]
