"""`hospital check`: each thing a round will need, looked at before the first one."""

from __future__ import annotations

import shutil
import socket
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from cryptography import x509
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from client_app.patients import load_patients, set_aside_summary
from client_app.policy import Refused, require_patients
from client_app.site import Kit, read_kit
from client_app.training.device import pick_device
from federation.schema import Component, ConfigError, Site

_WARN_BEFORE = timedelta(days=30)
_LEAST_FREE = 2 * 1024**3  # bytes


def run_checks(site: Site, task: str | None, held_out: float, console: Console) -> bool:
    """Print a line for each check; whether all passed."""
    checks: list[tuple[str, Callable[[], str]]] = [
        ("kit and roster", lambda: _kit(read_kit(site))),
        ("authority's certificate", lambda: _certificate(read_kit(site))),
        ("coordinator reached over TLS", lambda: _connection(read_kit(site))),
        ("device", lambda: str(pick_device(site.device))),
        ("state folder", lambda: _state(site)),
        ("image folder", lambda: _images(site)),
    ]
    if task is not None:
        checks.append((f"patients for {task}", lambda: _patients(site, task, held_out, console)))
    good = True
    for name, look in checks:
        try:
            console.print(f"[green]✓[/] {name}: {_plain(look())}", highlight=False, soft_wrap=True)
        except (ConfigError, OSError, RuntimeError, ValueError) as error:
            good = False
            console.print(f"[red]✗[/] {name}: {_plain(error)}", highlight=False, soft_wrap=True)
    return good


def _plain(text: object) -> str:
    """What a disk may hold, as a terminal can show it: no markup, no bytes that are not text."""
    return escape(str(text).encode("utf-8", "backslashreplace").decode())


def _kit(kit: Kit) -> str:
    names = kit.roster().names()
    if kit.hospital not in names:
        raise ConfigError(f"{kit.hospital} is not on the roster ({', '.join(names)})")
    return f"{kit.hospital} in federation {kit.federation} with {len(names)} hospitals"


def _certificate(kit: Kit) -> str:
    certificate = x509.load_pem_x509_certificate(kit.ca_certificate.read_bytes())
    left = certificate.not_valid_after_utc - datetime.now(UTC)
    if left < timedelta(0):
        raise ConfigError("it has expired; ask the coordinator for a new kit")
    warning = " (ask the coordinator for a new kit)" if left < _WARN_BEFORE else ""
    return f"valid for {left.days} days{warning}"


def _connection(kit: Kit) -> str:
    host, _, port = kit.superlink.rpartition(":")
    context = ssl.create_default_context(cafile=str(kit.ca_certificate))
    try:
        with (
            socket.create_connection((host, int(port)), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname=host) as secured,
        ):
            return f"{kit.superlink}, {secured.version()}"
    except OSError as error:
        raise ConfigError(
            f"{kit.superlink} does not answer ({error}); is it up, and does the firewall let this "
            "machine dial out to it?"
        ) from None


def _state(site: Site) -> str:
    site.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    free = shutil.disk_usage(site.state).free
    if free < _LEAST_FREE:
        raise ConfigError(f"{site.state} has {free / 1e9:.1f} GB free; the cache needs more")
    return f"{site.state}, {free / 1e9:.0f} GB free"


def _images(site: Site) -> str:
    if not site.data.root.is_dir():
        raise ConfigError(f"there is no folder {site.data.root}")
    next(site.data.root.iterdir(), None)
    return f"{site.data.root}, read as {site.data.layout}"


def _patients(site: Site, name: str, held_out: float, console: Console) -> str:
    if site.policy.tasks is not None and name not in site.policy.tasks:
        raise ConfigError(f"policy.tasks does not allow it; allowed: {site.policy.tasks}")
    component = Component(name=name)
    with Progress(console=console, transient=True) as bar:
        job = bar.add_task("reading images")
        found = load_patients(
            site, component, held_out,
            lambda done, total: bar.update(job, completed=done, total=total),
        )  # fmt: skip
    cohort = found.cohort
    for reason, count, example in set_aside_summary(cohort, site.data.root):
        console.print(
            f"    set aside {count} × {reason}, such as {_plain(example)}", highlight=False
        )
    try:
        require_patients(site.policy, cohort.training_patients)
    except Refused:
        raise ConfigError(
            f"{cohort.training_patients} patients to train on; policy.least_patients is "
            f"{site.policy.least_patients}"
        ) from None
    return (
        f"{cohort.training_patients} to train on ({len(cohort.training)} images), "
        f"{cohort.held_out_patients} held out ({len(cohort.held_out)}), "
        f"{len(cohort.set_aside)} files set aside"
    )
