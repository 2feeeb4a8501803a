"""This machine: what is configured, the device, folders and what they allow."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

import torch

from client_app.checks.finding import Level, Seen
from client_app.code_approval import Installed
from client_app.disk import is_full
from client_app.imaging.index import noted
from client_app.imaging.layouts import open_layout
from client_app.site import Site
from client_app.training.device import pick_device
from federation.processes import FLOWER_ENVIRONMENT
from federation.schema import ConfigError

_LEAST_FREE = 2 * 1024**3  # bytes
_GROWS = 5  # times that, below which it is said that a cache grows
_DRIVER = Path("/proc/driver/nvidia/version")


def policy(site: Site) -> Seen:
    """That it parses was seen when the site was read; here is what it says."""
    own, here = site.policy, Installed.here()
    code = own.code if isinstance(own.code, str) else f"{len(own.code)} listed bundles"
    if own.reviewers:
        code += f", signed by {own.least_reviewers} of {', '.join(own.reviewers)}"
    code += f" (installed is {here.version()}, code {here.code()})"
    said = f"tasks: {', '.join(own.tasks) if own.tasks is not None else 'any'}; code: {code}"
    said += f"; secure sums {own.secure_aggregation}"
    if own.code == "any":
        return Seen(
            f"{said}. With code: any policy and ledger are the coordinator's word", Level.WARNING
        )
    return Seen(said)


def telemetry() -> Seen:
    wrong = [name for name, value in FLOWER_ENVIRONMENT.items() if os.environ.get(name) != value]
    if wrong:
        raise ConfigError(
            f"Flower would look outside: set {', '.join(wrong)} as hospital start does"
        )
    return Seen("Flower tells and asks nobody")


def device(site: Site) -> Seen:
    chosen = pick_device(site.device)
    if chosen.type != "cuda":
        if _DRIVER.exists() and site.device == "auto":
            return Seen(
                f"{chosen}, although this machine has an NVIDIA driver ({_driver()}): give the "
                "container the GPU, and install the CUDA build of PyTorch; or say device: cpu",
                Level.WARNING,
            )
        return Seen(f"{chosen}; training takes longer than on a GPU")
    properties = torch.cuda.get_device_properties(chosen)
    torch.ones(1, device=chosen).add_(1).item()  # that it computes, not only that it is listed
    free, total = torch.cuda.mem_get_info(chosen)
    said = (
        f"{properties.name}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free, driver "
        f"{_driver()}, CUDA {torch.version.cuda}"
    )
    if free < total / 2:
        return Seen(
            f"{said}: something else uses it, and a round may run out of memory", Level.WARNING
        )
    return Seen(said)


def state(site: Site) -> Seen:
    folder = site.state
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    mode = folder.stat().st_mode & 0o777
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".check-") as probe:
            probe.write(b"x")
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        owner = f"it has to be this user's ({os.getuid()})"
        remedy = "make room there" if is_full(error) else owner
        raise ConfigError(f"{folder} cannot be written to ({error.strerror}): {remedy}") from None
    if mode & 0o022:
        raise ConfigError(
            f"{folder} has mode {mode:04o}: others can write there, and could put keys and a ledger of "
            "their own; run chmod 700 on it"
        )
    if mode & 0o055:
        text = f"{folder} has mode {mode:04o}: others can look in; run chmod 700 on it"
        return Seen(text, Level.WARNING)
    return Seen(f"{folder}, mode {mode:04o}")


def disk(site: Site) -> Seen:
    free = shutil.disk_usage(site.state).free
    if free < _LEAST_FREE:
        raise ConfigError(
            f"{free / 1e9:.1f} GB free for {site.state}; the cache needs more, and what cannot be "
            "written (ledger, audit log) is not served"
        )
    level = Level.WARNING if free < _GROWS * _LEAST_FREE else Level.OK
    return Seen(
        f"{free / 1e9:.0f} GB free" + ("; the cache grows" if level is not Level.OK else ""), level
    )


def images(site: Site) -> Seen:
    layout = open_layout(site.data)
    next(site.data.root.iterdir(), None)
    return Seen(f"{site.data.root}, read as {layout.name}")


def read_only(site: Site) -> Seen:
    """Consilium never writes there; a mount that forbids it needs no belief in that."""
    root = site.data.root
    if os.statvfs(root).f_flag & os.ST_RDONLY:
        return Seen("mounted read-only")
    if not os.access(root, os.W_OK):
        return Seen("this user may not write there")
    return Seen(
        "this user could write there; nothing here does, but mount it read-only (ro) for certainty",
        Level.WARNING,
    )


def index(site: Site) -> Seen:
    found = noted(site.state)
    if found is None:
        return Seen(
            "not made yet: the first round would wait for it; run hospital index", Level.WARNING
        )
    files, at = found
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
    if not files:
        raise ConfigError(
            f"no file below {site.data.root} at the last look ({when}); is it mounted?"
        )
    return Seen(f"{files:,} files, looked at {when}")


def _driver() -> str:
    """The NVIDIA kernel driver's version, as the kernel tells it."""
    try:
        words = _DRIVER.read_text().splitlines()[0].split()
        return next(word for word in words if word[:1].isdigit() and "." in word)
    except (OSError, IndexError, StopIteration):
        return "of unknown version"
