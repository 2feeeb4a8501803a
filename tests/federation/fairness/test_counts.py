"""Layouts that do not depend on data, and vectors that add up."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from client_app.imaging.attributes import _AGE_BANDS, _FIELD_STRENGTHS, _VIEWS, attributes
from federation.fairness.cases import Cases, of_predictions
from federation.fairness.counts import as_array, count, named, nonnegative, sensitivity
from federation.fairness.layout import UNKNOWN, WITHHELD, score_edges
from federation.schema import AGES, ConfigError, Fairness, parse
from federation.tasks import Prediction
from tests.federation.fairness.drawn import (
    ALZHEIMERS,
    CHEST,
    HIPPOCAMPUS,
    MAMMOGRAPHY,
    TUMOUR,
    binary,
    hospital,
    layout,
    segmented,
)

SEED = st.integers(0, 2**32 - 1)
ALL_SIX = ("sex", "age_band", "manufacturer", "field_strength", "view", "breast_density")


# --- layout --------------------------------------------------------------------------------------


def test_the_layout_is_the_same_for_ever() -> None:
    """Groups by name and the vector's shape, written down: vectors of two versions must add up."""
    made = layout(MAMMOGRAPHY, attributes=ALL_SIX, pairs=True)
    names = "\n".join(group.name for group in made.groups)
    sizes = [4, 7, 11, 7, 10, 6]
    assert [len(words) for words in made.words] == sizes
    pairs = (sum(sizes) ** 2 - sum(size**2 for size in sizes)) // 2
    assert made.shape == (1 + sum(sizes) + pairs, 1, 2, 33)
    digest = hashlib.sha256(names.encode()).hexdigest()
    assert digest == NAMES, digest
    assert names.splitlines()[:6] == [
        "all",
        "sex=female",
        "sex=male",
        "sex=unknown",
        "sex=withheld",
        "age_band=0-17",
    ]


NAMES = "04e6fcdae8b747c06de1ec96ea90ee76a314019e9b3574ee5782819bcd377b8e"


def test_a_group_is_where_its_table_says() -> None:
    made = layout(attributes=("sex", "age_band"), pairs=True)
    table = made.tables[-1]
    assert table.columns == (0, 1)
    group = made.groups[table.first + 1 * len(made.words[1]) + 2]
    assert group.name == "sex=male & age_band=40-59"
    assert group.attributes == ("sex", "age_band")
    assert len(made.groups) == made.shape[0]
    assert [g.known for g in made.groups if g.attributes == ("sex",)] == [True, True, False, False]


def test_every_word_that_hospitals_say_has_a_cell() -> None:
    made = layout(attributes=ALL_SIX)
    said = {
        "sex": ["female", "male"],
        "age_band": [band for _, band in _AGE_BANDS],
        "field_strength": list(_FIELD_STRENGTHS),
        "view": sorted(set(_VIEWS.values())),
        "breast_density": list("abcd"),
    }
    for attribute, words in said.items():
        listed = made.words[made.attributes.index(attribute)]
        assert sorted(listed) == sorted([*words, UNKNOWN, WITHHELD])
        assert [made.word(attribute, word) for word in words] == [listed.index(w) for w in words]
    assert [limit for limit, _ in _AGE_BANDS][:-1] == list(AGES)


@pytest.mark.parametrize("said", [None, "", "unknown", "withheld", "Female", "x" * 9999, 3, "\x00"])
def test_what_is_on_no_list_is_unknown(said: Any) -> None:
    made = layout(attributes=ALL_SIX)
    for attribute in ALL_SIX:
        word = made.words[made.attributes.index(attribute)][made.word(attribute, said)]
        told = attribute == "manufacturer" and said in ("Female", "x" * 9999, "\x00")
        assert word == ("other" if told else UNKNOWN)


def test_ages_are_joined_to_the_bands_that_the_experiment_names() -> None:
    made = layout(attributes=("age_band",), age_cuts=(40, 80))
    assert made.words == (("0-39", "40-79", "80+", UNKNOWN, WITHHELD),)
    for years in range(1, 120):
        band = attributes(age=str(years))["age_band"]
        assert made.word("age_band", band) == (years >= 40) + (years >= 80)
    assert made.word("age_band", "40-79") == 3  # no hospital says so
    assert layout(attributes=("age_band",), age_cuts=(60,)).words[0][:2] == ("0-59", "60+")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"attributes": ["sex", "sex"]}, "twice"),
        ({"attributes": []}, "attributes"),
        ({"attributes": ["race"]}, "attributes"),
        ({"age_cuts": [50]}, "age_cuts"),
        ({"age_cuts": [60, 40]}, "age_cuts"),
        ({"manufacturers": ["other"]}, "manufacturers"),
        ({"manufacturers": ["ge = x"]}, "manufacturers"),
        ({"score_bins": 9}, "score_bins"),
        ({"attribute": ["sex"]}, "did you mean 'attributes'"),
    ],
)
def test_options_are_closed(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse(Fairness, options)


def test_a_layout_of_too_many_cells_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"fairness: .* pairs=false"):
        layout(ALZHEIMERS, attributes=ALL_SIX, pairs=True, score_bins=256)


