"""The report's words: reasons explained, metrics named, numbers written for people."""

from __future__ import annotations

from datetime import UTC, datetime

# Why a hospital left a round: code → (in two or three words, in a sentence).
REASONS = {
    "absent": (
        "not present",
        "The hospital was not connected to the federation when the round began.",
    ),
    "unavailable": (
        "not reachable",
        "The hospital's node could not be reached when it was asked.",
    ),
    "crashed": (
        "stopped by an error",
        "The program at the hospital stopped with an error before it could answer.",
    ),
    "late": (
        "too late",
        "No answer came before the round's deadline.",
    ),
    "not_finite": (
        "numbers not finite",
        "The answer held NaN or infinite numbers, as after training that diverged; "
        "it was not used.",
    ),
    "diverged": (
        "training diverged",
        "Training at the hospital ran into NaN or infinite numbers; it sent no update. "
        "A smaller learning rate would help.",
    ),
    "malformed": (
        "unreadable answer",
        "The answer was not of the form that the two sides agreed on; perhaps its version differs.",
    ),
    "wrong_names": (
        "wrong parameter names",
        "The answer held other parameters than the model has; perhaps its version differs.",
    ),
    "wrong_shape": (
        "wrong shapes",
        "A parameter in the answer had another shape than in the model.",
    ),
    "wrong_dtype": (
        "wrong number type",
        "A parameter in the answer had another number type than in the model.",
    ),
    "too_large": (
        "too large",
        "The answer was larger than the experiment allows; it was not used.",
    ),
    "norm_too_large": (
        "update too strong",
        "The norm of the update was above the experiment's largest_update_norm; it was not used.",
    ),
    "wrong_round": (
        "of another round",
        "The answer belonged to another round: repeated, or left over from before.",
    ),
    "refused_task": (
        "task not allowed",
        "The hospital's policy does not allow this task.",
    ),
    "refused_model": (
        "model not allowed",
        "The hospital's policy does not allow this model.",
    ),
    "refused_rounds": (
        "too many rounds",
        "The experiment has more rounds than the hospital's policy allows.",
    ),
    "bad_experiment": (
        "experiment not understood",
        "The hospital could not use the experiment it was sent; perhaps its version differs.",
    ),
    "bad_site": (
        "site set up wrongly",
        "The hospital's own configuration cannot be used; `hospital check` there tells why.",
    ),
    "too_few_patients": (
        "too few patients",
        "The hospital has fewer patients for this task than its policy requires.",
    ),
    "no_data": (
        "no usable data",
        "The hospital found no images with labels that serve this task.",
    ),
    "out_of_memory": (
        "out of memory",
        "The hospital's machine ran out of memory; a smaller batch or patch would help.",
    ),
    "internal_error": (
        "internal error",
        "Something unexpected went wrong at the hospital; its own log tells what.",
    ),
}

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
}


SMALLER_IS_BETTER = frozenset(
    {
        "brier",
        "calibration_error",
        "ece",
        "hausdorff95",
        "hd95",
        "loss",
        "missed",
        "surface_distance",
        "volume_error",
    }
)
NEAREST_TO_ZERO_IS_BETTER = frozenset({"volume_bias"})

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

    A class may follow a known name: `dice_anterior` is "Dice anterior".
    """
    if metric in METRICS:
        return METRICS[metric][0]
    stem, _, rest = metric.partition("_")
    if stem in METRICS and rest:
        return f"{METRICS[stem][0]} {rest.replace('_', ' ')}"
    return metric.replace("_", " ")


def metric_meaning(metric: str) -> str | None:
    stem = _stem(metric)
    return METRICS[stem][1] if stem is not None else None


def larger_is_better(metric: str) -> bool | None:
    """The direction of a metric; None if its name is not known here, or it has none."""
    stem = _stem(metric)
    if stem in NEAREST_TO_ZERO_IS_BETTER:
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
