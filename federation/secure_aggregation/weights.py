"""How much each hospital counts in a sum that nobody can take apart."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from federation import strategies
from federation.messages import Arrays, Reason, WireError

_ROUNDING = 1e-9, 2.0**-41  # of a sum of figures: its floats', and each hospital's to a half unit


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


def mean_of(
    plain: Arrays,
    survivors: Collection[str],
    shares: Mapping[str, float],
    normaliser: float | None = None,
) -> Arrays:
    """The mean that the strategy gets, of what hospitals scaled before it was summed.

    Args:
        plain: Σ shareₖ·Δₖ / n of the n survivors, as the codec decodes it.
        shares: as above, of the survivors at least.
        normaliser: Σ shareₖ·cₖ, where each divided its parameters by its cₖ (`strategies.normaliser`):
            Σ pₖ·cₖ · Σ pₖ·Δₖ/cₖ is the mean, pₖ the survivors' shares as parts of one.

    Raises:
        WireError: MALFORMED, a sum that such normalisers, all above 0 and at most 1, cannot have.
    """
    total = sum(shares[name] for name in survivors)
    factor = len(survivors) / total
    mean = {name: (a * factor).astype(a.dtype, copy=False) for name, a in plain.items()}
    if normaliser is None:
        return mean
    of_floats, of_each = _ROUNDING
    if not 0 < normaliser <= total * (1 + of_floats) + len(survivors) * of_each:
        raise WireError(Reason.MALFORMED)
    return strategies.scale_parameters(mean, min(normaliser / total, 1.0))
