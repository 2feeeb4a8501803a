"""How long an update may be as it leaves, kept to by the hospital itself.

Δ · min(1, B / ‖Δ‖) over parameters (Sun et al. 2019, section 4; `federation.strategies.norm_bound`),
where B is the least of what the site's policy says in any run and what the experiment says in one whose
updates are summed in secret, since nobody else can see a norm there. Shortening is the sounder of two
ways: a hospital that left the round would tell of its single update that it was long, which a secure sum
is to hide, and would cost the round a survivor. After patient-level noise it is post-processing.

It comes last before rounding, after what error feedback adds (`federation.codec.chain.Chain.encode`):
the bound is of what leaves. What it cuts away, of an update or of a residual, is not sent later, and no
strategy's local part counts it (`client_app.received.due`).

It binds this software. A hospital that changed it can add what it likes, within what the sum checks
(docs/security.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from client_app.site import Site
from federation import strategies
from federation.messages import Arrays
from federation.schema import Experiment


def of(site: Site, experiment: Experiment) -> float | None:
    """B, an L2 norm; None: an update may be as long as it is."""
    bounds = [site.policy.largest_update_norm]
    if experiment.secure_aggregation is not None:
        bounds.append(experiment.participation.largest_update_norm)
        bounds.append(strategies.bound_at_hospitals(experiment))
    return min((bound for bound in bounds if bound is not None), default=None)


def shortened(
    update: Arrays, parameters: Iterable[tuple[str, object]], bound: float | None
) -> Arrays:
    """The update with its parameters no longer than `bound`; running statistics stay as they are.

    Args:
        update: finite.
        parameters: names of the trained arrays, as `named_parameters` gives them.
    """
    if bound is None:
        return update
    names = {name for name, _ in parameters}
    squares = (float(np.sum(np.square(update[name], dtype=np.float64))) for name in names)
    norm = math.sqrt(math.fsum(squares))
    if norm <= bound:
        return update
    factor = bound / norm
    return {
        name: (array * factor).astype(array.dtype) if name in names else array
        for name, array in update.items()
    }
