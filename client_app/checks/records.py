"""What this hospital wrote down: the audit log and the ledger, whole and writable."""

from __future__ import annotations

from collections import deque

from client_app.audit import Audit, AuditError
from client_app.checks.finding import Level, Seen
from client_app.imaging.pseudonym import open_key
from client_app.ledger import Ledger, LedgerError, budget_of, cohort_id, file_of
from client_app.site import Site
from federation.schema import ConfigError

_NEARLY = 0.9  # of the budget


def audit(site: Site) -> Seen:
    """Each line follows from the one before it."""
    try:
        newest = deque(Audit(site.state / "audit.jsonl").entries(), maxlen=1)
    except AuditError as error:
        raise ConfigError(str(error)) from None
    if not newest:
        return Seen("nothing has been asked of this hospital yet")
    entry = newest[0]
    return Seen(f"{entry.sequence} entries, each following from the one before; head {entry.hash}")


def ledger(site: Site) -> Seen:
    """The chain holds and a charge could be written. Looking makes neither a ledger nor a key."""
    promise = site.privacy
    if promise is None:
        return Seen("none is kept: private runs are not served, and updates are exact")
    file, budget = file_of(site, promise), budget_of(site, promise)
    cohort = cohort_id(open_key(site.state), site.hospital) if file.exists() else ""
    try:
        with Ledger.open(file, cohort) as opened:
            opened.verify()
            opened.require_writable()
            spent = opened.spent("", budget)
    except LedgerError as error:
        raise ConfigError(str(error)) from None
    said = (
        f"ε {spent.epsilon:.3g} of {budget.epsilon:g} spent in {spent.lodged.charges} charges, "
        f"δ {budget.delta:g}; only private runs are served"
    )
    nearly = spent.epsilon > _NEARLY * budget.epsilon
    return Seen(said, Level.WARNING if nearly else Level.OK)
