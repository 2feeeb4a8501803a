"""The report's words: reasons explained, metrics named, numbers written for people."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from server_app.report.reasons import REASONS
from server_app.report.run import Interval

# Metrics by the field's names: name → (label, what it says).
METRICS = {
    "auroc": (
        "AUROC",
        "how often an image with the finding is ranked above one without; 0.5 is chance, 1 is best",
    ),
    "auprc": ("AUPRC", "average precision over all thresholds; 1 is best"),
    "average_precision": ("Average precision", "precision averaged over all thresholds"),
    "accuracy": ("Accuracy", "share of images that got the right class"),
    "balanced_accuracy": ("Balanced accuracy", "share of right answers, mean over the classes"),
    "sensitivity": ("Sensitivity", "share of those with the finding that were found"),
    "specificity": ("Specificity", "share of those without the finding that were cleared"),
    "f1": ("F1", "harmonic mean of precision and sensitivity"),
    "brier": ("Brier score", "squared error of the probabilities; 0 is best"),
    "ece": (
        "Calibration error",
        "how far stated probabilities are from observed shares; 0 is best",
    ),
    "dice": ("Dice", "overlap of the model's mask and the expert's; 1 is full overlap"),
    "iou": ("IoU", "shared area over joint area of the two masks; 1 is full overlap"),
    "hausdorff95": (
        "Hausdorff 95 %",
        "95th percentile of the distance between the two outlines; 0 is best",
    ),
    "auroc_patient": (
        "AUROC by patient",
        "how often a patient with the finding is ranked above one without; 0.5 is chance, 1 is best",
    ),
    "sensitivity_at_90_specificity": (
        "Sensitivity at 90 % specificity",
        "share of those with the finding that are found when one in ten without it is called back",
    ),
    "calibration_error": (
        "Calibration error",
        "how far stated probabilities are from observed shares; 0 is best",
    ),
    "hd95": ("HD95", "95th percentile of the distance between the two outlines in mm; 0 is best"),
    "surface_dice": (
        "Surface Dice",
        "share of the two surfaces that lie within the tolerance of each other; 1 is best",
    ),
    "missed": ("Missed", "share of cases with a tumour of which the model saw nothing; 0 is best"),
    "volume_error": ("Volume error", "absolute difference of the two volumes in ml; 0 is best"),
    "volume_bias": (
        "Volume bias",
        "the model's volume minus the expert's in ml; 0 is best, either sign is worse",
    ),
    "surface_distance": ("Surface distance", "mean distance between the two outlines; 0 is best"),
    "loss": ("Loss", "what training makes small, here on held-out patients"),
    "false_positive_rate": (
        "False positive rate",
        "share of those without the finding that were called positive; 0 is best",
    ),
    "selection_rate": (
        "Called positive",
        "share of all cases, with the finding or without, that were called positive",
    ),
    "dice_mean": ("Mean Dice", "overlap of the two masks, mean over cases; 1 is full overlap"),
    "dice_q10": ("Dice, worst tenth", "one case in ten has this overlap or less"),
    "dice_median": ("Median Dice", "half of the cases have this overlap or less"),
    "dice_q90": ("Dice, best tenth", "nine cases in ten have this overlap or less"),
}
# Differences between groups: name → (label, what it says).
GAPS = {
    "equalised_odds_difference": (
        "Equalised odds difference",
        "the larger of two gaps between groups, in sensitivity and in false positive rate; 0: errors "
        "are as frequent in all groups (Hardt et al. 2016, as in fairlearn)",
    ),
    "demographic_parity_difference": (
        "Demographic parity difference",
        "the largest share called positive in a group minus the smallest; 0: alike in all groups. Where "
        "the finding is rarer in a group it should not be 0",
    ),
}
PERSONAL = (
    "personal_"  # before a metric of the model that a hospital trained for itself beside the global
)


SMALLER_IS_BETTER = frozenset(
    {
        "brier",
        "calibration_error",
        "ece",
        "false_positive_rate",
        "hausdorff95",
        "hd95",
        "loss",
        "missed",
        "surface_distance",
        "volume_error",
    }
)
NEAREST_TO_ZERO_IS_BETTER = frozenset({"volume_bias"})
NEITHER_IS_BETTER = frozenset({"selection_rate"})
_AT_POINT = re.compile(r"(sensitivity|specificity)_at_(\d+(?:_\d+)?)_(sensitivity|specificity)")

# Where metrics come from (`Run.metrics_from`) → what they were measured on.
MEASURED_ON = {
    "exact": "on held-out patients",
    "noisy": "on held-out patients, with noise",
    "public": "on public images",
    "none": "on held-out patients",
}


@dataclass(frozen=True)
class Overall:
    """Words for the one figure of all hospitals.

    Attributes:
        name: of a table's row.
        line: of a chart's line, short.
        moves: before "from 0.5 to 0.9".
        over: after "its AUROC is 0.9".
        how: how it is made, in a few words.
        sentence: the same in a sentence.
    """

    name: str
    line: str
    moves: str
    over: str
    how: str
    sentence: str


_MEAN = Overall(
    "mean over hospitals",
    "mean",
    "The mean over hospitals goes",
    "on average over hospitals",
    "weighted by held-out patients",
    "The mean is weighted by the hospitals' held-out patients.",
)
# By `Run.metrics_from`, as `MEASURED_ON`.
OVERALL = {
    "exact": _MEAN,
    "none": _MEAN,
    "public": replace(
        _MEAN,
        how="weighted by patients of the public images",
        sentence="The mean is weighted by the patients of the public images.",
    ),
    "noisy": Overall(
        "all hospitals together",
        "together",
        "All hospitals together go",
        "over all hospitals together",
        "from the hospitals' sums added up",
        "The last row is computed from the hospitals' sums added up.",
    ),
}

NOTHING = "–"


def reason_label(reason: str | None) -> str:
    """Two or three words; a code that is not on the list is shown as it is."""
    if reason is None:
        return "no reason given"
    return REASONS[reason][0] if reason in REASONS else reason


def reason_sentence(reason: str | None) -> str:
    if reason is None:
        return "The run recorded no reason."
    if reason not in REASONS:
        return "This version of the report does not know this reason; it is shown as recorded."
    return REASONS[reason][1]


def metric_label(metric: str) -> str:
    """The field's name of a metric; one that is not known, with its underscores as spaces.

    A class may follow a known name: `dice_anterior` is "Dice anterior". `personal_dice` is of each
    hospital's own model, where it has one beside the global one.
    """
    if metric.startswith(PERSONAL):
        return f"{metric_label(metric.removeprefix(PERSONAL))}, own model"
    if metric in METRICS:
        return METRICS[metric][0]
    stem, _, rest = metric.partition("_")
    if stem in METRICS and rest:
        return f"{METRICS[stem][0]} {rest.replace('_', ' ')}"
    return metric.replace("_", " ")


def metric_meaning(metric: str) -> str | None:
    if metric.startswith(PERSONAL):
        meaning = metric_meaning(metric.removeprefix(PERSONAL))
        own = "of the personal model, which each hospital trains for itself and keeps"
        return own if meaning is None else f"{own}: {meaning}"
    if metric not in METRICS and (found := _AT_POINT.fullmatch(metric)):
        share = found[2].replace("_", ".")
        return f"the {found[1]} that is left where the threshold gives a {found[3]} of {share} %"
    stem = _stem(metric)
    return METRICS[stem][1] if stem is not None else None


def gap_label(metric: str) -> str:
    return GAPS[metric][0] if metric in GAPS else f"{metric_label(metric)}, gap"


def gap_meaning(metric: str) -> str:
    if metric in GAPS:
        return GAPS[metric][1]
    return "the largest value of a group minus the smallest"


def larger_is_better(metric: str) -> bool | None:
    """The direction of a metric; None if its name is not known here, or it has none."""
    stem = _stem(metric.removeprefix(PERSONAL))
    if stem in NEITHER_IS_BETTER or stem in NEAREST_TO_ZERO_IS_BETTER:
        return None
    return stem not in SMALLER_IS_BETTER if stem is not None else None


def _stem(metric: str) -> str | None:
    """The known name that a metric is, or begins with before a class's name."""
    stem = metric if metric in METRICS else metric.partition("_")[0]
    return stem if stem in METRICS else None


