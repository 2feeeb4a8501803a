"""The privacy budget of this hospital's patients, over all runs, experiments and restarts.

It belongs to the hospital and to its patients, not to a run. A request's mechanisms are charged, and on
the disk, before an image is touched: a crash can only count too much. What would pass the budget is
refused. Each charge composes with all before it (`federation.privacy.accounting`).

A ledger is the patients', whatever is made of their images: new ones may join, and so does every task
and model. What one file holds and how it is kept from being altered or replaced by an older copy is
`client_app.ledger_file`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from client_app.imaging.pseudonym import keyed_hash
from client_app.ledger_file import Chain, LedgerError, LedgerFile
from client_app.site import Privacy, Site
from federation.messages import Lodged, Reason, Spent
from federation.privacy.accounting import Accountant, Mechanism, accountant_name, epsilon

__all__ = [
    "MOST_REMAINING",
    "Budget",
    "Charge",
    "Ledger",
    "LedgerError",
    "budget_of",
    "cohort_id",
    "file_of",
]

MOST_REMAINING = 100_000  # charges that `Ledger.remaining` counts to


@dataclass(frozen=True)
class Budget:
    """What all charges together may cost a patient: the hospital's promise.

    Attributes:
        most_epsilon_a_run: ε that one run's charges alone may come to.
    """

    epsilon: float
    delta: float
    accountant: Accountant
    most_epsilon_a_run: float | None = None


@dataclass(frozen=True)
class Charge:
    """One row of the ledger.

    Attributes:
        position: from 1.
        time: of the charge, UTC, ISO 8601.
        request: SHA-256 of what was asked; the same again is a retry.
        experiment: SHA-256 of its canonical JSON.
        epsilon: of the ledger with this charge, at `delta`, by `accountant`.
        audit_head: of the audit log when the request was there.
        previous, hash: of the chain.
    """

    position: int
    time: str
    run: str
    round: int
    request: str
    experiment: str
    mechanisms: tuple[Mechanism, ...]
    epsilon: float
    delta: float
    accountant: str
    audit_head: str
    previous: str
    hash: str


def cohort_id(key: bytes, hospital: str) -> str:
    """Whose patients: 64 hexadecimal digits, from the pseudonym key and the hospital's name.

    Neither study nor model is in it, since a patient is the same in all of them.
    """
    return keyed_hash(key, "cohort", hospital).hex()


def budget_of(site: Site, promise: Privacy) -> Budget:
    """The site's promise, with what its policy adds."""
    return Budget(
        promise.epsilon, promise.budget_delta, promise.accountant, site.policy.most_epsilon_a_run
    )


def file_of(site: Site, promise: Privacy) -> Path:
    """Where the site's ledger is."""
    return promise.ledger or site.state / "ledger.sqlite"


class Ledger:
    """An open ledger; use it as a context manager."""

    def __init__(self, file: LedgerFile) -> None:
        self._file = file

    @classmethod
    def create(cls, path: Path, cohort: str) -> None:
        """Make an empty ledger, once.

        Raises:
            federation.schema.ConfigError: there is one, or was one; or it cannot be written.
        """
        LedgerFile.create(path, cohort)

    @classmethod
    def open(cls, path: Path, cohort: str) -> Self:
        """A ledger whose every row was verified.

        Raises:
            LedgerError: NO_LEDGER; LEDGER_UNUSABLE: unreadable, cut, tampered with, older than it was,
                of another cohort, or open to others.
        """
        file = LedgerFile(path, cohort)
        try:
            file.read()
        except BaseException:
            file.close()
            raise
        return cls(file)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def charge(
        self,
        *,
        run: str,
        round: int,
        request: str,
        experiment: str,
        mechanisms: Sequence[Mechanism],
        budget: Budget,
        lodged: Lodged | None,
        attempts: int,
        audit_head: str = "",
    ) -> Spent:
        """Pay for one request. When this returns the charge is on the disk; only then touch the data.

        Others that charge at the same time wait, so that no two can spend what is left.

        Args:
            mechanisms: all that the request applies to the patients; not empty.
            lodged: how far the coordinator knows the ledger to be.
            attempts: times that one request may be charged.

        Raises:
            LedgerError: REPLAYED: the run was further, or asked this round otherwise or too often;
                BUDGET_SPENT: the budget, or the run's part, would be passed; LEDGER_UNUSABLE: as
                `open`, or the disk does not take the charge. Nothing then pays for the request.
        """
        if not mechanisms:
            raise ValueError("nothing to charge; see `spent`")
        with self._file.locked(lodged) as chain:
            rows = self._rows(chain)
            own = [row for row in rows if row["run"] == run]
            _refuse_replay(own, round, request, attempts)
            total, of_run = _costs(rows, own, mechanisms, budget)
            _refuse_beyond(budget, total, of_run)
            content = {
                "accountant": accountant_name(budget.accountant),
                "audit_head": audit_head,
                "delta": budget.delta,
                "epsilon": total,
                "experiment": experiment,
                "mechanisms": [[m.noise_multiplier, m.sampling_rate, m.steps] for m in mechanisms],
                "request": request,
                "round": round,
                "run": run,
                "time": datetime.now(UTC).isoformat(timespec="microseconds"),
            }
            head = self._file.append(chain, json.dumps(content, allow_nan=False, sort_keys=True))
        self._file.note_head()
        return _spent(total, of_run, budget, head)

    def spent(self, run: str, budget: Budget, lodged: Lodged | None = None) -> Spent:
        """What was spent so far, for a request that costs nothing.

        Raises:
            LedgerError: LEDGER_UNUSABLE, as `charge`.
        """
        chain = self._file.read(lodged)
        rows = self._rows(chain)
        own = [row for row in rows if row["run"] == run]
        return _spent(*_costs(rows, own, (), budget), budget, chain.head)

    def charges(self) -> list[Charge]:
        """All charges, oldest first."""
        chain = self._file.read()
        try:
            return [
                Charge(
                    **row | {"mechanisms": tuple(Mechanism(*m) for m in row["mechanisms"])},
                    position=position,
                    previous=chain.hashes[position - 1],
                    hash=chain.hashes[position],
                )
                for position, row in enumerate(self._rows(chain), start=1)
            ]
        except (TypeError, ValueError):
            raise self._foreign() from None

    def remaining(
        self, mechanisms: Sequence[Mechanism], budget: Budget, run: str | None = None
    ) -> int:
        """How many more such charges the budget allows, by `run` if one is named; to MOST_REMAINING."""
        rows = self._rows(self._file.read())
        limits = [(_history(rows), budget.epsilon)]
        if budget.most_epsilon_a_run is not None:
            own = _history(row for row in rows if row["run"] == run)
            limits.append((own, budget.most_epsilon_a_run))

        def slack(count: int) -> float:
            """What is left after so many more, as a share of what there was; below 0 they do not fit."""
            more = [replace(m, steps=m.steps * count) for m in mechanisms if count]
            return min(
                1 - epsilon([*history, *more], budget.delta, budget.accountant) / most
                for history, most in limits
            )

        return _largest(slack, MOST_REMAINING)

    def require_writable(self) -> None:
        """Raises LedgerError: the next charge could not be written; nothing is, here."""
        with self._file.locked():
            pass

    def verify(self) -> tuple[int, str]:
        """How many charges there are, and the hash of the last.

        Raises:
            LedgerError: as `open`.
        """
        chain = self._file.read()
        self._rows(chain)
        return chain.head.charges, chain.head.head

    def _rows(self, chain: Chain) -> list[dict[str, Any]]:
        """The charges as they were written."""
        try:
            rows = [json.loads(content) for content in chain.contents[1:]]
            for row in rows:
                row["run"], row["round"], row["request"], row["mechanisms"]
        except (ValueError, KeyError, TypeError):
            raise self._foreign() from None
        return rows

    def _foreign(self) -> LedgerError:
        return LedgerError(
            Reason.LEDGER_UNUSABLE, f"{self._file.path}: a row that this Consilium did not write"
        )


