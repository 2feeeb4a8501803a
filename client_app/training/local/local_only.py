"""Each hospital alone: all layers stay."""

from __future__ import annotations

from client_app.training.local._layers import build

__all__ = ["build"]