def decimal(value: float | None, digits: int = 3) -> str:
    """A number with so many decimals, or in scientific notation where these would hide it."""
    if value is None:
        return NOTHING
    if value != 0 and (abs(value) < 10**-digits or abs(value) >= 1e6):
        return f"{value:.2e}"
    return f"{value:.{digits}f}"


def plain(value: float | None) -> str:
    """A number as someone set it: `0.2`, `8`."""
    return NOTHING if value is None else f"{value:.7g}"


def estimate(value: float | None, interval: Interval | None) -> str:
    """`0.81 (0.74 to 0.88)`: a number that holds noise; without an interval, as `decimal`.

    Two decimals, as more would be noise; three where the interval is narrower than 0.02.
    """
    if value is None or interval is None:
        return decimal(value)
    low, high = interval
    digits = 2 if high - low >= 0.02 else 3
    low_, high_ = (f"{bound:.{digits}f}".replace("-", "\u2212") for bound in interval)
    return f"{value:.{digits}f} ({low_} to {high_})"


def at_most(value: float | None, digits: int = 3) -> str:
    """An upper bound, such as ε, with so many decimals: never shown smaller than it is."""
    return _rounded(value, digits, math.ceil)


def at_least(value: float | None, digits: int = 3) -> str:
    """A lower bound, such as what is left: never shown larger than it is."""
    return _rounded(value, digits, math.floor)


