"""What a hospital takes out of its counts, so that no sum of them tells of few patients.

A bin of score is met by one patient or two, and shows in every table: by sex, by age band, in the
total. Who lays the tables side by side reads off all words of the patient in that bin. So it is not
enough that each table by itself hides its small groups (a threshold and complements by table, Hundepool
et al. 2012, Statistical Disclosure Control, chapter 4). The rule here looks at all attributes at once:
k-anonymity by local suppression (Sweeney 2002, doi:10.1142/S0218488502001648), with every true class in
every group (p-sensitive k-anonymity, Truta & Vinay 2006, doi:10.1109/ICDEW.2006.116).

The rule (`withhold`). A part of the cases is safe if it has at least `smallest` patients of each true
class that the hospital has at all. Cases are divided by the words of the first attribute, each part by
those of the second, and so on. Of a part that is divided, what would be unsafe is put together under the
word `withheld`; if that is still unsafe, one safe part joins it. If all cases together are not safe,
nothing leaves. Then all tables are counted from the words that are left. So the total stays exact, and
what leaves is what a hospital would send whose patients do not say these words.

Why it holds. Call all cases that are left with the same words a class.

1. Every class is safe: all cases together are; a kept part is by choice; and so are the withheld ones,
   by themselves, or as they hold a part that is, or because they are the whole that was divided.
2. Each number that leaves is a sum over whole classes of their histograms: in every table, for every
   group, and in every sum or difference of them, over tables, channels, rounds of the same cases, and
   hospitals. The classes' histograms themselves would tell more than all that leaves, and each is of
   `smallest` patients or more of each true class. So no computation gives a figure of fewer, not even
   to someone who knows all other hospitals' counts, all patients' words, and which were withheld: of
   labels and scores such a one learns sums over whole classes.
3. A group whose word was withheld shows as empty, as one does that is. What was put together was at
   least two parts, so of either one's cases of a true class the sums say no more than that there are
   between none and all of the withheld ones, who are `smallest` or more.

What it does not do. Who reasons from the rule itself (a word is withheld because it is rare) narrows 3,
but not 2. A score bin is no group: that one of a class's five patients was missed is a figure of five
patients. Who is held out is not hidden, as no exact count can hide it: that is what patient-level
privacy is for. And the classes must stand still: where a patient comes or goes between two rounds, or
another experiment divides the same patients by other words, the difference is of few. So a hospital
keeps one division for a task, and the `Cases.fingerprint` of what it let out, and counts these patients
only as long as it is the same (`client_app.division`, `client_app.group_counts`).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from federation.fairness.cases import Cases
from federation.fairness.layout import UNKNOWN, WITHHELD, Layout

Rows = NDArray[np.int64]


def withhold(cases: Cases, layout: Layout, smallest: int) -> Cases | None:
    """The cases with words withheld where they would point at fewer than `smallest` patients.

    It asks nothing of what the model answered, so the same cases have the same words in every round.

    Args:
        smallest: of the site's policy; 1 or less withholds nothing.

    Returns:
        None where nothing may leave.
    """
    if smallest <= 1:
        return cases
    _, patient = np.unique(np.array(cases.patients, dtype=object), return_inverse=True)
    classes = np.unique(cases.truth)

    def patients(rows: Rows) -> int:
        return len(np.unique(patient[rows]))

    def safe(rows: Rows) -> bool:
        return all(patients(rows[cases.truth[rows] == label]) >= smallest for label in classes)

    words = cases.words.copy()

    def divide(rows: Rows, column: int) -> None:
        if column == words.shape[1]:
            return
        said = layout.words[column]
        parts = {word: rows[words[rows, column] == word] for word in np.unique(words[rows, column])}
        kept = {word: part for word, part in parts.items() if safe(part)}
        rare = [part for word, part in parts.items() if word not in kept]
        if rare and kept and not safe(np.concatenate(rare)):
            # least is lost where nothing was known; else with the fewest patients
            joins = min(kept, key=lambda word: (said[word] != UNKNOWN, patients(kept[word]), word))
            rare.append(kept.pop(joins))
        if rare:
            together = np.concatenate(rare)
            words[together, column] = said.index(WITHHELD)
            divide(together, column + 1)
        for part in kept.values():
            divide(part, column + 1)

    everyone = np.arange(len(cases))
    if not len(cases) or not safe(everyone):
        return None
    divide(everyone, 0)
    return replace(cases, words=words)
