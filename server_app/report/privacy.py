"""What a private run cost the patients, by hospital: the hospitals' own words, and what they mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from server_app.report import svg, wording
from server_app.report.drawing import Chart, Lines, lines_chart
from server_app.report.run import Run, Spent

# Above it ε alone says little: the weakest of the three tiers of Ponomareva et al. (2023, How to DP-fy
# ML, arXiv:2303.00654).
LARGE_EPSILON = 10.0
EXAMPLES = (0.5, 1.0, 3.0, 8.0)  # ε whose reading is given in words


@dataclass(frozen=True)
class Account:
    """One hospital's figures.

    Attributes:
        patients: the size that it declares.
        spent: its ledger's last word; None if it never took part.
        steps: of the rounds that it answered.
        used: share of the budget that is spent, in [0, 1].
        refused_since: the round from which it refused, because its budget was spent.
    """

    hospital: str
    patients: int | None
    spent: Spent | None
    steps: int | None
    used: float | None
    refused_since: int | None

    @property
    def right_guess(self) -> float | None:
        return None if self.spent is None else right_guess(self.spent.epsilon)

    @property
    def large(self) -> bool:
        return self.spent is not None and (self.spent.epsilon or 0) > LARGE_EPSILON


@dataclass(frozen=True)
class Term:
    """A word of the section: its value where the run has one for all hospitals, and its meaning."""

    name: str
    value: str
    meaning: str


@dataclass(frozen=True)
class Section:
    accounts: tuple[Account, ...]
    terms: tuple[Term, ...]
    charts: tuple[Chart, ...]

    @property
    def accountant(self) -> str | None:
        """The accountant of all hospitals, if it is one."""
        return _common_accountant(self.accounts)

    @property
    def costliest(self) -> Account | None:
        """The hospital whose patients this run cost most."""
        known = [a for a in self.accounts if a.spent and a.spent.run_epsilon is not None]
        return max(known, key=lambda a: (a.spent and a.spent.run_epsilon) or 0.0, default=None)

    @property
    def scarcest(self) -> Account | None:
        """The hospital with the smallest share of its budget left."""
        known = [a for a in self.accounts if a.used is not None]
        return max(known, key=lambda a: a.used or 0.0, default=None)

    @property
    def refusing(self) -> bool:
        """Whether a hospital's budget was spent before the run came to its end."""
        return any(account.refused_since is not None for account in self.accounts)

    @property
    def large(self) -> tuple[Account, ...]:
        return tuple(account for account in self.accounts if account.large)

    @property
    def examples(self) -> str:
        shares = [
            f"{wording.share_at_most(right_guess(e))} at ε\u00a0=\u00a0{e:g}" for e in EXAMPLES
        ]
        return f"{', '.join(shares[:-1])} and {shares[-1]}"


def section(run: Run) -> Section | None:
    """The section of a private run, None for another."""
    if not run.private:
        return None
    accounts = _accounts(run)
    with svg.style():
        found = Section(accounts, _terms(run, _common_accountant(accounts)), ())
        return replace(found, charts=_charts(run, found.scarcest))


def right_guess(epsilon: float | None) -> float | None:
    """How often a guess whether a patient took part can be right: e^ε / (1 + e^ε), δ aside.

    For whoever held both for equally likely: the best test's two errors add up to 2 / (1 + e^ε) or
    more (Wasserman & Zhou 2010, theorem 2.4; Kairouz et al. 2015, arXiv:1311.0776).
    """
    return None if epsilon is None else 1 / (1 + math.exp(-epsilon))


def _accounts(run: Run) -> tuple[Account, ...]:
    spent, steps = run.spent(), _number(run.experiment, "training", "local_steps")
    accounts = []
    for hospital in run.hospitals:
        answers = [(r.number, a) for r in run.rounds for a in r.answers if a.hospital == hospital]
        answered = [answer for _, answer in answers if answer.spent is not None]
        declared = [answer.patients for answer in answered if answer.patients is not None]
        last = spent.get(hospital)
        used = None
        if last is not None and last.epsilon is not None and last.budget:
            used = min(1.0, last.epsilon / last.budget)
        since = None
        for number, answer in reversed(answers):
            if answer.reason != "budget_spent":
                break
            since = number
        accounts.append(
            Account(
                hospital,
                patients=declared[-1] if declared else None,
                spent=last,
                steps=None if steps is None else int(steps) * len(answered),
                used=used,
                refused_since=since,
            )
        )
    return tuple(accounts)


def _common_accountant(accounts: Sequence[Account]) -> str | None:
    named = {account.spent.accountant for account in accounts if account.spent is not None}
    return named.pop() if len(named) == 1 else None


def _charts(run: Run, scarcest: Account | None) -> tuple[Chart, ...]:
    """ε over rounds: of all runs, with the budgets; of this run where that is another figure."""
    everything = _lines(run, lambda spent: spent.epsilon)
    this_run = _lines(run, lambda spent: spent.run_epsilon)
    last = run.spent()
    budgets = sorted({s.budget for s in last.values() if s.budget is not None})
    charts = []
    if any(this_run.values()) and this_run != everything:
        charts.append(
            lines_chart(
                "epsilon-run",
                "ε of this run",
                "ε",
                this_run,
                f"Each round adds to it. {_at_the_end(this_run)}",
                worst=None,
                from_zero=True,
                show=wording.at_most,
            )
        )
    if any(everything.values()):
        said = [_at_the_end(everything), "Dotted: the budgets, which a ledger may not pass."]
        if scarcest is not None and len(run.hospitals) > 1:
            said.append(f"Bold: {scarcest.hospital}, with the smallest share of its budget left.")
        if not charts:
            said.append("This run is the ledgers' first: its own ε is the same.")
        charts.append(
            lines_chart(
                "epsilon-ledger",
                "ε of all runs, as the hospitals' ledgers add it up",
                "ε",
                everything,
                " ".join(said),
                worst=scarcest.hospital if scarcest and len(run.hospitals) > 1 else None,
                limits={f"budget {wording.plain(budget)}": budget for budget in budgets},
                from_zero=True,
                show=wording.at_most,
            )
        )
    return tuple(charts)