def power(value: float | None) -> str:
    """A small probability, such as δ, to two digits and rounded up: `10⁻⁵`, `2.4 × 10⁻⁶`."""
    if value is None or value <= 0:
        return decimal(value)
    exponent = math.floor(math.log10(value) + 1e-9)
    leading = math.ceil(value / 10.0**exponent * 10 - 1e-6) / 10
    if leading >= 10:
        leading, exponent = 1.0, exponent + 1
    ten = "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return ten if leading == 1 else f"{leading:g} × {ten}"


def share_at_most(value: float | None) -> str:
    """A share as a percentage that is rounded up; one that rounding would make certain, so."""
    if value is None:
        return NOTHING
    percent = math.ceil(value * 1e4 - 1e-6) / 100
    shown = "over 99.99" if percent >= 100 else f"{percent:.2f}"
    return f"{shown}\u00a0%"  # one word


def percent(value: float | None) -> str:
    """A share in two digits or more: `0.51 %`, `26 %`, `104 %`."""
    if value is None:
        return NOTHING
    digits = 0 if abs(value) >= 0.0995 else 1 if abs(value) >= 0.00995 else 2
    return f"{value * 100:.{digits}f}\u00a0%"


def _rounded(value: float | None, digits: int, towards: Callable[[float], int]) -> str:
    if value is None:
        return NOTHING
    if abs(value) >= 1e6:
        return f"{value:.2e}"
    # what floating point added at its last digits is no reason for another step
    nearest = round(value, digits)
    near = math.isclose(value, nearest, rel_tol=1e-12, abs_tol=1e-12)
    return f"{nearest if near else towards(value * 10**digits) / 10**digits:.{digits}f}"


def whole(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.0f}"


def size(count: float | None) -> str:
    """Bytes in decimal units: 1 MB is 1,000,000 bytes."""
    if count is None:
        return NOTHING
    for unit in ("bytes", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return NOTHING
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes = round(seconds / 60) if seconds >= 3600 else int(seconds // 60)
    if seconds < 3600:
        return f"{minutes} min {int(seconds % 60)} s"
    return f"{minutes // 60} h {minutes % 60} min"


def moment(time: datetime | None) -> str:
    """A time to the second, in UTC if it has a zone."""
    if time is None:
        return NOTHING
    if time.tzinfo is None:
        return f"{time:%Y-%m-%d %H:%M:%S}"
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def moment_short(time: datetime | None) -> str:
    """Month, day and time of day, for a table whose head says UTC."""
    if time is None:
        return NOTHING
    return f"{time if time.tzinfo is None else time.astimezone(UTC):%m-%d %H:%M:%S}"


def counted(number: int, one: str, many: str | None = None) -> str:
    """`1 round`, `3 rounds`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