@pytest.mark.parametrize("bins", [8, 20, 32, 64, 256])
def test_score_edges_are_fine_in_probability_and_in_log_odds(bins: int) -> None:
    edges = score_edges(bins)
    assert edges.shape == (bins + 1,)
    assert (np.diff(edges) > 0).all()
    assert edges[[0, bins // 2, -1]].tolist() == [0, 0.5, 1]
    np.testing.assert_allclose(edges, 1 - edges[::-1], atol=1e-12)
    assert np.diff(edges).max() <= 2 / bins
    log_odds = np.log(edges[1:-1]) - np.log1p(-edges[1:-1])
    assert np.diff(log_odds).max() <= 32 / bins + 1e-9


# --- cases ---------------------------------------------------------------------------------------


def test_a_score_is_in_the_bin_of_its_probability() -> None:
    made = layout()
    log_odds = np.random.default_rng(1).normal(0, 4, 500)
    cases = of_predictions([binary(float(x), 0) for x in log_odds], CHEST, made)
    found = np.digitize(1 / (1 + np.exp(-log_odds)), made.edges[1:-1])
    np.testing.assert_array_equal(cases.places[:, 0], found)


def test_an_even_score_is_called_positive() -> None:
    made = layout()
    cases = of_predictions([binary(0.0, 0), binary(-1e-9, 0)], CHEST, made)
    assert cases.places[:, 0].tolist() == [made.bins // 2, made.bins // 2 - 1]


def test_classes_are_each_against_the_rest() -> None:
    made = layout(ALZHEIMERS)
    logits = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    cases = of_predictions([Prediction("p", logits, torch.tensor(2))], ALZHEIMERS, made)
    found = np.digitize(logits.softmax(0).numpy(), made.edges[1:-1])
    np.testing.assert_array_equal(cases.places[0], found)
    vector = as_array(count(cases, made), made)
    assert vector[0].sum(axis=-1).tolist() == [[1, 0], [1, 0], [0, 1]]
    assert made.channels == ALZHEIMERS.classes


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_unanswered_and_still_counted(value: float) -> None:
    made = layout()
    cases = of_predictions([binary(value, 1, sex="male")], CHEST, made)
    assert cases.places.tolist() == [[made.bins]]
    assert made.extra == ("unanswered",)
    assert named(count(cases, made), made)["sex=male"]["pneumonia"][1, made.bins] == 1


def test_breasts_are_counted_as_the_task_measures_them() -> None:
    """Two views of the left breast, one of the right, and one that does not say."""
    made = layout(MAMMOGRAPHY, attributes=("view", "sex"))
    images = [
        binary(1.0, 0, laterality="left", view="cc", sex="female"),
        binary(3.0, 1, laterality="left", view="mlo", sex="female"),
        binary(-2.0, 0, laterality="right", view="cc", sex="female"),
        binary(0.5, 0, view="cc", sex="female"),
    ]
    at = {
        x: int(of_predictions([binary(x, 0)], CHEST, made).places[0, 0]) for x in (2.0, -2.0, 0.5)
    }
    by_breast = of_predictions(images, MAMMOGRAPHY, made)
    assert by_breast.places[:, 0].tolist() == [at[2.0], at[-2.0], at[0.5]]
    assert by_breast.truth.tolist() == [1, 0, 0]
    assert [made.words[0][word] for word in by_breast.words[:, 0]] == [UNKNOWN, "cc", "cc"]
    by_image = of_predictions(images, MAMMOGRAPHY, layout(MAMMOGRAPHY, unit="image"))
    assert len(by_image) == 4
    by_patient = of_predictions(images, MAMMOGRAPHY, layout(MAMMOGRAPHY, unit="patient"))
    assert (by_patient.places.tolist(), by_patient.truth.tolist()) == ([[at[2.0]]], [1])


def test_a_patient_counts_once_a_diagnosis_where_there_are_no_parts() -> None:
    made = layout(unit="patient")
    images = [binary(1.0, 0), binary(3.0, 0), binary(-1.0, 1), binary(0.0, 0, patient="q")]
    cases = of_predictions(images, CHEST, made)
    assert cases.patients == ("p", "p", "q")
    assert cases.truth.tolist() == [0, 1, 0]
    alike = of_predictions([binary(x, 0) for x in (2.0, -1.0, 0.0)], CHEST, layout())
    np.testing.assert_array_equal(cases.places, alike.places)


def test_one_image_without_an_answer_leaves_its_patient_without() -> None:
    made = layout(MAMMOGRAPHY, unit="patient")
    images = [binary(math.nan, 0, laterality="left"), binary(9.0, 0, laterality="right")]
    assert of_predictions(images, MAMMOGRAPHY, made).places.tolist() == [[made.bins]]


def test_dice_bins_and_what_has_no_dice() -> None:
    made = layout(HIPPOCAMPUS)
    assert (made.channels, made.extra) == (("anterior", "posterior"), ("undefined", "unanswered"))
    dices = [(0.0, 1.0), (0.05, 0.999), (0.52, math.nan)]
    cases = of_predictions([segmented(pair) for pair in dices], HIPPOCAMPUS, made)
    assert cases.places.tolist() == [[0, 19], [1, 19], [10, 20]]
    broken = of_predictions([segmented((0.5, 0.5), loss=math.nan)], HIPPOCAMPUS, made)
    assert broken.places.tolist() == [[21, 21]]
    outside = of_predictions([segmented((0.5, 1.5))], HIPPOCAMPUS, made)
    assert outside.places.tolist() == [[21, 21]]
    mean = layout(HIPPOCAMPUS, unit="patient")
    assert of_predictions(
        [segmented(pair) for pair in dices], HIPPOCAMPUS, mean
    ).places.tolist() == [[3, 19]]


@pytest.mark.parametrize("task", [HIPPOCAMPUS, TUMOUR], ids=lambda task: task.name)
def test_segmentations_outcomes_are_what_is_read_from_them(task: Any) -> None:
    """Dice by structure first, the loss last: the tasks' own outcomes, not this test's idea of them."""
    generator = torch.Generator().manual_seed(3)
    target = torch.randint(0, len(task.classes), (1, 12, 12, 12), generator=generator).to(
        torch.uint8
    )
    logits = torch.randn(len(task.classes), 12, 12, 12, generator=generator)
    made = layout(task, dice_bins=100)
    (places,) = of_predictions(
        [Prediction("p", task.outcome(logits, target), target.new_empty(0))], task, made
    ).places
    said = logits.argmax(0)
    for channel, place in enumerate(places, start=1):
        said_so, true = said == channel, target[0] == channel
        dice = 2 * int((said_so & true).sum()) / int(said_so.sum() + true.sum())
        assert place == int(dice * 100)
    broken = Prediction("p", task.outcome(logits * math.nan, target), target.new_empty(0))
    assert of_predictions([broken], task, made).places.tolist() == [[101] * (len(task.classes) - 1)]


def test_what_is_no_outcome_of_the_task_is_refused() -> None:
    made = layout()
    with pytest.raises(ValueError, match="no class"):
        of_predictions([binary(0, 2)], CHEST, made)
    with pytest.raises(ValueError, match="logits"):
        of_predictions([Prediction("p", torch.zeros(3), torch.tensor(0))], CHEST, made)
    with pytest.raises(ValueError, match="Dice"):
        of_predictions([segmented((0.5,))], HIPPOCAMPUS, layout(HIPPOCAMPUS))


# --- counts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [CHEST, ALZHEIMERS], ids=lambda task: task.name)
@settings(max_examples=25, deadline=None)
@given(seed=SEED, sizes=st.lists(st.integers(0, 30), min_size=1, max_size=4))
def test_hospitals_counts_add_up_to_the_pooled_counts(
    task: Any, seed: int, sizes: list[int]
) -> None:
    made = layout(task, pairs=True, score_bins=8)
    generator = np.random.default_rng(seed)
    predictions = [hospital(generator, size, task=task) for size in sizes]
    vectors = [count(of_predictions(one, task, made), made) for one in predictions]
    pooled = count(of_predictions([case for one in predictions for case in one], task, made), made)
    np.testing.assert_array_equal(sum(vectors), pooled)
    assert pooled.dtype == np.int64


def test_each_group_holds_exactly_its_cases() -> None:
    made = layout(pairs=True)
    predictions = hospital(np.random.default_rng(5), 80)
    by_name = named(count(of_predictions(predictions, CHEST, made), made), made)
    expected: Counter[tuple[str, int, int]] = Counter()
    for case in predictions:
        log_odds = float(case.outcome[1] - case.outcome[0])
        place = int(np.digitize(1 / (1 + math.exp(-log_odds)), made.edges[1:-1]))
        words = {
            a: "other" if (a, w) == ("manufacturer", "shimadzu") else w
            for a, w in case.attributes.items()
        }
        names = ["all", *(f"{a}={w}" for a, w in words.items())]
        pairs = [("sex", "age_band"), ("sex", "manufacturer"), ("age_band", "manufacturer")]
        names += [f"{a}={words[a]} & {b}={words[b]}" for a, b in pairs]
        expected.update((name, int(case.target), place) for name in names)
    found = {
        (name, label, place): int(channels["pneumonia"][label, place])
        for name, channels in by_name.items()
        for label, place in zip(*np.nonzero(channels["pneumonia"]), strict=True)
    }
    assert found == expected


def test_a_hospital_without_predictions_counts_nothing() -> None:
    for task in (CHEST, HIPPOCAMPUS, ALZHEIMERS):
        made = layout(task)
        vector = count(of_predictions([], task, made), made)
        assert vector.shape == (made.size,)
        assert not vector.any()
        assert not count(None, made).any()


@settings(max_examples=40, deadline=None)
@given(seed=SEED, most=st.integers(1, 4))
def test_one_patient_moves_the_vector_no_more_than_is_said(seed: int, most: int) -> None:
    made = layout(ALZHEIMERS, pairs=True, score_bins=8)
    predictions = hospital(np.random.default_rng(seed), 6, task=ALZHEIMERS, images=6)
    cases = of_predictions(predictions, ALZHEIMERS, made).at_most(most)
    assert max(Counter(cases.patients).values()) <= most
    others = of_predictions(
        [one for one in predictions if one.patient != "p3"], ALZHEIMERS, made
    ).at_most(most)
    moved = count(cases, made) - count(others, made)
    said = sensitivity(made, most)
    assert (moved != 0).sum() <= said.cells
    assert np.abs(moved).max() <= said.most
    assert np.abs(moved).sum() <= said.l1
    assert np.linalg.norm(moved) <= said.l2 + 1e-9


def test_the_sensitivity_is_reached() -> None:
    made = layout(pairs=True)
    alike = of_predictions([binary(1.0, 1, sex="male")] * 3, CHEST, made)
    said = sensitivity(made, 3)
    assert np.linalg.norm(count(alike, made)) == pytest.approx(said.l2)
    assert count(alike, made).sum() == said.l1 == 3 * 7
    unlike = of_predictions(
        [
            binary(x, 1, sex=sex, age_band=age, manufacturer=made_by)
            for x, sex, age, made_by in (
                (1.0, "male", "80+", "ge"),
                (-1.0, "female", "0-17", "agfa"),
            )
        ],
        CHEST,
        made,
    )
    assert (count(unlike, made) != 0).sum() == sensitivity(made, 2).cells
    with pytest.raises(ValueError, match="cases_per_patient"):
        sensitivity(made, 0)


def test_a_vector_of_another_layout_is_refused() -> None:
    for read in (as_array, named):
        with pytest.raises(ValueError, match="layout"):
            read(np.zeros(3, np.int64), layout())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-2000, 3000), min_size=2, max_size=6))