def _largest(slack: Callable[[int], float], most: int) -> int:
    """The largest count up to `most` whose slack is not below 0; slack falls as counts grow.

    Between two counts by turns the point where the line through them crosses 0, and the middle: each
    look at an accountant may take seconds.
    """
    low, at_low, high = 0, slack(0), 1
    if at_low <= 0:
        return 0
    while (at_high := slack(high)) >= 0:
        if high == most:
            return most
        low, at_low, high = high, at_high, min(4 * high, most)
    by_line = True
    while high - low > 1:
        share = at_low / (at_low - at_high) if by_line and at_high > -math.inf else 0.5
        guess = min(max(low + round(share * (high - low)), low + 1), high - 1)
        at_guess = slack(guess)
        if at_guess >= 0:
            low, at_low = guess, at_guess
        else:
            high, at_high = guess, at_guess
        by_line = not by_line
    return low


def _refuse_replay(own: list[dict[str, Any]], round: int, request: str, attempts: int) -> None:
    """A run goes forward. The newest round may come again only as it was: after a crash."""
    if not own or round > own[-1]["round"]:
        return
    before = [row["request"] for row in own if row["round"] == round]
    if round < own[-1]["round"] or set(before) != {request}:
        raise LedgerError(Reason.REPLAYED, "the run was charged for this round, or for a later one")
    if len(before) >= attempts:
        raise LedgerError(
            Reason.REPLAYED,
            f"this round was charged {len(before)} times; policy.most_attempts is {attempts}",
        )


def _costs(
    rows: list[dict[str, Any]],
    own: list[dict[str, Any]],
    more: Iterable[Mechanism],
    budget: Budget,
) -> tuple[float, float]:
    """ε of the whole ledger and of one run's charges alone, each with `more`."""
    total = epsilon([*_history(rows), *more], budget.delta, budget.accountant)
    if len(own) == len(rows):
        return total, total
    return total, epsilon([*_history(own), *more], budget.delta, budget.accountant)


def _beyond(budget: Budget, total: float, of_run: float) -> bool:
    most = budget.most_epsilon_a_run
    return not (total <= budget.epsilon and (most is None or of_run <= most))


def _refuse_beyond(budget: Budget, total: float, of_run: float) -> None:
    if _beyond(budget, total, of_run):
        raise LedgerError(
            Reason.BUDGET_SPENT,
            f"with this request ε would be {total:.4g} of {budget.epsilon:g}, and of the run alone "
            f"{of_run:.4g}"
            + (
                f" of {budget.most_epsilon_a_run:g}"
                if budget.most_epsilon_a_run is not None
                else ""
            ),
        )


def _history(rows: Iterable[dict[str, Any]]) -> list[Mechanism]:
    """The charges' mechanisms; equal (σ, q) are merged here already, since there may be thousands."""
    steps: dict[tuple[float, float], int] = {}
    for row in rows:
        for sigma, q, count in row["mechanisms"]:
            steps[sigma, q] = steps.get((sigma, q), 0) + count
    return [Mechanism(sigma, q, count) for (sigma, q), count in steps.items()]


def _spent(total: float, of_run: float, budget: Budget, head: Lodged) -> Spent:
    return Spent(
        epsilon=total,
        run_epsilon=of_run,
        budget=budget.epsilon,
        delta=budget.delta,
        accountant=accountant_name(budget.accountant),
        lodged=head,
    )
