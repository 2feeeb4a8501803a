"""What a charge takes: with an empty ledger, and with 10,000 charges before it.

    python benchmarks/ledger_charge.py [--charges 10000] [--repeats 10] [--folder DIR] [--json FILE]

Ledgers are made in a temporary folder (`--folder` names a disk: a charge waits for it). The charges
that are there were made by ten runs of ten steps a charge, once with one noise multiplier for all and
once with one for each run: equal mechanisms count as one to the accountant. Medians of:

- *charge*: `Ledger.charge` of a new round by a run that was charged before, as a hospital does it:
  opened, verified, projected, verified under the lock, inserted, synced, head noted, closed.
- *without ε*: the same with an accountant that answers at once; so what the file, its chain and the
  disk cost. The rest of a charge is PRV and RDP, for the ledger and for the run.
- *open*, *verify*: `Ledger.open`, and `Ledger.verify` of an open one.

The accountant is imported and called once before the clock starts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

from client_app.ledger import Budget, Ledger
from client_app.ledger_file import LedgerFile
from federation.privacy.accounting import Mechanism, accountant_name, epsilon

COHORT = "c" * 64
RUNS = 10
BUDGET = Budget(epsilon=1000.0, delta=1e-5, accountant="prv")


def mechanism(run: int, settings: int) -> Mechanism:
    """Of one round; so little that 10,000 of them cost ε of 2 to 4."""
    return Mechanism(noise_multiplier=20.0 + run % settings, sampling_rate=0.05, steps=10)


def write_charges(path: Path, count: int, settings: int) -> None:
    """A ledger as that many charges would have left it, without asking the accountant for each."""
    file = LedgerFile(path, COHORT)
    with file.locked() as chain:
        for position in range(count):
            run = position * RUNS // count
            m = mechanism(run, settings)
            content = {
                "accountant": accountant_name(BUDGET.accountant),
                "audit_head": "a" * 64,
                "delta": BUDGET.delta,
                "epsilon": 8.0 * (position + 1) / count,
                "experiment": "e" * 64,
                "mechanisms": [[m.noise_multiplier, m.sampling_rate, m.steps]],
                "request": f"{position:064x}",
                "round": position + 1,
                "run": f"run-{run}",
                "time": "2026-01-01T00:00:00.000000+00:00",
            }
            head = file.append(chain, json.dumps(content, sort_keys=True))
            chain.contents.append("")
            chain.hashes.append(head.head)
    file.note_head()
    file.close()


def median(repeats: int, function: Callable[[int], object]) -> float:
    """Seconds; the function gets the number of the repeat."""
    taken = []
    for repeat in range(repeats):
        began = time.perf_counter()
        function(repeat)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def measure(path: Path, charges: int, settings: int, repeats: int) -> dict[str, float]:
    Ledger.create(path, COHORT)
    if charges:
        write_charges(path, charges, settings)
    rounds = itertools.count(charges + 1)

    def charge(_: int) -> None:
        round_ = next(rounds)
        with Ledger.open(path, COHORT) as ledger:
            ledger.charge(
                run=f"run-{RUNS - 1}",
                round=round_,
                request=f"{round_:064x}",
                experiment="e" * 64,
                mechanisms=[mechanism(RUNS - 1, settings)],
                budget=BUDGET,
                lodged=None,
                attempts=3,
            )

    figures: dict[str, float] = {"charges": charges, "settings": settings if charges else 0}
    figures["charge"] = median(repeats, charge)
    with patch("client_app.ledger.epsilon", return_value=1.0):
        figures["without_epsilon"] = median(repeats, charge)
    figures["open"] = median(repeats, lambda _: Ledger.open(path, COHORT).close())
    with Ledger.open(path, COHORT) as ledger:
        figures["verify"] = median(repeats, lambda _: ledger.verify())
    figures["bytes"] = path.stat().st_size
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--charges", type=int, default=10_000, help="of the large ledgers")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--folder", type=Path, help="where to make the ledgers")
    parser.add_argument("--json", type=Path, help="where to write the figures too")
    arguments = parser.parse_args()
    headings = {
        "charge": "charge",
        "without_epsilon": "without ε",
        "open": "open",
        "verify": "verify",
    }
    print(f"{'charges':>8}{'σ, q':>6}" + "".join(f"{h:>14}" for h in headings.values()), end="")
    print(f"{'file':>10}")
    epsilon([mechanism(0, 1)], BUDGET.delta)
    measured = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for charges, settings in ((0, 1), (arguments.charges, 1), (arguments.charges, RUNS)):
            path = Path(folder) / f"{charges}-{settings}.sqlite"
            found = measure(path, charges, settings, arguments.repeats)
            cells = "".join(f"{found[column] * 1e3:>11,.1f} ms" for column in headings)
            print(f"{charges:>8,}{found['settings']:>6}{cells}{found['bytes'] / 1e6:>7.2f} MB")
            measured.append(found)
    if arguments.json:
        arguments.json.write_text(json.dumps(measured, indent=2))


if __name__ == "__main__":
    main()
