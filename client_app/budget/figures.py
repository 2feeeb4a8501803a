"""What the ledger comes to, as the screen and `--json` show it. No figure is of a patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from client_app.ledger import MOST_REMAINING, Budget, Charge, Ledger
from client_app.site import Privacy
from federation.privacy.accounting import Mechanism, accountant_name, epsilon, merge

UNIT = "patient: all images of one person, under one patient identifier"
ADJACENCY = "add or remove one patient"


@dataclass(frozen=True)
class RunCost:
    """One run's charges, as if there were no others.

    Attributes:
        rounds: different ones; there are more charges where rounds were trained anew.
        mechanisms: merged.
        epsilon: of them alone, at the budget's δ.
        share: of the sum of all runs' ε; together they cost less than that sum.
    """

    run: str
    charges: int
    rounds: int
    first: str
    last: str
    mechanisms: list[Mechanism]
    epsilon: float
    share: float


@dataclass(frozen=True)
class Present:
    """The experiment that was charged last, and how many rounds like its last one the budget allows."""

    run: str
    experiment: str
    round: int
    mechanisms: list[Mechanism]
    remaining: int


@dataclass(frozen=True)
class Figures:
    """All of a hospital's ledger.

    Attributes:
        epsilon: spent by all charges together, at `budget.delta`.
        curve: ε of the ledger after each charge, as it was written down then.
        same_terms: whether all of `curve` is at the δ, and by the accountant, of today's budget.
    """

    hospital: str
    patients: int
    budget: Budget
    accountant: str
    epsilon: float
    charges: int
    head: str
    curve: list[float]
    same_terms: bool
    runs: list[RunCost]
    present: Present | None

    @property
    def left(self) -> float:
        """ε that is left; a charge may take less of it than it would cost alone."""
        return max(0.0, self.budget.epsilon - self.epsilon)

    def as_json(self) -> dict[str, Any]:
        content = asdict(self) | {"left": self.left, "unit": UNIT, "adjacency": ADJACENCY}
        if self.present is not None:
            content["present"]["remaining_is_at_least"] = self.present.remaining >= MOST_REMAINING
        return content


def figures(ledger: Ledger, hospital: str, promise: Privacy, budget: Budget) -> Figures:
    """The ledger's figures, with ε counted anew from its charges.

    Raises:
        LedgerError: it was altered since it was opened.
    """
    charges = ledger.charges()
    count, head = ledger.verify()
    name = accountant_name(budget.accountant)
    everything = [mechanism for charge in charges for mechanism in charge.mechanisms]
    return Figures(
        hospital=hospital,
        patients=promise.patients,
        budget=budget,
        accountant=name,
        epsilon=epsilon(everything, budget.delta, budget.accountant),
        charges=count,
        head=head,
        curve=[charge.epsilon for charge in charges],
        same_terms=all((c.delta, c.accountant) == (budget.delta, name) for c in charges),
        runs=_by_run(charges, budget),
        present=_present(ledger, charges[-1], budget) if charges else None,
    )


def _by_run(charges: Sequence[Charge], budget: Budget) -> list[RunCost]:
    """In the order of their first charges."""
    by_run: dict[str, list[Charge]] = {}
    for charge in charges:
        by_run.setdefault(charge.run, []).append(charge)
    merged = {
        run: merge(mechanism for charge in own for mechanism in charge.mechanisms)
        for run, own in by_run.items()
    }
    alone = {
        run: epsilon(mechanisms, budget.delta, budget.accountant)
        for run, mechanisms in merged.items()
    }
    return [
        RunCost(
            run=run,
            charges=len(own),
            rounds=len({charge.round for charge in own}),
            first=own[0].time,
            last=own[-1].time,
            mechanisms=merged[run],
            epsilon=alone[run],
            share=alone[run] / sum(alone.values()),
        )
        for run, own in by_run.items()
    ]


def _present(ledger: Ledger, last: Charge, budget: Budget) -> Present:
    return Present(
        run=last.run,
        experiment=last.experiment,
        round=last.round,
        mechanisms=list(last.mechanisms),
        remaining=ledger.remaining(last.mechanisms, budget, last.run),
    )
