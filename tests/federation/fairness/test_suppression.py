"""What hospitals withhold, attacked: by linear programs, by bins that link tables, over rounds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp

from federation.fairness.cases import Cases, of_predictions
from federation.fairness.counts import as_array, count
from federation.fairness.layout import UNKNOWN, WITHHELD, Layout
from federation.fairness.suppression import withhold
from tests.federation.fairness.drawn import CHEST, binary, hospital, layout

Rule = Callable[[Cases, Layout, int], Cases | None]
Joint = tuple[int, ...]

LAYOUT = layout(
    attributes=("sex", "age_band", "manufacturer"),
    pairs=True,
    age_cuts=(60,),
    manufacturers=("ge",),
    score_bins=8,
)
SMALLEST = st.integers(2, 5)


@st.composite
def held_out(draw: st.DrawFn) -> Cases:
    """Few to many patients in uneven groups, some with several cases, of one label or two."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    patients = draw(st.integers(1, 60))
    cases = patients + draw(st.integers(0, 10))
    owner = np.concatenate([np.arange(patients), generator.integers(0, patients, cases - patients)])
    evenness = draw(st.sampled_from([0.2, 0.7, 3.0]))
    words = np.stack(
        [
            generator.choice(
                len(listed) - 1, cases, p=generator.dirichlet([evenness] * (len(listed) - 1))
            )
            for listed in LAYOUT.words
        ],
        axis=1,
    )
    truth = (generator.random(cases) < draw(st.sampled_from([0.0, 0.2, 0.5]))).astype(np.int64)
    places = generator.integers(0, LAYOUT.bins + 1, (cases, 1))
    return Cases(tuple(f"p{one}" for one in owner), words, truth, places)


def classes(cases: Cases) -> dict[Joint, list[int]]:
    found: dict[Joint, list[int]] = defaultdict(list)
    for position, words in enumerate(cases.words.tolist()):
        found[tuple(words)].append(position)
    return found


def patients(cases: Cases, positions: list[int], label: int) -> int:
    return len({cases.patients[at] for at in positions if cases.truth[at] == label})


# --- the rule ------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(cases=held_out(), smallest=SMALLEST)
def test_every_class_has_enough_patients_of_each_label(cases: Cases, smallest: int) -> None:
    labels = set(cases.truth.tolist())
    everyone = list(range(len(cases)))
    left = withhold(cases, LAYOUT, smallest)
    if any(patients(cases, everyone, label) < smallest for label in labels):
        assert left is None
        return
    assert left is not None
    for positions in classes(left).values():
        assert all(patients(left, positions, label) >= smallest for label in labels)
    withheld = [listed.index(WITHHELD) for listed in LAYOUT.words]
    kept = left.words == cases.words
    assert (kept | (left.words == withheld)).all()
    assert (left.patients, left.truth.tolist()) == (cases.patients, cases.truth.tolist())
    np.testing.assert_array_equal(left.places, cases.places)


@settings(max_examples=50, deadline=None)
@given(cases=held_out(), smallest=SMALLEST, seed=st.integers(0, 999))
def test_what_is_withheld_asks_nothing_of_answers_or_order(
    cases: Cases, smallest: int, seed: int
) -> None:
    """So two rounds of a run differ by sums over the same classes."""
    generator = np.random.default_rng(seed)
    left = withhold(cases, LAYOUT, smallest)
    later = replace(cases, places=generator.integers(0, 9, cases.places.shape))
    order = generator.permutation(len(cases))
    shuffled = Cases(
        tuple(cases.patients[at] for at in order),
        cases.words[order],
        cases.truth[order],
        cases.places[order],
    )
    again, turned = withhold(later, LAYOUT, smallest), withhold(shuffled, LAYOUT, smallest)
    if left is None:
        assert (again, turned) == (None, None)
    else:
        assert again is not None
        assert turned is not None
        np.testing.assert_array_equal(left.words, again.words)
        np.testing.assert_array_equal(left.words[order], turned.words)
        fingerprints = {one.fingerprint(LAYOUT) for one in (left, again, turned)}
        assert len(fingerprints) == 1


