"""By which words a hospital's patients are divided for good, and what other experiments are told.

Sums over whole classes of one division never tell of few patients (`federation.fairness.suppression`),
but two divisions of the same patients do: eleven women in all, and ten whose age is told, are one woman
whose age is not. So the first experiment of a task that is counted fixes the division, and every other
one has its own words read off these. What they do not say is told as `withheld`: an attribute that is
not among them, a band of age that is cut elsewhere. So each number of each experiment is a sum over
whole classes of one and the same division.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from federation.fairness.cases import Cases
from federation.fairness.layout import OTHER, UNKNOWN, WITHHELD, Layout, listed, words_of
from federation.schema import Fairness

_WORDS = {"unit", "attributes", "age_cuts", "manufacturers"}


@dataclass(frozen=True)
class Division:
    """Which cases there are (their unit, true `classes`), and by which words they are told apart.

    Attributes:
        options: unit, attributes, cuts and manufacturers of the first experiment; all else by default.
    """

    classes: tuple[str, ...]
    options: Fairness

    @classmethod
    def of(cls, layout: Layout, classes: tuple[str, ...]) -> Self:
        return cls(classes, Fairness(**layout.options.model_dump(include=_WORDS)))

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """Raises ValueError, TypeError, KeyError: it is no division."""
        return cls(tuple(content["classes"]), Fairness.model_validate(content["words"]))

    def to_json(self) -> dict[str, Any]:
        words = self.options.model_dump(mode="json", include=_WORDS)
        return {"classes": self.classes, "words": words}

    def counts(self, layout: Layout, classes: tuple[str, ...]) -> bool:
        """Whether an experiment counts the same cases of the same classes, by whatever words."""
        return (self.classes, self.options.unit) == (classes, layout.options.unit)

    def layout(self, wanted: Layout) -> Layout:
        """An experiment's, with this division's words in place of its own."""
        own = self.options.model_dump(include=_WORDS)
        return replace(
            wanted,
            options=wanted.options.model_copy(update=own),
            attributes=self.options.attributes,
            words=words_of(self.options),
        )

    def told(self, cases: Cases, wanted: Layout) -> Cases:
        """Cases by this division's words, of which some may be withheld, by an experiment's words."""
        own, columns = words_of(self.options), []
        for attribute, words in zip(wanted.attributes, wanted.words, strict=True):
            if attribute in self.options.attributes:
                column = self.options.attributes.index(attribute)
                read = [self._read_off(attribute, word, wanted) for word in own[column]]
                positions = np.array([words.index(word) for word in read], np.int64)
                columns.append(positions[cases.words[:, column]])
            else:
                columns.append(np.full(len(cases), words.index(WITHHELD), np.int64))
        return replace(cases, words=np.stack(columns, axis=1))

    def _read_off(self, attribute: str, word: str, wanted: Layout) -> str:
        """The experiment's word for this division's; `withheld` where it may be one of several."""
        if word in (UNKNOWN, WITHHELD):
            return word
        if attribute == "age_band":
            first, last = _years(word)
            bands = ((band, _years(band)) for band in listed(attribute, wanted.options))
            return next((band for band, (a, b) in bands if a <= first and last <= b), WITHHELD)
        if attribute == "manufacturer":
            named = wanted.options.manufacturers
            if word == OTHER:
                return OTHER if set(named) <= set(self.options.manufacturers) else WITHHELD
            return word if word in named else OTHER
        return word


def _years(band: str) -> tuple[float, float]:
    """`40-59` and `80+`, both ends included."""
    first, _, last = band.rstrip("+").partition("-")
    return float(first), float(last or "inf")
