"""`hospital check`: each thing a round will need, looked at before the first one."""

from __future__ import annotations

import shutil
import socket
import ssl
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from cryptography import x509
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TaskID
from rich.table import Table

from client_app import identity
from client_app.code_approval import Installed
from client_app.imaging.cohort import Cohort
from client_app.imaging.image import Case
from client_app.imaging.layouts import open_layout
from client_app.imaging.pseudonym import open_key
from client_app.kit import Kit, read_kit
from client_app.ledger import Ledger, LedgerError, budget_of, cohort_id, file_of
from client_app.patients import load_patients
from client_app.policy import Refused, require_patients
from client_app.private_file import printable
from client_app.site import Privacy, Site
from client_app.training.device import pick_device
from federation import tasks
from federation.schema import Component, ConfigError
from federation.tasks import Task

_WARN_BEFORE = timedelta(days=30)
_LEAST_FREE = 2 * 1024**3  # bytes


def run_checks(site: Site, task: str | None, held_out: float, console: Console) -> bool:
    """Print a line for each check; whether all passed."""
    checks: list[tuple[str, Callable[[], str]]] = [
        ("kit and roster", lambda: _roster(read_kit(site))),
        ("own keys", lambda: _keys(site)),
        ("authority's certificate", lambda: _certificate(read_kit(site))),
        ("coordinator reached over TLS", lambda: _connection(read_kit(site))),
        ("device", lambda: str(pick_device(site.device))),
        ("state folder", lambda: _state(site)),
        ("image folder", lambda: _images(site)),
        ("code that may run", lambda: _code(site)),
    ]
    if site.privacy is not None:
        promise = site.privacy
        checks.append(("privacy budget", lambda: _budget(site, promise)))
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
    """What a disk may hold, as a terminal can show it: no markup, no control codes."""
    return escape(printable(text))


def _roster(kit: Kit) -> str:
    pinned = kit.pin()
    said = (
        f"{kit.hospital} in federation {kit.federation} with {len(pinned.members)} hospitals, "
        f"version {pinned.version}; their fingerprints: hospital roster show"
    )
    if kit.shipped().version > pinned.version:
        said += f". The kit has a newer one: hospital roster accept {kit.path / 'roster.json'}"
    return said


def _keys(site: Site) -> str:
    own = identity.load(site)
    named = own.roster.member(site.hospital)
    waiting = len(identity.public_halves(site)) > 1
    return f"as the roster names them, {named.fingerprint() if named else ''}" + (
        ". New ones wait for a roster that names them" if waiting else ""
    )


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
    layout = open_layout(site.data)
    next(site.data.root.iterdir(), None)
    return f"{site.data.root}, read as {layout.name}"


def _code(site: Site) -> str:
    """What is installed, to compare with what the coordinator's `review show` says, and the policy."""
    here, policy = Installed.here(), site.policy
    code = policy.code if isinstance(policy.code, str) else f"{len(policy.code)} listed bundles"
    signed = (
        f", signed by {policy.least_reviewers} of {', '.join(policy.reviewers)}"
        if policy.reviewers
        else ""
    )
    return f"{code}{signed}; installed is {here.version()}, code {here.code()}"


def _budget(site: Site, promise: Privacy) -> str:
    """What the ledger has left. Looking makes neither a ledger nor a key."""
    file, budget = file_of(site, promise), budget_of(site, promise)
    cohort = cohort_id(open_key(site.state), site.hospital) if file.exists() else ""
    try:
        with Ledger.open(file, cohort) as ledger:
            spent = ledger.spent("", budget)
    except LedgerError as error:
        raise ConfigError(str(error)) from None
    return (
        f"ε {spent.epsilon:.3g} of {budget.epsilon:g} spent in {spent.lodged.charges} charges, "
        f"δ {budget.delta:g}; only private runs are served"
    )


def _patients(site: Site, name: str, held_out: float, console: Console) -> str:
    if site.policy.tasks is not None and name not in site.policy.tasks:
        raise ConfigError(f"policy.tasks does not allow it; allowed: {site.policy.tasks}")
    component = Component(name=name)
    with Progress(console=console, transient=True) as bar:
        jobs: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in jobs:
                jobs[what] = bar.add_task(what)
            bar.update(jobs[what], completed=done, total=total)

        found = load_patients(site, component, held_out, progress=show)
    cohort = found.cohort
    _print_left_out(cohort, site, console)
    _print_used(cohort, tasks.build(component), console)
    counted = site.privacy.patients if site.privacy is not None else cohort.training_patients
    try:
        require_patients(site.policy, counted)
    except Refused:
        raise ConfigError(
            f"{counted} patients to train on; policy.least_patients is {site.policy.least_patients}"
        ) from None
    return _compared(site, cohort) + (
        f"{cohort.training_patients} to train on ({len(cohort.training)} images), "
        f"{cohort.held_out_patients} held out ({len(cohort.held_out)}), "
        f"{sum(left.count for left in cohort.left_out.values())} files or images set aside"
    )


def _compared(site: Site, cohort: Cohort) -> str:
    """A declared size that is far from the true one costs accuracy, and no privacy."""
    declared, found = site.privacy.patients if site.privacy else 0, cohort.training_patients
    if declared <= 0 or 2 / 3 <= found / declared <= 3 / 2:
        return ""
    return (
        f"privacy.patients declares {declared}, and {found} are here: updates are scaled by "
        f"{found / declared:.2g}; before the first run choose a nearer number. "
    )


def _print_left_out(cohort: Cohort, site: Site, console: Console) -> None:
    """What is not used, why, one example, and what would mend it."""
    if not cohort.left_out:
        return
    table = Table(title="set aside", box=SIMPLE, title_justify="left")
    for heading in ("number", "reason", "such as", "what would mend it"):
        table.add_column(heading, justify="right" if heading == "number" else "left")
    for reason, left in cohort.left_out.items():
        path = left.example.path
        shown = path.relative_to(site.data.root) if path.is_relative_to(site.data.root) else path
        example = f"{shown}: {left.example.detail}" if left.example.detail else str(shown)
        table.add_row(str(left.count), str(reason), _plain(example), reason.remedy)
    console.print(table)


def _print_used(cohort: Cohort, task: Task, console: Console) -> None:
    """Patients and images to train on and held out, by label and by group."""
    training, held_out = (_by_group(part, task) for part in (cohort.training, cohort.held_out))
    table = Table(title="used", box=SIMPLE, title_justify="left")
    table.add_column("", no_wrap=True)
    for heading in ("patients to train on", "images", "patients held out", "images"):
        table.add_column(heading, justify="right")
    for name in sorted(training.keys() | held_out.keys(), key=lambda name: (name != "all", name)):
        row: list[str] = []
        for part in (training, held_out):
            patients = part.get(name, [])
            row += [str(len(set(patients))), str(len(patients))]
        table.add_row(name, *row)
    console.print(table)


def _by_group(cases: Sequence[Case], task: Task) -> dict[str, list[str]]:
    """For each label and each word of each attribute, the patient of each image."""
    groups: dict[str, list[str]] = defaultdict(list)
    for case in cases:
        groups["all"].append(case.patient)
        if isinstance(case.label, int):
            groups[f"label: {task.classes[case.label]}"].append(case.patient)
        for name, word in case.attributes.items():
            groups[f"{name}: {word}"].append(case.patient)
    return groups
