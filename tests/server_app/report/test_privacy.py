"""What the report says of privacy: the hospitals' figures, never rounded to the safe-looking side."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server_app.report import wording, write_report
from server_app.report.privacy import right_guess, section
from server_app.report.read import read_run
from server_app.report.reasons import REASONS
from server_app.report.style import CSS
from tests.server_app.report.parsed_page import Page, row, text, values
from tests.server_app.report.synthetic_private_run import ACCOUNTANT, write_private_run
from tests.server_app.report.synthetic_run import Line, write_run

HOSTILE = '<script>alert("1")</script>'
ACCOUNTS = "Privacy by hospital"


def page(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


def rewrite(folder: Path, change: Callable[[Line], None]) -> None:
    file = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        change(line)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


# --- arithmetic ----------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.5, 1.0, 3.0, 8.0])
def test_the_best_guess_is_that_of_the_best_test(epsilon: float) -> None:
    """Against every binary answer that ε allows: with the patient p, without q, on a fine grid."""
    grid = np.linspace(0, 1, 2001)
    p, q = np.meshgrid(grid, grid)
    factor = math.exp(epsilon) * (1 + 1e-12)
    allowed = (
        (p <= factor * q)
        & (q <= factor * p)
        & (1 - p <= factor * (1 - q))
        & (1 - q <= factor * (1 - p))
    )
    best = float((0.5 + 0.5 * np.abs(p - q))[allowed].max())
    assert right_guess(epsilon) == pytest.approx(best, abs=1e-3)
    assert (right_guess(epsilon) or 0) >= best - 1e-9


@given(st.floats(0, 1e5))
def test_an_upper_bound_is_never_shown_smaller_nor_a_lower_one_larger(value: float) -> None:
    slack = 1e-11 * max(1.0, value)
    assert value - slack <= float(wording.at_most(value)) <= value + 0.001 + slack
    assert value - 0.001 - slack <= float(wording.at_least(value)) <= value + slack


@given(st.floats(1e-12, 0.5))
def test_a_small_probability_is_rounded_up_to_two_digits(value: float) -> None:
    shown = wording.power(value).translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))
    leading, _, exponent = shown.rpartition("10-")
    read = float(leading.removesuffix(" × ") or 1) * 10 ** -int(exponent)
    assert value * (1 - 1e-6) <= read <= value * 1.1


@given(st.floats(0.5, 1))
def test_a_guess_is_never_shown_less_certain_than_it_may_be(value: float) -> None:
    shown = wording.share_at_most(value).removesuffix("\u00a0%")
    if shown == "over 99.99":
        assert value > 0.9999
    else:
        assert value * 100 - 1e-5 <= float(shown) < 100


@pytest.mark.parametrize(
    ("value", "interval", "shown"),
    [
        (0.8123, (0.7412, 0.8834), "0.81 (0.74 to 0.88)"),
        (0.8123, (0.8119, 0.8131), "0.812 (0.812 to 0.813)"),
        (0.02, (-0.11, 0.2), "0.02 (−0.11 to 0.20)"),
        (0.8123, None, "0.812"),
        (None, None, "–"),
    ],
)
def test_an_estimate_is_written_with_its_interval(
    value: float | None, interval: tuple[float, float] | None, shown: str
) -> None:
    assert wording.estimate(value, interval) == shown


# --- the section ---------------------------------------------------------------------------------


def test_the_table_has_the_figures_of_the_last_rows(tmp_path: Path) -> None:
    lines = write_private_run(tmp_path, rounds=9, left={}, metrics="none")
    html = page(tmp_path)
    last = [line for line in lines if line["kind"] == "round"][-1]["hospitals"]
    for name, told in last.items():
        spent = told["spent"]
        cells = row(html, ACCOUNTS, name)
        guess = math.exp(spent["epsilon"]) / (1 + math.exp(spent["epsilon"]))
        assert values(cells) == pytest.approx(
            [
                told["patients"],
                spent["run_epsilon"],
                spent["epsilon"],
                spent["budget"],
                spent["budget"] - spent["epsilon"],
                guess,
                spent["delta"],
                9 * 20,  # rounds × local steps
                spent["charges"],
            ],
            rel=1e-12,
        )
        width = re.search(r"width: ([\d.]+)%", cells[5])
        assert width is not None
        left = 100 * (1 - spent["epsilon"] / spent["budget"])
        assert float(width[1]) == pytest.approx(left, abs=0.051)
    terms = {name: row(html, "Terms of privacy", name)[1] for name in ("Accountant", "Unit", "Adj")}
    assert terms == {
        "Accountant": ACCOUNTANT,
        "Unit": "patient",
        "Adj": "add or remove one patient",
    }
    for name, value in {
        "Noise multiplier σ": "2.541093",
        "Sampling rate q": "0.15",
        "Clipping norm C": "1.25",
        "Images a patient k": "3",
        "Augmentations": "2",
        "Steps a round": "20",
        "Engine": "one backward pass a patient",
        "Mean over rounds (EMA)": "0.9",
    }.items():
        assert row(html, "Terms of privacy", name)[1] == value


def test_every_epsilon_of_every_round_is_in_the_figures(tmp_path: Path) -> None:
    lines = write_private_run(tmp_path, rounds=12, metrics="public")
    html = page(tmp_path)
    names = ["east", "north", "south", "west"]
    for title, key in (
        ("ε of this run", "run_epsilon"),
        ("ε of all runs, as the hospitals&#39; ledgers add it up", "epsilon"),
    ):
        for line in lines:
            if line["kind"] != "round":
                continue
            cells = row(html, f"Numbers: {title}", f"{line['round']}</th")
            told = [line["hospitals"][name].get("spent", {}).get(key) for name in names]
            assert cells == [str(line["round"]), *map(wording.at_most, told)]


def test_a_budget_that_ran_out_midway_is_seen(tmp_path: Path) -> None:
    lines = write_private_run(tmp_path, rounds=20)  # west leaves from round 14
    html = page(tmp_path)
    cells = row(html, ACCOUNTS, "west")
    assert "budget spent" in cells[0]
    assert "left from round 14" in cells[0]
    assert "budget spent" not in row(html, ACCOUNTS, "north")[0]
    last = next(line for line in lines if line["kind"] == "round" and line["round"] == 13)
    spent = last["hospitals"]["west"]["spent"]
    assert values(cells)[1:3] == [spent["run_epsilon"], spent["epsilon"]]
    assert values(cells)[-2] == 13 * 20
    assert REASONS["budget_spent"][1] in text(html)
    assert "not evaluated: privacy budget spent" in row(html, "Quality by hospital", "west")[1]
    assert wording.at_least(spent["budget"] - spent["epsilon"]) in html.split("</header>")[0]


def test_who_came_back_after_its_budget_was_raised_is_not_marked(tmp_path: Path) -> None:
    left = {3: {"west": "budget_spent"}, 4: {"west": "late"}, 6: {"west": "budget_spent"}}
    write_private_run(tmp_path, rounds=7, left=left)
    found = section(read_run(tmp_path))
    assert found is not None
    assert [a.refused_since for a in found.accounts] == [None] * 4
    write_private_run(tmp_path, rounds=6, left=left)
    found = section(read_run(tmp_path))
    assert found is not None
    assert [a.refused_since for a in found.accounts] == [None, None, None, 6]


def test_what_the_last_evaluation_cost_counts_too(tmp_path: Path) -> None:
    """It is charged after the last round, and told in its own row."""
    lines = write_private_run(tmp_path, rounds=4, left={}, metrics="noisy")
    told = lines[-1]["hospitals"]["north"]["spent"]
    html = page(tmp_path)
    cells = values(row(html, ACCOUNTS, "north"))
    assert cells[1:3] == [told["run_epsilon"], told["epsilon"]]
    assert cells[-2:] == [4 * 20, told["charges"]]
    after = [row(html, "Numbers: ε of this run", f"{r}</th")[2] for r in (3, 4)]
    assert after == [wording.at_most(0.41 * math.sqrt(r)) for r in (3, 4.2)]


def test_a_large_epsilon_is_called_large(tmp_path: Path) -> None:
    write_private_run(tmp_path, rounds=4, left={})
    assert "ε is large" not in text(page(tmp_path))

    def dear(line: Line) -> None:
        if "spent" in line["hospitals"]["south"]:
            line["hospitals"]["south"]["spent"] |= {"epsilon": 10.01, "budget": 30.0}

    rewrite(tmp_path, dear)
    html = page(tmp_path)
    assert "ε is large at south (10.010)." in text(html)
    assert "99.996" not in row(html, ACCOUNTS, "south")[6]
    assert "over 99.99" in row(html, ACCOUNTS, "south")[6]


def test_the_words_on_epsilon_and_on_what_it_does_not_cover(tmp_path: Path) -> None:
    write_private_run(tmp_path, rounds=3)
    said = text(page(tmp_path))
    assert "73.11 % at ε = 1, 95.26 % at ε = 3 and 99.97 % at ε = 8" in said
    assert "A patient in several hospitals: the hospitals' ε add up." in said
    assert "docs/security.md" in said
    assert "There is no differential privacy" not in said
    assert "Numbers of patients and images, training loss" not in said


def test_accountants_that_differ_have_a_column(tmp_path: Path) -> None:
    write_private_run(tmp_path, rounds=3)

    def other(line: Line) -> None:
        if "spent" in line["hospitals"]["east"]:
            line["hospitals"]["east"]["spent"]["accountant"] = "RDP (opacus 1.6.0)"

    rewrite(tmp_path, other)
    html = page(tmp_path)
    assert row(html, ACCOUNTS, "east")[-1] == "RDP (opacus 1.6.0)"
    assert row(html, ACCOUNTS, "north")[-1] == ACCOUNTANT
    assert row(html, "Terms of privacy", "Accountant")[1] == "by hospital, above"


def test_a_hospital_that_never_answered_has_a_row(tmp_path: Path) -> None:
    left = {r: {"south": "no_ledger"} for r in (1, 2, 3)}
    write_private_run(tmp_path, rounds=3, left=left)
    html = page(tmp_path)
    assert "told nothing of its ledger" in row(html, ACCOUNTS, "south")[2]


# --- metrics under privacy -----------------------------------------------------------------------


def test_noisy_metrics_are_shown_with_their_intervals(tmp_path: Path) -> None:
    lines = write_private_run(tmp_path, rounds=6, left={}, metrics="noisy")
    html = page(tmp_path)
    final = lines[-1]
    for name, told in final["hospitals"].items():
        cells = row(html, "Quality by hospital", name)
        assert len(cells) == 1 + len(told["metrics"])  # and no column for images or patients
        for cell, metric in zip(cells[1:], told["metrics"], strict=False):
            assert metric in told["metrics"]
            assert values([cell])[0] in told["metrics"].values()
        shown = wording.estimate(told["metrics"]["auroc"], told["intervals"]["auroc"])
        assert " ".join(Page(cells[1]).text.replace("worst", "").split()) == shown
    mean = wording.estimate(final["overall"]["auroc"], final["overall_intervals"]["auroc"])
    said = text(html)
    assert f"its AUROC is {mean} over all hospitals together" in said
    assert "mean" not in row(html, "Quality by hospital", "All hospitals together")[0]
    assert "Mean over hospitals" not in said
    assert "noise with a standard deviation of 7.5 patients" in said
    numbers = row(html, "Numbers: AUROC on held-out patients, with noise", "6</th")
    assert numbers[-1] == mean
    assert numbers[1] == wording.estimate(
        final["hospitals"]["east"]["metrics"]["auroc"],
        final["hospitals"]["east"]["intervals"]["auroc"],
    )


def test_the_intervals_are_drawn(tmp_path: Path) -> None:
    """A shade each for the mean and the worst hospital, bars for the other three; else neither."""
    write_private_run(tmp_path, rounds=6, left={}, metrics="noisy")
    shades = drawn_shades(page(tmp_path))

    def drop(line: Line) -> None:
        line.pop("overall_intervals", None)
        for told in line["hospitals"].values():
            told.pop("intervals", None)

    rewrite(tmp_path, drop)
    assert shades == {"FillBetweenPolyCollection": 2, "LineCollection": 3}
    assert drawn_shades(page(tmp_path)) == {}


def drawn_shades(html: str) -> Counter[str]:
    return Counter(re.findall(r'id="headline-((?:FillBetweenPoly|Line)Collection)_\d', html))


def test_public_metrics_are_exact_and_said_to_be_of_public_images(tmp_path: Path) -> None:
    lines = write_private_run(tmp_path, rounds=4, metrics="public")
    html = page(tmp_path)
    said = text(html)
    assert "on images that each hospital declares public" in said
    assert "AUROC on public images" in said
    assert "on patients that were never trained on" not in said
    told = lines[-1]["hospitals"]["north"]
    assert f"{told['metrics']['auroc']:.3f}" in row(html, "Quality by hospital", "north")[1]
    assert "interval" not in html.split("</style>")[1]


def test_a_run_without_evaluations(tmp_path: Path) -> None:
    lines = write_private_run(tmp_path, rounds=5, metrics="none")
    assert {line["kind"] for line in lines} == {"round"}
    html = page(tmp_path)
    said = text(html)
    assert "privacy.metrics=none" in said
    assert "No hospital measured this model." in said
    assert "AUROC" not in html.split('id="ran"')[0]
    tiles = html.split('<dl class="tiles">')[1].split("</dl>")[0]
    assert wording.at_most(0.41 * math.sqrt(5)) in tiles


@pytest.mark.parametrize("metrics", ["none", "noisy", "public"])
def test_nothing_is_shown_that_a_private_run_does_not_tell(tmp_path: Path, metrics: str) -> None:
    write_private_run(tmp_path, rounds=4, metrics=metrics)
    html = page(tmp_path)
    said = text(html)
    for exact in ("Training loss", "Training time", "Slowest training", "trained on "):
        assert exact not in said.replace("never trained on", "")
    assert "Patients (declared)" in said
    assert "1,000 patients, as they declare" in said


# --- runs without privacy, and half a run --------------------------------------------------------


def test_a_plain_run_says_so_in_a_line_and_is_otherwise_as_it_was(run_folder: Path) -> None:
    html = page(run_folder)
    own = html.split('aria-labelledby="privacy"')[1].split("</section>")[0]
    assert text(own).endswith(
        "Without differential privacy: updates, counts and metrics are exact, and no bound is proven "
        "on what they tell of one patient."
    )
    assert len(re.findall(r"<(p|table|figure|div)\b", own)) == 1
    said = text(html)
    assert "ε" not in said
    assert "declare" not in said
    assert 'class="interval"' not in html
    for column in ("Slowest training", "Training loss", "Training time", "Images", "trained on"):
        assert column in said
    assert "There is no differential privacy" in said
    assert len(re.findall(r"<figure>", html)) == 7


def test_without_the_experiment_only_what_is_known_is_said(tmp_path: Path) -> None:
    write_run(tmp_path / "plain", rounds=3)
    write_private_run(tmp_path / "private", rounds=3)
    for name in ("plain", "private"):
        (tmp_path / name / "experiment.json").unlink()
    said = text(page(tmp_path / "plain"))
    assert "cannot tell whether the run had differential privacy" in said
    assert "There is no differential privacy" not in said
    html = page(tmp_path / "private")
    assert row(html, "Terms of privacy", "Noise multiplier σ")[1] == "–"
    assert "north" in row(html, ACCOUNTS, "north")[0]


@pytest.mark.parametrize("nonsense", [None, "high", 0, -1, 1e300, [1], HOSTILE])
def test_nonsense_in_a_ledgers_word_leaves_a_page(tmp_path: Path, nonsense: Any) -> None:
    """Another word of each hospital's is nonsense, and all of the last one's."""
    keys = ["epsilon", "run_epsilon", "budget", "delta", "accountant", "charges"]
    hospitals = {f"without-{key}": 0.8 for key in keys} | {"without-all": 0.7}
    write_private_run(tmp_path, rounds=2, hospitals=hospitals, left={}, metrics="none")

    def spoil(line: Line) -> None:
        for name, told in line["hospitals"].items():
            for key in keys:
                if name in (f"without-{key}", "without-all"):
                    told["spent"][key] = nonsense

    rewrite(tmp_path, spoil)
    html = page(tmp_path)
    assert Page(html).open == []
    assert "<script" not in html


@pytest.mark.parametrize("intervals", [None, {"auroc": None}, {"auroc": [0.1]}, {"auroc": "wide"}])
def test_an_interval_that_is_none_is_left_out(tmp_path: Path, intervals: Any) -> None:
    write_private_run(tmp_path, rounds=2, left={})

    def spoil(line: Line) -> None:
        line["overall_intervals"] = intervals
        for told in line["hospitals"].values():
            told["intervals"] = intervals

    rewrite(tmp_path, spoil)
    html = page(tmp_path)
    assert 'class="interval"' not in html
    assert Page(html).open == []


def test_hostile_names_are_text_in_a_private_run_too(tmp_path: Path) -> None:
    hostile = {HOSTILE: 0.9, '"><img src=x onerror=alert(1)>': 0.8}
    write_private_run(tmp_path, rounds=3, hospitals=hostile, left={3: {HOSTILE: "budget_spent"}})

    def name(line: Line) -> None:
        for told in line["hospitals"].values():
            if "spent" in told:
                told["spent"]["accountant"] = HOSTILE

    rewrite(tmp_path, name)
    found = Page(page(tmp_path))
    assert {tag for tag, _ in found.elements}.isdisjoint({"script", "img"})
    assert found.open == []
    assert HOSTILE in found.text


@pytest.mark.parametrize("metrics", ["none", "noisy", "public"])
def test_a_private_page_is_whole_and_holds_all_it_needs(tmp_path: Path, metrics: str) -> None:
    many = {f"hospital-number-{i:02d}": 0.7 + 0.01 * i for i in range(9)}
    write_private_run(tmp_path, rounds=3, hospitals=many, left={}, metrics=metrics)
    html = page(tmp_path)
    found = Page(html)
    assert found.open == []
    ids = [a["id"] for _, a in found.elements if "id" in a]
    assert len(ids) == len(set(ids))
    links = {(a["href"] or "")[1:] for _, a in found.elements if a.get("href")}
    assert links <= set(ids)
    assert not re.search(r"https?:|@import|url\((?!#)", html)
    used = set(re.findall(r"var\((--[a-z0-9-]+)\)", html))
    assert used <= set(re.findall(r"(--[a-z0-9-]+):", CSS))
    assert page(tmp_path) == html


@pytest.mark.parametrize("lines", range(5))
def test_a_private_run_that_still_goes_on_can_be_looked_at(tmp_path: Path, lines: int) -> None:
    write_private_run(tmp_path, rounds=3, state="running", metrics="noisy")
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:lines]))
    assert Page(page(tmp_path)).open == []
