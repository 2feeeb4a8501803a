"""Phantoms: images of no patient, for demonstrations, tests and the first look at an installation.

One file a task, of the task's name, with `LAYOUTS` and `write_phantom`. Hospitals (`site`) differ as
real ones do: scanner, contrast, noise, positioning, ages and how frequent a finding is. The same
arguments give the same bytes, and the first patients stay the same when more are asked for.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from client_app.imaging.phantoms import _dealt
from client_app.imaging.phantoms._dealt import SKEWS
from client_app.imaging.skew import ALPHA
from client_app.site import Data
from federation.schema import ConfigError, nearest

__all__ = ["ALPHA", "SKEWS", "write", "write_skewed"]


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
    module = _module(task_name)
    offered: tuple[str, ...] = module.LAYOUTS
    if layout is not None and layout not in offered:
        raise ConfigError(
            f"phantoms for task {task_name} are not written as {layout}; only as "
            + " or ".join(offered)
        )
    choice = {} if layout is None or len(offered) == 1 else {"layout": layout}
    data: Data = module.write_phantom(out, patients=patients, site=site, seed=seed, **choice)
    return data


def write_skewed(
    how: str,
    task_name: str,
    folders: Sequence[Path],
    *,
    patients: int,
    seed: int = 0,
    alpha: float = ALPHA,
) -> list[Data]:
    """Write phantom data for hospitals that differ in one thing alone, one folder each.

    - `label_skew`: one scanner; classes are dealt by Dirichlet(α) (`client_app.imaging.skew.by_label`).
    - `scanner_skew`: each another vendor, contrast and noise; one mix of classes, one size.
    - `size_skew`: one scanner and mix of classes; sizes 10 : 3 : 1, and 1 of further hospitals.
    - `noisy_labels`: one scanner, size and mix; 40 % of the last hospital's labels are wrong.
    - `poisoned_update`: the same, and all labels of the last hospital are wrong, so that what it sends
      drives the model the other way. Its own held-out labels are wrong too.

    Args:
        patients: of each hospital; under skews of labels and sizes in the mean.
        alpha: of `label_skew`.

    Returns:
        Where each hospital's data lie, as a site's configuration says it.

    Raises:
        ConfigError: an unknown skew, or a task without a table of labels or without phantoms.
    """
    if how not in SKEWS:
        raise ConfigError(f"no skew {how!r}{nearest(how, SKEWS)}")
    module = _module(task_name)
    if not hasattr(module, "LABELS"):
        raise ConfigError(
            f"phantoms for task {task_name} have masks and no classes to deal by: choose chest_xray, "
            "mammography or alzheimers"
        )
    return _dealt.write(
        how,
        module.write_phantom,
        module.LABELS,
        folders,
        patients=patients,
        seed=seed,
        alpha=alpha,
    )


def _module(task_name: str) -> ModuleType:
    known = sorted(
        module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")
    )
    if task_name not in known:
        raise ConfigError(f"no phantoms for task {task_name!r}{nearest(task_name, known)}")
    return importlib.import_module(f"{__name__}.{task_name}")