def test_a_table_by_hand() -> None:
    """5 women, 4 men and 2 of unknown sex of each label, at a smallest group of 3.

    The unknown are too few, so they take a group with them: not the men, who are fewer than the women,
    but, where there is one, a group of which less is known.
    """
    made = layout(attributes=("sex",))
    sizes = {"female": 5, "male": 4, "unknown": 2}
    images = [
        binary(1.0, label, patient=f"{sex}{number}{label}", sex=sex)
        for sex, size in sizes.items()
        for number in range(size)
        for label in (0, 1)
    ]

    def by_sex(smallest: int) -> dict[str, float] | None:
        left = withhold(of_predictions(images, CHEST, made), made, smallest)
        if left is None:
            return None
        found = as_array(count(left, made), made).sum(axis=(1, 2, 3))
        return {group.name: n for group, n in zip(made.groups, found, strict=True)}

    assert by_sex(3) == {
        "all": 22,
        "sex=female": 10,
        "sex=male": 0,
        "sex=unknown": 0,
        "sex=withheld": 12,
    }
    for smallest in (0, 1, 2):  # nothing is rare
        assert by_sex(smallest) == {
            "all": 22,
            "sex=female": 10,
            "sex=male": 8,
            "sex=unknown": 4,
            "sex=withheld": 0,
        }
    # the women are enough, but those who are not have none to join but them
    found = by_sex(5)
    assert found is not None
    assert (found["sex=female"], found["sex=withheld"]) == (10, 12)
    found = by_sex(7)
    assert found is not None
    assert (found["sex=female"], found["sex=withheld"]) == (0, 22)
    assert by_sex(11) is not None
    assert by_sex(12) is None


def test_unknown_words_are_lost_first() -> None:
    made = layout(attributes=("sex",))
    sizes = {"female": 9, "male": 1, "unknown": 20}
    images = [
        binary(1.0, 0, patient=f"{sex}{number}", sex=sex)
        for sex, size in sizes.items()
        for number in range(size)
    ]
    left = withhold(of_predictions(images, CHEST, made), made, 3)
    assert left is not None
    told = {made.words[0][word] for word in left.words[:, 0]}
    assert told == {"female", WITHHELD}
    assert UNKNOWN not in told


def test_a_label_that_a_group_lacks_is_not_given_away() -> None:
    """All men are healthy: to publish them alone would say so of each of them."""
    made = layout(attributes=("sex",))
    images = [binary(1.0, 0, patient=f"m{n}", sex="male") for n in range(20)]
    images += [binary(1.0, n % 2, patient=f"f{n}", sex="female") for n in range(20)]
    left = withhold(of_predictions(images, CHEST, made), made, 3)
    assert left is not None
    assert {made.words[0][word] for word in left.words[:, 0]} == {WITHHELD}


def test_large_groups_lose_nothing() -> None:
    made = layout(attributes=("sex", "manufacturer"))
    images = [
        one for one in hospital(np.random.default_rng(2), 2000) if one.attributes["sex"] != UNKNOWN
    ]
    cases = of_predictions(images, CHEST, made)
    left = withhold(cases, made, 5)
    assert left is not None
    np.testing.assert_array_equal(left.words, cases.words)


def test_nobody_is_held_out() -> None:
    assert withhold(of_predictions([], CHEST, LAYOUT), LAYOUT, 5) is None
    nothing = withhold(of_predictions([], CHEST, LAYOUT), LAYOUT, 1)
    assert not count(nothing, LAYOUT).any()


# --- attacks -------------------------------------------------------------------------------------
# Each runs against what is published, and must succeed against a weaker rule.


def secondary_left_out(cases: Cases, made: Layout, smallest: int) -> Cases | None:
    """Words of rare joint groups alone are withheld, and nothing joins them."""
    words = cases.words.copy()
    for positions in classes(cases).values():
        if any(patients(cases, positions, label) < smallest for label in set(cases.truth.tolist())):
            words[positions] = [listed.index(WITHHELD) for listed in made.words]
    return replace(cases, words=words)


