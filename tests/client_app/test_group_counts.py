"""Who is counted by group, whoever comes and goes: no two answers differ by few patients."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from client_app import group_counts
from client_app.division import Division
from client_app.group_counts import noisy_group_counts
from client_app.imaging.header import Kind
from client_app.imaging.image import Case, Image
from federation.fairness import counts
from federation.fairness.cases import Cases, of_predictions
from federation.fairness.counts import count
from federation.fairness.layout import WITHHELD
from federation.tasks import Prediction
from tests.federation.fairness import drawn

SMALLEST = 3
LAYOUT = drawn.layout(attributes=("sex", "manufacturer"))


def case(patient: str, file: str = "a.dcm", **attributes: str) -> Case:
    return Case(Image(Kind.RADIOGRAPH, patient, (Path(file),), (8, 8), attributes=attributes), 0)


def person(
    name: str, label: int, sex: str = "female", images: int = 1, score: float = 0.0
) -> list[tuple[Case, Prediction]]:
    return [
        (case(name, f"{image}.dcm"), drawn.binary(score + image, label, name, sex=sex))
        for image in range(images)
    ]


def crowd(prefix: str, each: int = 4, **options: Any) -> list[tuple[Case, Prediction]]:
    """`each` women and men of each class."""
    return [
        one
        for number, label, sex in itertools.product(range(each), (0, 1), ("female", "male"))
        for one in person(f"{prefix}{number}{label}{sex}", label, sex, **options)
    ]


def counted(
    state: Path, images: Sequence[tuple[Case, Prediction]], smallest: int = SMALLEST, **other: Any
) -> Any:
    cases, predictions = [c for c, _ in images], [p for _, p in images]
    layout = other.get("layout", LAYOUT)
    return group_counts.group_counts(
        predictions, cases, drawn.CHEST, layout, state=state, smallest=smallest
    )


def exact(images: Sequence[tuple[Case, Prediction]], layout: Any = LAYOUT) -> Any:
    return count(of_predictions([p for _, p in images], drawn.CHEST, layout), layout)


def total(vector: Any, layout: Any = LAYOUT) -> int:
    return int(vector.reshape(layout.shape)[0, 0].sum())


def test_without_a_smallest_group_all_count_and_nothing_is_remembered(tmp_path: Path) -> None:
    few = person("a", 1)
    np.testing.assert_array_equal(counted(tmp_path, few, 1), exact(few))
    assert not list(tmp_path.iterdir())


def test_the_same_patients_count_again_and_again(tmp_path: Path) -> None:
    everyone = crowd("a")
    for _ in range(3):
        np.testing.assert_array_equal(counted(tmp_path, everyone), exact(everyone))
    (file,) = (tmp_path / "counted").glob("*.json")
    assert file.stat().st_mode & 0o777 == 0o600
    otherwise = [
        (c, drawn.binary(3.0, int(p.target), p.patient, **p.attributes)) for c, p in everyone
    ]
    np.testing.assert_array_equal(counted(tmp_path, otherwise), exact(otherwise))


def test_one_more_or_one_less_does_not_show(tmp_path: Path) -> None:
    everyone = crowd("a")
    before = counted(tmp_path, everyone)
    np.testing.assert_array_equal(counted(tmp_path, everyone + person("new", 1)), before)
    # a later image of a patient who is counted neither
    later = (case("a00female", "later.dcm"), drawn.binary(5.0, 0, "a00female", sex="female"))
    np.testing.assert_array_equal(counted(tmp_path, [later, *everyone]), before)
    assert not counted(tmp_path, everyone[1:]).any()
    np.testing.assert_array_equal(counted(tmp_path, everyone), before)  # back again


def test_who_comes_later_is_counted_when_they_are_enough(tmp_path: Path) -> None:
    first, second = crowd("a"), crowd("b", each=2)
    before = counted(tmp_path, first)
    one_class = [one for one in crowd("c") if int(one[1].target) == 1]
    np.testing.assert_array_equal(counted(tmp_path, first + one_class), before)
    both = counted(tmp_path, first + second)
    added = (both - before).reshape(LAYOUT.shape)
    assert added[0].sum() == len(second)
    # two women of each class are too few by themselves: their words are told of none
    withheld = [g.words == (("sex", WITHHELD),) for g in LAYOUT.groups].index(True)
    assert added[withheld].sum() == len(second)
    # and stay so, whoever comes
    third = counted(tmp_path, first + second + crowd("d"))
    np.testing.assert_array_equal(third - both, exact(crowd("d")))


def test_changed_words_or_classes_stop_the_batch(tmp_path: Path) -> None:
    everyone = crowd("a")
    counted(tmp_path, everyone)
    for changed in (person("a00female", 0, "male"), person("a00female", 1, "female")):
        assert not counted(tmp_path, [*changed, *everyone[1:]]).any()


def test_a_damaged_file_and_a_stricter_policy_count_nobody(tmp_path: Path) -> None:
    everyone = crowd("a")
    whole = counted(tmp_path, everyone)
    assert whole.any()
    assert not counted(tmp_path, everyone, SMALLEST + 1).any()
    np.testing.assert_array_equal(counted(tmp_path, everyone, 2), whole)
    (file,) = (tmp_path / "counted").glob("*.json")
    misspelt = file.read_bytes().replace(b'"sex"', b'"six"')
    for content in (b"", b"{}x", b'[{"told": "x"}]', b"[3]", misspelt, file.read_bytes()[:-3]):
        file.write_bytes(content)
        assert not counted(tmp_path, everyone).any()
        assert file.read_bytes() == content


def test_files_of_before_there_was_one_division_count_nobody(tmp_path: Path) -> None:
    """What left by them is not known here, and would be told apart from what leaves now."""
    old = tmp_path / "counted" / f"{'0a' * 16}.json"
    old.parent.mkdir()
    old.write_text("[]")
    assert not counted(tmp_path, crowd("a")).any()
    old.unlink()
    assert counted(tmp_path, crowd("a")).any()


def test_the_first_experiment_divides_the_patients_for_all_others(tmp_path: Path) -> None:
    everyone = crowd("a")
    counted(tmp_path, everyone)
    fine = drawn.layout(attributes=("sex", "manufacturer"), score_bins=64, pairs=True)
    np.testing.assert_array_equal(counted(tmp_path, everyone, layout=fine), exact(everyone, fine))
    fewer = drawn.layout(attributes=("sex",))
    np.testing.assert_array_equal(counted(tmp_path, everyone, layout=fewer), exact(everyone, fewer))
    other = drawn.layout(attributes=("age_band", "sex"))
    told = counted(tmp_path, everyone, layout=other).reshape(other.shape)
    by = {group.words: int(told[at, 0].sum()) for at, group in enumerate(other.groups)}
    assert by[("age_band", WITHHELD),] == by[()] == len(everyone)
    assert by[("sex", "female"),] == len(everyone) // 2
    assert not counted(tmp_path, everyone, layout=drawn.layout(unit="patient")).any()
    assert len(list((tmp_path / "counted").glob("*.json"))) == 1


def test_what_two_experiments_tell_apart_is_not_one_woman(tmp_path: Path) -> None:
    """By sex there are eleven women of a class, by age and sex ten would be told: not one by herself."""
    ages = {"40-59": {"female": 10, "male": 10}, "80+": {"female": 1, "male": 9}}
    people = [
        (
            case(f"{label}{age}{sex}{number}"),
            drawn.binary(0.0, label, f"{label}{age}{sex}{number}", sex=sex, age_band=age),
        )
        for label, age in itertools.product((0, 1), ages)
        for sex, many in ages[age].items()
        for number in range(many)
    ]

    def women(attributes: tuple[str, ...]) -> list[int]:
        layout = drawn.layout(attributes=attributes)
        told = counted(tmp_path, people, layout=layout, smallest=5).reshape(layout.shape)
        at = [group.words for group in layout.groups].index((("sex", "female"),))
        return [int(row.sum()) for row in told[at, 0]]

    assert women(("sex",)) == women(("age_band", "sex")) == [11, 11]


@pytest.mark.parametrize(
    ("first", "then", "read"),
    [
        (
            {"age_cuts": (40, 80)},
            {"age_cuts": (40,)},
            {"0-39": "0-39", "40-79": "40+", "80+": "40+"},
        ),
        ({"age_cuts": (40,)}, {"age_cuts": (60,)}, {"0-39": "0-59", "40+": WITHHELD}),
        ({"age_cuts": (60,)}, {}, {"0-59": WITHHELD, "60+": WITHHELD}),
    ],
)
def test_bands_of_age_are_read_off_where_one_holds_the_other(
    first: dict[str, Any], then: dict[str, Any], read: dict[str, str]
) -> None:
    fixed = drawn.layout(attributes=("age_band",), **first)
    wanted = drawn.layout(attributes=("age_band",), **then)
    assert words_read(fixed, wanted) == read | {"unknown": "unknown", WITHHELD: WITHHELD}


@pytest.mark.parametrize(
    ("first", "then", "read"),
    [
        (("ge", "agfa"), ("ge",), {"ge": "ge", "agfa": "other", "other": "other"}),
        (("ge",), ("ge", "agfa"), {"ge": "ge", "other": WITHHELD}),
    ],
)
def test_who_may_be_of_a_maker_that_was_not_named_is_withheld(
    first: tuple[str, ...], then: tuple[str, ...], read: dict[str, str]
) -> None:
    fixed = drawn.layout(attributes=("manufacturer",), manufacturers=first)
    wanted = drawn.layout(attributes=("manufacturer",), manufacturers=then)
    assert words_read(fixed, wanted) == read | {"unknown": "unknown", WITHHELD: WITHHELD}


def words_read(fixed: Any, wanted: Any) -> dict[str, str]:
    """Each word of a division of one attribute, as an experiment is told it."""
    words = np.arange(len(fixed.words[0]))[:, None]
    division = Division.of(fixed, drawn.CHEST.classes)
    none = np.zeros(len(words), np.int64)
    told = division.told(Cases(("p",) * len(words), words, none, none[:, None]), wanted)
    return {
        word: wanted.words[0][at]
        for word, at in zip(fixed.words[0], told.words[:, 0].tolist(), strict=True)
    }


PERSON = st.tuples(st.integers(0, 1), st.sampled_from(["female", "male", "unknown"]), st.booleans())
LAYOUTS = [LAYOUT, drawn.layout(attributes=("manufacturer",)), drawn.layout(attributes=("sex",))]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_no_numbers_of_any_rounds_tell_few_apart(
    data: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Who is told by the same numbers of all rounds is one of enough of the same class.

    Scores change no word, so one patient's cells are those in which a score shows that nobody else has.
    """
    state = tmp_path_factory.mktemp("rounds")
    people = data.draw(st.lists(PERSON, min_size=4, max_size=26))
    shows: dict[int, list[bytes]] = {number: [] for number in range(len(people))}
    for _ in range(data.draw(st.integers(2, 4))):
        there = data.draw(st.lists(st.booleans(), min_size=len(people), max_size=len(people)))
        here = {
            number: person(f"p{number}", label, sex, score=-9.0)[: 1 + twice]
            for number, (label, sex, twice) in enumerate(people)
            if there[number] or number % 3
        }
        layout = data.draw(st.sampled_from(LAYOUTS))
        counted(state, [one for own in here.values() for one in own], layout=layout)
        for number, (label, sex, _) in enumerate(people):
            marked = here | {number: person(f"p{number}", label, sex, score=9.0)}
            images = [one for other in here for one in marked[other]]
            cells = counted(state, images, layout=layout).reshape(layout.shape)[..., -2]
            shows[number].append((cells > 0).any(axis=2).tobytes() if cells.any() else b"")
    groups: dict[tuple[bytes, ...], list[int]] = {}
    for number, seen in shows.items():
        if any(any(cells) for cells in seen):
            groups.setdefault(tuple(seen), []).append(people[number][0])
    for labels in groups.values():
        assert min(labels.count(label) for label in set(labels)) >= SMALLEST


