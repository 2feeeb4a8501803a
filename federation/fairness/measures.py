"""Metrics from histograms, each with the most that binning can have moved it.

Histograms are float64 (…, rows, bins) of `Layout.shape`, none of them negative; leading axes are groups,
draws, or both, and results have those axes. What cannot be computed is NaN.

A metric of the cases themselves lies within `bound` of `value`, always: where a case lies in its bin is
all that is not known. Cases that the model did not answer (`unanswered`) have no score. They count as
wrong: neither as called positive nor as called negative, and as a Dice of 0. AUROC and calibration,
which need scores, leave them out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from federation.fairness.layout import Layout

Floats = NDArray[np.float64]

_QUANTILES = {"dice_q10": 0.1, "dice_median": 0.5, "dice_q90": 0.9}


@dataclass(frozen=True)
class Bounded:
    """`value` and how far from it the metric without bins may lie, same shapes."""

    value: Floats
    bound: Floats


@dataclass(frozen=True)
class Metric:
    """One column of a table.

    Attributes:
        better: which of two values is.
        needs: cases without which it says nothing: of label 1, of label 0, of both, or any.
        share: whether it is a share of the cases that it needs, each counted by itself.
        answered: whether it leaves out cases without an answer, which it does not need then.
    """

    name: str
    of: Callable[[Floats], Bounded]
    better: Literal["higher", "lower", "neither"]
    needs: Literal["positive", "negative", "both", "any"]
    share: bool = False
    answered: bool = False


def metrics(layout: Layout, threshold: float | None = None) -> tuple[Metric, ...]:
    """All metrics of a layout, the first of which is the one that groups are compared by.

    Args:
        threshold: probability from which a case is called positive; None: the experiment's.
    """
    options, edges = layout.options, layout.edges
    if layout.kind == "segmentation":
        return (
            Metric("dice_mean", partial(dice_mean, edges=edges), "higher", "any"),
            *(
                Metric(name, partial(dice_quantile, edges=edges, share=share), "higher", "any")
                for name, share in _QUANTILES.items()
            ),
        )
    at = options.threshold if threshold is None else threshold
    point = options.operating_point
    percent = f"{100 * point:g}".replace(".", "_")

    def split(of: Callable[[Floats, Floats, float], Bounded]) -> Callable[[Floats], Bounded]:
        return lambda histograms: of(histograms, edges, at)

    return (
        Metric("auroc", auroc, "higher", "both", answered=True),
        Metric("sensitivity", split(sensitivity), "higher", "positive", True),
        Metric("specificity", split(specificity), "higher", "negative", True),
        Metric("false_positive_rate", split(false_positive_rate), "lower", "negative", True),
        Metric("selection_rate", split(selection_rate), "neither", "any", True),
        Metric(
            f"sensitivity_at_{percent}_specificity",
            partial(sensitivity_at, specificity=point),
            "higher",
            "both",
        ),
        Metric(
            f"specificity_at_{percent}_sensitivity",
            partial(specificity_at, sensitivity=point),
            "higher",
            "both",
        ),
        Metric(
            "calibration_error",
            partial(calibration_error, edges=edges),
            "lower",
            "any",
            answered=True,
        ),
    )


def cases(histograms: Floats, layout: Layout) -> Floats:
    """(…, rows), how many cases have a measure or should have one; `undefined` Dice have none."""
    counted = np.ones(histograms.shape[-1])
    if layout.kind == "segmentation":
        counted[layout.bins] = 0
    total: Floats = histograms @ counted
    return total


def answered(histograms: Floats, layout: Layout) -> Floats:
    """(…, rows), how many of the `cases` have a measure."""
    total: Floats = histograms[..., : layout.bins].sum(axis=-1)
    return total


# --- scores: rows are label 0 and 1, the last bin is `unanswered` --------------------------------


def auroc(histograms: Floats) -> Bounded:
    """Chance that a positive case scores above a negative one (Bamber 1975), by the trapezoid rule.

    Pairs of one bin count one half. Of these the true share is between none and all, so the bound is
    half the share of pairs that share a bin.
    """
    negative, positive = histograms[..., 0, :-1], histograms[..., 1, :-1]
    below = np.cumsum(negative, axis=-1) - negative
    pairs = negative.sum(axis=-1) * positive.sum(axis=-1)
    together = (positive * negative).sum(axis=-1) / 2
    return _bounded((positive * below).sum(axis=-1) + together, together, pairs)


def called_positive(row: Floats, edges: Floats, threshold: float) -> Bounded:
    """Share of the cases of histograms (…, bins) with a probability of `threshold` or more.

    Of a bin that the threshold lies inside of, one half; the bound is that half. It is 0 at an edge.
    """
    above, inside = _split(edges, threshold)
    return _bounded(
        row[..., :-1] @ (above + inside / 2), row[..., :-1] @ inside / 2, row.sum(axis=-1)
    )


def sensitivity(histograms: Floats, edges: Floats, threshold: float) -> Bounded:
    """Share of the positive cases that are called positive."""
    return called_positive(histograms[..., 1, :], edges, threshold)


def specificity(histograms: Floats, edges: Floats, threshold: float) -> Bounded:
    """Share of the negative cases that are called negative."""
    row = histograms[..., 0, :]
    above, inside = _split(edges, threshold)
    below = 1 - above - inside / 2
    return _bounded(row[..., :-1] @ below, row[..., :-1] @ inside / 2, row.sum(axis=-1))


def false_positive_rate(histograms: Floats, edges: Floats, threshold: float) -> Bounded:
    """Share of the negative cases that are called positive."""
    return called_positive(histograms[..., 0, :], edges, threshold)


def selection_rate(histograms: Floats, edges: Floats, threshold: float) -> Bounded:
    """Share of all cases that are called positive, whatever they are."""
    return called_positive(histograms.sum(axis=-2), edges, threshold)


def sensitivity_at(histograms: Floats, specificity: float) -> Bounded:
    """The largest sensitivity that a threshold with at least this specificity reaches.

    Thresholds may lie anywhere. The best one is at the lowest edge with that specificity or in the
    bin below it, so the sensitivity is between those at both ends of that bin: the value is the middle,
    the bound half the bin's share of positive cases. NaN where no threshold reaches it.
    """
    return _at_point(histograms[..., 0, :], histograms[..., 1, :], specificity)


def specificity_at(histograms: Floats, sensitivity: float) -> Bounded:
    """The largest specificity that a threshold with at least this sensitivity reaches, likewise."""
    turned = np.concatenate([histograms[..., -2::-1], histograms[..., -1:]], axis=-1)
    return _at_point(turned[..., 1, :], turned[..., 0, :], sensitivity)


def threshold_at(histograms: Floats, edges: Floats, specificity: float) -> Floats:
    """The lowest edge, as a probability, that has at least this specificity; NaN where none has.

    An operating point for all groups is found on all cases and given to `metrics`.
    """
    place, reached = _lowest_edge(histograms[..., 0, :], specificity)
    return np.where(reached, edges[place], np.nan)


def calibration_error(histograms: Floats, edges: Floats) -> Bounded:
    """Expected calibration error (Naeini et al. 2015) with the score bins as its bins, in [0, 1].

    Each case is taken to have the probability in the middle of its bin. In truth it is at most half the
    bin's width from it, so the bound is half the mean width over cases: 1 / bins or less.
    """
    answered = histograms[..., :-1]
    of_bin = answered.sum(axis=-2)
    surplus = np.abs(of_bin * (edges[1:] + edges[:-1]) / 2 - answered[..., 1, :])
    widths = of_bin @ np.diff(edges) / 2
    return _bounded(surplus.sum(axis=-1), widths, of_bin.sum(axis=-1))


def _split(edges: Floats, threshold: float) -> tuple[Floats, Floats]:
    """(bins,) each: 1 for bins above the threshold, and for the bin that it is inside of."""
    near = 1e-12  # an edge that is written down in a configuration is not the edge to the last bit
    above = (edges[:-1] >= threshold - near).astype(np.float64)
    inside = (edges[:-1] < threshold - near) & (edges[1:] > threshold + near)
    return above, inside.astype(np.float64)


def _at_point(bounding: Floats, wanted: Floats, least: float) -> Bounded:
    """Share of `wanted` above a threshold below which at least `least` of `bounding` lie."""
    place, reached = _lowest_edge(bounding, least)
    total = wanted.sum(axis=-1)
    # share from each edge on, the last edge included: nothing lies above it
    upper = np.concatenate(
        [np.cumsum(wanted[..., -2::-1], axis=-1)[..., ::-1], np.zeros((*wanted.shape[:-1], 1))],
        axis=-1,
    )
    low = np.take_along_axis(upper, place[..., None], axis=-1)[..., 0]
    high = np.take_along_axis(upper, np.maximum(place - 1, 0)[..., None], axis=-1)[..., 0]
    usable = np.where(reached & (bounding.sum(axis=-1) > 0), total, 0)
    return _bounded((low + high) / 2, (high - low) / 2, usable)


def _lowest_edge(row: Floats, least: float) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Position of the lowest edge with at least `least` of a row's cases below it; whether there is."""
    below = np.concatenate(
        [np.zeros((*row.shape[:-1], 1)), np.cumsum(row[..., :-1], axis=-1)], axis=-1
    )
    # rounded, as 0.9 of 10 cases must be 9 in floating point too
    enough = below >= np.round(least * row.sum(axis=-1, keepdims=True), 9) - 1e-9
    return enough.argmax(axis=-1), enough.any(axis=-1)