def table_by_table(cases: Cases, made: Layout, smallest: int) -> Cases | None:
    """Each attribute by itself is made safe: thresholds and complements as of single tables."""
    words = cases.words.copy()
    for column, name in enumerate(made.attributes):
        one = replace(made, attributes=(name,), words=(made.words[column],))
        left = withhold(replace(cases, words=cases.words[:, [column]]), one, smallest)
        if left is None:
            return None
        words[:, column] = left.words[:, 0]
    return replace(cases, words=words)


def intervals(
    cases: Cases, left: Cases, by_bin: bool
) -> Iterator[tuple[Joint, int, int, int, float]]:
    """What a linear program over nonnegative integers says of how many cases each joint group has.

    The attacker knows all that leaves, of each joint group that it occurs, and to which words it was
    brought: more than is published.

    Yields:
        the group's true words, label, bin (-1: all), true number, and the width of the interval.
    """
    published = as_array(count(left, LAYOUT), LAYOUT)[:, 0]
    told = {
        tuple(a): tuple(b) for a, b in zip(cases.words.tolist(), left.words.tolist(), strict=True)
    }
    joint = sorted(told)
    in_group = np.array(
        [
            [
                all(
                    LAYOUT.words[c][told[words][c]] == word
                    for c, word in zip(table.columns, at, strict=True)
                )
                for words in joint
            ]
            for table in LAYOUT.tables
            for at in product(*(LAYOUT.words[c] for c in table.columns))
        ],
        np.float64,
    )
    counted: NDArray[np.float64] = published if by_bin else published.sum(axis=-1, keepdims=True)
    for label, place in product(range(2), range(counted.shape[-1])):
        values = counted[:, label, place]
        true = [
            sum(
                tuple(w) == words and t == label and (not by_bin or p == place)
                for w, t, p in zip(
                    cases.words.tolist(), cases.truth, cases.places[:, 0], strict=True
                )
            )
            for words in joint
        ]
        np.testing.assert_array_equal(in_group @ true, values)
        for at, words in enumerate(joint):
            ends = []
            for sign in (1, -1):
                objective = np.zeros(len(joint))
                objective[at] = sign
                solved = milp(
                    objective,
                    constraints=LinearConstraint(in_group, values, values),
                    bounds=Bounds(0, np.inf),
                    integrality=np.ones(len(joint)),
                )
                ends.append(sign * solved.fun)
            yield words, label, place if by_bin else -1, true[at], ends[1] - ends[0]


def narrowest(cases: Cases, rule: Rule, smallest: int) -> float:
    """Of joint groups with fewer patients of a label than may show, the narrowest interval."""
    left = rule(cases, LAYOUT, smallest)
    assert left is not None
    labels = set(cases.truth.tolist())
    by_group = classes(cases)
    return min(
        (
            width
            for words, label, _, _, width in intervals(cases, left, by_bin=False)
            if label in labels and patients(cases, by_group[words], label) < smallest
        ),
        default=np.inf,
    )


@settings(max_examples=30, deadline=None)
@given(cases=held_out(), smallest=SMALLEST)
def test_no_linear_program_finds_what_was_withheld(cases: Cases, smallest: int) -> None:
    assume(withhold(cases, LAYOUT, smallest) is not None)
    assert narrowest(cases, withhold, smallest) >= smallest


@settings(max_examples=5, deadline=None)
@given(cases=held_out(), smallest=SMALLEST)
def test_nor_in_any_bin(cases: Cases, smallest: int) -> None:
    """Where a rare joint group's cases show in a bin at all, any number of those in it may be theirs."""
    left = withhold(cases, LAYOUT, smallest)
    assume(left is not None)
    assert left is not None
    labels = set(cases.truth.tolist())
    by_group = classes(cases)
    for words, label, _, true, width in intervals(cases, left, by_bin=True):
        if label in labels and patients(cases, by_group[words], label) < smallest:
            assert width >= true