# --- under patient-level privacy -------------------------------------------------------------------


class Quiet:
    """Noise of a known size: none."""

    def gaussian(self, number: int) -> torch.Tensor:
        return torch.zeros(number, dtype=torch.float64)


def noisy(people: list[tuple[Case, Prediction]], monkeypatch: Any, csprng: Any = None) -> Any:
    layout = drawn.layout(attributes=("sex", "manufacturer"), noise_multiplier=2.0)
    by_case = {id(c): p for c, p in people}

    def predict(network: Any, task: Any, one: Case, item: Any, device: Any) -> Prediction:
        found = by_case[id(one)]
        if found.patient == "broken":
            raise OSError(f"cannot read {found.patient}")
        return found

    monkeypatch.setattr(group_counts, "predict", predict)
    cases = [c for c, _ in people]
    items: Any = [{}] * len(cases)
    return noisy_group_counts(
        torch.nn.Identity(),
        drawn.CHEST,
        layout,
        cases,
        items,
        device=torch.device("cpu"),
        csprng=csprng,
    ), layout


def test_with_noise_each_patient_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    people = person("a", 1, images=5) + person("b", 0, "male") + person("broken", 1)
    found, layout = noisy(people, monkeypatch, Quiet())
    first = [people[0], people[5]]
    np.testing.assert_array_equal(found, exact(first, layout))


def test_the_noise_is_as_large_as_was_charged(monkeypatch: pytest.MonkeyPatch) -> None:
    found, layout = noisy(crowd("a"), monkeypatch)
    again, _ = noisy(crowd("a"), monkeypatch)
    assert (found != again).any()
    assert found.dtype == np.int64
    expected = 2.0 * np.sqrt(3.0)  # σ, and three tables: of all, of sexes, of manufacturers
    assert counts.noise(layout) == pytest.approx(expected)
    rest = np.concatenate([found - exact(crowd("a"), layout), again - exact(crowd("a"), layout)])
    assert rest.std() == pytest.approx(expected, rel=0.1)
    nobody, _ = noisy([], monkeypatch)
    assert nobody.std() == pytest.approx(expected, rel=0.1)