def _lines(run: Run, figure: Callable[[Spent], float | None]) -> Lines:
    """A figure after each round; after the last also what the last evaluation was charged."""
    lines: dict[str, dict[int, float]] = {hospital: {} for hospital in run.hospitals}
    charges = dict.fromkeys(run.hospitals, -1)
    for r in run.rounds:
        for answer in r.answers:
            if answer.spent is not None and (value := figure(answer.spent)) is not None:
                lines[answer.hospital][r.number] = value
                charges[answer.hospital] = answer.spent.charges or 0
    for hospital, spent in run.spent().items():
        value = figure(spent)
        if run.rounds and value is not None and (spent.charges or 0) > charges[hospital]:
            lines[hospital][run.rounds[-1].number] = value
    return lines


def _at_the_end(lines: Lines) -> str:
    last = {name: line[max(line)] for name, line in lines.items() if line}
    most = max(last, key=lambda name: last[name])
    if len(set(last.values())) == 1:
        return f"At the end: {wording.at_most(last[most])}."
    return f"Most at the end: {most}, {wording.at_most(last[most])}."


def _terms(run: Run, accountant: str | None) -> tuple[Term, ...]:
    """The section's terms, each in one line, with what the experiment sets for all hospitals."""
    by_hospital = "by hospital, above"
    chosen = run.privacy
    metrics = {"none": "none", "noisy": "with noise", "public": "of public images"}
    noise = _number(chosen, "metrics_noise_multiplier")
    how_metrics = {
        "none": "no figure on patients leaves: how good the model is must be found elsewhere",
        "noisy": "computed from sums over held-out patients to which noise with a standard deviation "
        f"of {wording.plain(noise)} patients is added; charged like training",
        "public": "exact, on images that a hospital declares public; they tell nothing of its patients",
    }
    engine = {"loop": "one backward pass a patient", "per_sample": "per-sample gradients"}
    trainable = {"all": "all of them", "head": "the last layer alone"}
    ema = _number(chosen, "ema")
    return (
        Term(
            "Unit", "patient", "all images of one patient together: not one image, not a hospital"
        ),
        Term(
            "Adjacency",
            "add or remove one patient",
            "the two sets of data that can hardly be told apart: with and without one patient",
        ),
        Term(
            "ε (epsilon)",
            by_hospital,
            "one patient changes the probability of whatever leaves by a factor of at most e^ε; "
            "0 is not at all",
        ),
        Term("δ (delta)", by_hospital, "how much probability that bound may leave out"),
        Term(
            "Budget",
            by_hospital,
            "ε that a hospital's ledger may not pass, over all runs; what would pass it is refused",
        ),
        Term(
            "Accountant",
            accountant or by_hospital,
            "the method, and its library's version, that bounds ε of many steps together from above",
        ),
        Term(
            "Noise multiplier σ",
            wording.plain(_number(chosen, "noise_multiplier")),
            "standard deviation of the noise on a step's sum of gradients, in clipping norms",
        ),
        Term(
            "Sampling rate q",
            wording.plain(_number(chosen, "sampling_rate")),
            "each patient's chance to be in a step, drawn anew for each (Poisson sampling)",
        ),
        Term(
            "Clipping norm C",
            wording.plain(_number(chosen, "clipping_norm")),
            "largest L2 norm of what one patient adds to a step",
        ),
        Term(
            "Images a patient k",
            wording.plain(_number(chosen, "images_per_patient")),
            "most images of a patient in a step; they are clipped as one",
        ),
        Term(
            "Augmentations",
            wording.plain(_number(chosen, "augmentations")),
            "versions of each image in a step; clipped with it, so that they cost nothing",
        ),
        Term(
            "Steps a round",
            wording.plain(_number(run.experiment, "training", "local_steps")),
            "sums of gradients with noise that a hospital makes in a round; each is charged",
        ),
        Term(
            "Steps",
            by_hospital,
            "those of all rounds that were answered; training again after a failure is charged again",
        ),
        Term(
            "Charges",
            by_hospital,
            "entries of the ledger over all runs, each written before patients' data were touched",
        ),
        Term(
            "Engine",
            _named(chosen, "engine", engine),
            "how a patient's gradient is computed; the guarantee is the same",
        ),
        Term("Trained layers", _named(chosen, "trainable", trainable), "what training may change"),
        Term(
            "Mean over rounds (EMA)",
            "none" if ema == 0 else wording.plain(ema),
            "decay of the mean of the rounds' models that is released at the end; made of what has "
            "left, it costs nothing",
        ),
        Term(
            "Metrics",
            metrics.get(run.metrics_from, run.metrics_from),
            how_metrics.get(run.metrics_from, "of a kind that this version does not know"),
        ),
    )


def _number(mapping: Mapping[str, Any], *path: str) -> float | None:
    """A number of the experiment; None where it is missing or something else."""
    value: object = mapping
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _named(mapping: Mapping[str, Any], key: str, words: Mapping[str, str]) -> str:
    value = mapping.get(key)
    return wording.NOTHING if value is None else words.get(str(value), str(value))
