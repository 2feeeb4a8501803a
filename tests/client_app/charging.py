"""A ledger of phantom patients, and short words for what is done to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from client_app.ledger import Budget, Ledger, LedgerError, cohort_id
from federation.messages import Lodged, Reason, Spent
from federation.privacy.accounting import Mechanism

KEY = bytes(range(32))
COHORT = cohort_id(KEY, "north")
RDP = Budget(epsilon=8.0, delta=1e-5, accountant="rdp")
PRV = replace(RDP, accountant="prv")
STEP = Mechanism(noise_multiplier=2.0, sampling_rate=0.1, steps=10)


def charge(
    ledger: Ledger, round_: int, *mechanisms: Mechanism, budget: Budget = RDP, **other: Any
) -> Spent:
    asked = {
        "run": "monday",
        "request": f"{round_:064x}",
        "experiment": "e" * 64,
        "lodged": None,
        "attempts": 3,
    }
    return ledger.charge(
        round=round_, mechanisms=mechanisms or [STEP], budget=budget, **asked | other
    )


def charged(path: Path, count: int) -> Lodged:
    """Charge a ledger so many times, with no accountant; what its coordinator then knows of it."""
    free = patch("client_app.ledger.epsilon", return_value=1.0)
    with free, Ledger.open(path, COHORT) as ledger:
        before, head = ledger.verify()
        lodged = Lodged(before, head)
        for round_ in range(before + 1, before + 1 + count):
            lodged = charge(ledger, round_).lodged
    return lodged


def opened(path: Path, cohort: str = COHORT) -> tuple[int, str]:
    with Ledger.open(path, cohort) as ledger:
        return ledger.verify()


def refused(reason: Reason, action: Callable[[], object], says: str | None = None) -> None:
    with pytest.raises(LedgerError, match=says) as caught:
        action()
    assert caught.value.reason is reason


def unusable(path: Path, says: str | None = None) -> None:
    refused(Reason.LEDGER_UNUSABLE, lambda: opened(path), says)