def lone_woman() -> Cases:
    """30 men, and one woman of each label."""
    words = np.zeros((62, 3), np.int64)
    words[2:, 0] = 1
    truth = np.arange(62) % 2
    places = (np.arange(62) % LAYOUT.bins)[:, None]
    return Cases(tuple(f"p{n}" for n in range(62)), words, truth, places)


def test_the_linear_program_finds_it_without_complements() -> None:
    assert narrowest(lone_woman(), secondary_left_out, 5) == 0
    assert narrowest(lone_woman(), withhold, 5) >= 5


def linked(left: Cases) -> list[tuple[Joint, int]]:
    """Words and label of each case that is alone in its bin, as the tables by one attribute tell."""
    published = as_array(count(left, LAYOUT), LAYOUT)[:, 0]
    found = []
    for label, place in zip(*np.nonzero(published[0] == 1), strict=True):
        words = []
        for table in LAYOUT.tables[1 : 1 + len(LAYOUT.words)]:
            column = published[table.first : table.first + table.size, label, place]
            words.append(int(column.argmax()))
        found.append((tuple(words), int(label)))
    return found


@settings(max_examples=150, deadline=None)
@given(cases=held_out(), smallest=SMALLEST)
def test_who_is_alone_in_a_bin_is_still_one_of_many(cases: Cases, smallest: int) -> None:
    left = withhold(cases, LAYOUT, smallest)
    assume(left is not None)
    assert left is not None
    by_class = classes(left)
    for words, label in linked(left):
        assert patients(left, by_class[words], label) >= smallest


def test_bins_link_tables_that_are_safe_one_by_one() -> None:
    """Ten young men, ten old women, a young woman: by sex and by age all are many. Her bin names her."""
    words = np.zeros((40, 3), np.int64)
    words[:20, 0], words[:20, 1] = 1, 1
    words[0] = (0, 1, 0)
    places = np.full((40, 1), 3)
    places[0] = 7
    cases = Cases(tuple(f"p{n}" for n in range(40)), words, np.zeros(40, np.int64), places)
    weak = table_by_table(cases, LAYOUT, 5)
    assert weak is not None
    assert linked(weak) == [((0, 1, 0), 0)]
    assert patients(weak, classes(weak)[0, 1, 0], 0) == 1
    left = withhold(cases, LAYOUT, 5)
    assert left is not None
    ((told, _),) = linked(left)
    assert patients(left, classes(left)[told], 0) >= 5


def test_a_round_with_one_patient_more_has_another_fingerprint() -> None:
    """What the hospital must not send: the difference would be of one patient."""
    cases = lone_woman()
    more = Cases(
        (*cases.patients, "late"),
        np.concatenate([cases.words, cases.words[-1:]]),
        np.append(cases.truth, 1),
        np.concatenate([cases.places, [[2]]]),
    )
    before, after = withhold(cases, LAYOUT, 5), withhold(more, LAYOUT, 5)
    assert before is not None
    assert after is not None
    assert (count(after, LAYOUT) - count(before, LAYOUT)).sum() == len(LAYOUT.tables)
    assert before.fingerprint(LAYOUT) != after.fingerprint(LAYOUT)


@pytest.mark.parametrize("smallest", [5, 10])
def test_how_much_is_left(smallest: int) -> None:
    """Some hundred patients keep most of what is named first."""
    made = layout(attributes=("sex", "age_band"))
    images = [
        binary(
            float(n % 7),
            n % 2,
            patient=f"p{n}",
            sex=("male", "female")[n // 2 % 2],
            age_band=("40-59", "60-79", "80+")[n // 4 % 3],
        )
        for n in range(240)
    ]
    left = withhold(of_predictions(images, CHEST, made), made, smallest)
    assert left is not None
    assert (left.words[:, 0] != made.words[0].index(WITHHELD)).all()
    assert (left.words[:, 1] != made.words[1].index(WITHHELD)).all()