# --- Dice: one row, the last bins are `undefined` and `unanswered` -------------------------------


def dice_mean(histograms: Floats, edges: Floats) -> Bounded:
    """Mean Dice, each case in the middle of its bin; the bound is half a bin's width."""
    row = histograms[..., 0, :]
    answered, total = row[..., :-2], row[..., :-2].sum(axis=-1) + row[..., -1]
    middle = (edges[1:] + edges[:-1]) / 2
    return _bounded(answered @ middle, answered @ np.diff(edges) / 2, total)


def dice_quantile(histograms: Floats, edges: Floats, share: float) -> Bounded:
    """The smallest Dice that at least this share of the cases does not exceed (`inverted_cdf`).

    The middle of its bin; the bound is half the bin's width, and none where it is `unanswered`.
    """
    row = histograms[..., 0, :]
    ordered = np.concatenate([row[..., -1:], row[..., :-2]], axis=-1)  # unanswered: a Dice of 0
    total = ordered.sum(axis=-1)
    reached = np.cumsum(ordered, axis=-1) >= np.round(share * total, 9)[..., None] - 1e-9
    place = (reached & (ordered > 0)).argmax(axis=-1)
    middles = np.array([0.0, *(edges[1:] + edges[:-1]) / 2])
    halves = np.array([0.0, *np.diff(edges) / 2])
    return Bounded(
        np.where(total > 0, middles[place], np.nan), np.where(total > 0, halves[place], np.nan)
    )


def _bounded(value: Floats, bound: Floats, total: Floats) -> Bounded:
    safe = np.where(total > 0, total, np.nan)
    return Bounded(value / safe, bound / safe)
