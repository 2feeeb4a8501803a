"""Phantoms: images of no patient, for demonstrations, tests and the first look at an installation.

One file a task, of the task's name, with `LAYOUTS` and `write_phantom`. Hospitals (`site`) differ as
real ones do: scanner, contrast, noise, positioning, ages and how frequent a finding is. The same
arguments give the same bytes, and the first patients stay the same when more are asked for.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from client_app.site import Data
from federation.schema import ConfigError, nearest


def write(
    task_name: str,
    out: Path,
    *,
    patients: int,
    site: int,
    seed: int,
    layout: str | None = None,
) -> Data:
    """Write phantom data for a task below `out`.

    Args:
        site: which hospital, 0, 1, 2 …
        layout: `dicom`, or `nifti` (for heads a BIDS tree), with the same voxels, affines and masks;
            none: the first that the task offers.

    Returns:
        Where the data lie, as a site's configuration says it.

    Raises:
        ConfigError: there are no phantoms for this task, or not in this layout.
    """
    known = sorted(
        module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")
    )
    if task_name not in known:
        raise ConfigError(f"no phantoms for task {task_name!r}{nearest(task_name, known)}")
    module = importlib.import_module(f"{__name__}.{task_name}")
    offered: tuple[str, ...] = module.LAYOUTS
    if layout is not None and layout not in offered:
        raise ConfigError(
            f"phantoms for task {task_name} are not written as {layout}; only as "
            + " or ".join(offered)
        )
    choice = {} if layout is None or len(offered) == 1 else {"layout": layout}
    data: Data = module.write_phantom(out, patients=patients, site=site, seed=seed, **choice)
    return data
