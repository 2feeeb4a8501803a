"""How much each hospital counts in a sum that nobody can take apart."""

from __future__ import annotations

from collections.abc import Mapping


def shares(sizes: Mapping[str, int], weighting: str) -> dict[str, float]:
    """Each hospital's factor on its update before it is quantised, at most 1.

    So the largest hospital uses the whole range of the integers, and weights cost no bits of headroom:
    Σ shareₖ · Δₖ / Σ shareₖ is the mean weighted by size.

    Args:
        sizes: public, of all whose masks are in the sum.
        weighting: `examples` (by size) or `equal`.
    """
    largest = max(sizes.values())
    return {
        name: size / largest if weighting == "examples" else 1.0 for name, size in sizes.items()
    }