def test_noisy_histograms_are_projected(values: list[int]) -> None:
    """Against the conditions of Karush, Kuhn and Tucker of the projection."""
    noisy = np.array(values) / 64
    found = nonnegative(noisy)
    assert (found >= 0).all()
    if noisy.sum() <= 0:
        assert not found.any()
    else:
        assert found.sum() == pytest.approx(noisy.sum(), abs=1e-9)
        moved = noisy - found
        assert np.ptp(moved[found > 1e-9]) < 1e-9
        assert (moved[found <= 1e-9] <= moved[found > 1e-9].mean() + 1e-9).all()


def test_the_fingerprint_knows_groups_and_not_answers() -> None:
    made = layout()
    one = of_predictions([binary(1.0, 0, sex="male"), binary(0.0, 1, patient="q")], CHEST, made)
    turned = of_predictions([binary(5.0, 1, patient="q"), binary(2.0, 0, sex="male")], CHEST, made)
    assert one.fingerprint(made) == turned.fingerprint(made)
    others = [
        [binary(1.0, 0, sex="male")],
        [binary(1.0, 0, sex="female"), binary(0.0, 1, patient="q")],
        [binary(1.0, 1, sex="male"), binary(0.0, 1, patient="q")],
        [binary(1.0, 0, sex="male"), binary(0.0, 1, patient="r")],
    ]
    for predictions in others:
        assert of_predictions(predictions, CHEST, made).fingerprint(made) != one.fingerprint(made)
    assert one.fingerprint(layout(age_cuts=(60,))) != one.fingerprint(made)


def test_pseudonyms_are_not_printed() -> None:
    cases = of_predictions([binary(1.0, 0, patient="secret-pseudonym")], CHEST, layout())
    assert isinstance(cases, Cases)
    assert "secret" not in repr(cases)
