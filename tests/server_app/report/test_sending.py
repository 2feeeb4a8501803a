"""What the report says of runs under masks, and of codecs; and what it must not pretend to know."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from federation.messages import Phase
from server_app.report import write_report
from server_app.report.read import read_run
from server_app.report.sending import section
from tests.hospitals import Hospitals
from tests.masked import crashing, masked
from tests.server_app.report.parsed_page import Page, row, text, values
from tests.server_app.report.synthetic_masked_run import (
    MODEL_BYTES,
    OWN,
    STEPS,
    write_masked_run,
)
from tests.server_app.report.synthetic_run import HOSPITALS, Line, experiment, write_run

SUMS = "Sums and bytes by round"
QUALITY = "Quality after each round"
HOSTILE = '<script>alert("1")</script>'


def page(folder: Path) -> str:
    html = write_report(folder).read_text(encoding="utf-8")
    assert Page(html).open == []
    return html


def rewrite(folder: Path, change: Callable[[Line], None]) -> None:
    file = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        change(line)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


# --- what is told --------------------------------------------------------------------------------


def test_the_sums_are_shown_as_they_were_recorded(tmp_path: Path) -> None:
    lines = write_masked_run(tmp_path)
    html = page(tmp_path)
    for line in lines:
        if line["kind"] == "evaluation":
            cells = row(
                html, QUALITY, f"{line['round']}{'' if line['round'] else ' (untrained)'}</th>"
            )
            shown = values(cells)
            assert set(line["overall"].values()) <= set(shown)
            assert shown[-1] == line["held_out_patients"]
        else:
            summed = line["summed"]
            moved = [
                sum(told[way] for told in line["hospitals"].values())
                for way in ("bytes_down", "bytes_up")
            ]
            asked, there = len(HOSPITALS), len(summed["hospitals"])
            assert values(row(html, SUMS, f"{line['round']}</th>")) == pytest.approx(
                [
                    there,
                    summed["patients"],
                    summed["loss"],
                    *line["steps"].values(),
                    moved[0],
                    moved[0] / (asked * MODEL_BYTES),
                    moved[1],
                    moved[1] / (there * MODEL_BYTES),
                ]
            )
    totals = values(row(html, SUMS, "All"))
    assert totals[:4] == [3 * STEPS["setup"], *(6 * STEPS[s] for s in ("work", "sign", "open"))]
    assert totals[5] == pytest.approx((1.02 + 5 * 0.255) / 6)
    assert totals[7] == pytest.approx(0.32)


def test_the_guarantee_stands_with_its_assumptions(tmp_path: Path) -> None:
    write_masked_run(tmp_path)
    said = text(page(tmp_path))
    for words in (
        "the sum over 3 or more hospitals",
        "fewer than a third of the hospitals in a sum work together with the coordinator",
        "accepted the roster after comparing fingerprints",
        "the same experiment and the same model",
        "sums over hospitals that differ by one",
        "who lies about its update",
        "which this run has not",
        "all arrays → integers of 8 bits (16 in the first round) → masked",
        "smallest sum that was opened is that of 3 hospitals, in round 3",
    ):
        assert words in said, words
    assert "there is no secure aggregation" not in said
    assert "can read each hospital's update" not in said


@pytest.mark.parametrize("weighting", ["examples", "equal"])
def test_weights_that_hospitals_make_known_are_named(weighting: str, tmp_path: Path) -> None:
    write_masked_run(tmp_path, weighting=weighting)
    said = text(page(tmp_path))
    assert ("on how many patients it trains" in said) == (weighting == "examples")
    assert ("each hospital's weight, its number of patients" in said) == (weighting == "examples")


@pytest.mark.parametrize("metrics", ["none", "noisy", "public"])
def test_privacy_and_masks_stand_side_by_side(metrics: str, tmp_path: Path) -> None:
    lines = write_masked_run(tmp_path, private=True, metrics=metrics)
    html = page(tmp_path)
    said = text(html)
    last = [line for line in lines if line["kind"] == "round"][-1]["hospitals"]
    for name, told in last.items():
        shown = values(row(html, "Privacy by hospital", name))
        assert shown[:3] == [told["spent"][key] for key in ("run_epsilon", "epsilon", "budget")]
    for words in ("the masks make no ε smaller", "with noise added before", "which this run has."):
        assert words in said, words
    assert "Training loss" not in html.split('id="sending"')[1].split("</section>")[0]
    assert "by ε alone" not in said


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("released", [False, True])
def test_an_encrypted_run_says_who_could_read_it(
    released: bool, private: bool, tmp_path: Path
) -> None:
    secure = {"name": "ckks", "least": 3, "release": "coordinator" if released else "hospitals"}
    write_masked_run(tmp_path, secure=secure, model=released, private=private)
    said = text(page(tmp_path))
    for words in (
        "left the hospitals encrypted",
        "could not read",
        "above two thirds of the run's hospitals signed",
        "no hospital works together with the coordinator",
        "ring learning with errors",
        "→ encrypted",
        "does not go: hospitals get the encrypted sum",
        "Opening: they decrypt the sum, move the model, and tell the figures",
        "What encryption does not promise",
        "encryption makes no ε smaller" if private else "which this run has not",
    ):
        assert words in said, words
    export = "hospital model export 2025-06-01-masked"
    assert (export in said) is not released
    assert ("it has the final model because the experiment asked for it" in said) is released
    sending = said.replace("01-masked", "").split("Secure aggregation, and bytes")[1]
    assert "mask" not in sending.split("What is protected")[0]
    assert "under masks" not in said.replace("Images and masks", "")
    assert "NaN" not in said


def test_a_codec_without_masks_says_what_travelled(tmp_path: Path) -> None:
    codec = {
        "sparsify": {"name": "top_k", "keep": 0.01},
        "quantise": {"name": "bf16"},
        "down": "full",
    }
    write_run(tmp_path, ran=experiment(20, codec=codec))
    said = text(page(tmp_path))
    assert "Codec and bytes" in said
    assert "each hospital's largest 1 % of their values → bf16 → packed → zstd" in said
    assert "whole, each time" in said
    assert "can read each hospital's update" in said
    assert "Quality by hospital" in said


def test_a_run_without_either_has_no_such_section(run_folder: Path) -> None:
    assert section(read_run(run_folder)) is None
    assert 'id="sending"' not in page(run_folder)


# --- what nobody knows ---------------------------------------------------------------------------

ALONE: Line = {
    "patients": 70_717,
    "examples": 71_717,
    "loss": 0.727172,
    "seconds": 737.173,
    "update_norm": 0.747174,
    "metrics": {"auroc": 0.757175, "loss": 0.767176},
    "intervals": {"auroc": [0.777177, 0.787178]},
}


def betray(line: Line) -> None:
    """Give each hospital figures of its own, and a worst one, as no such run does."""
    for told in line["hospitals"].values():
        told |= ALONE
    line["worst"] = {"auroc": {"hospital": "north", "value": 0.757175}}


def figures(value: Any) -> list[float]:
    if isinstance(value, dict):
        value = list(value.values())
    return [n for item in value for n in figures(item)] if isinstance(value, list) else [value]


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("experiment_there", [True, False])
def test_no_single_hospitals_figure_is_on_the_page(
    experiment_there: bool, private: bool, tmp_path: Path
) -> None:
    write_masked_run(tmp_path, private=private)
    if not experiment_there:
        (tmp_path / "experiment.json").unlink()
    clean = page(tmp_path)
    rewrite(tmp_path, betray)
    html = page(tmp_path)
    assert html == clean
    numbers = set(Page(html).numbers())
    for alone in figures(ALONE):
        assert alone not in numbers
        assert f"{alone:g}" not in html
    titles = re.findall(r'aria-label="Every hospital in every round">.*?</thead>', html, re.DOTALL)
    heads = re.findall(r"<th[^>]*>(.*?)</th>", titles[0])
    assert not set(heads) & {
        "Patients",
        "Images",
        "Training loss",
        "Training time",
        "Update (norm)",
    }
    assert "worst" not in text(html).split("What ran")[0].lower()


def test_the_same_figures_without_masks_are_shown(tmp_path: Path) -> None:
    """Or the scan above would pass whatever the page did."""
    write_run(tmp_path, rounds=3, left={})
    rewrite(tmp_path, betray)
    numbers = set(Page(page(tmp_path)).numbers())
    assert numbers >= {70_717, 0.727172, 0.747174, 0.757175}


def test_a_real_run_is_reported(five: Hospitals, trained: list[tuple[str, int]]) -> None:
    """Rows of a real conductor and real hospitals, and that the synthetic ones have their fields."""
    of = masked(rounds=2, weighting="examples")
    folder, conductor, start = five.conductor(of, "report")
    start = conductor.round(start)
    folder.save(start)
    five.meddle["lake"] = crashing(Phase.WORK)
    folder.save(start := conductor.round(start))
    five.meddle.clear()
    conductor.final_evaluation(start)
    html = page(folder.path)
    lines = folder.metrics()
    rounds = [line for line in lines if line["kind"] == "round"]
    assert values(row(html, SUMS, "2</th>"))[:2] == [4, rounds[1]["summed"]["patients"]]
    assert "The smallest sum that was opened is that of 4 hospitals, in round 2" in text(html)
    run = read_run(folder.path)
    assert run.model_bytes == sum(array.nbytes for array in start.model.values())
    made = write_masked_run(folder.path.parent / "synthetic")
    for kind in ("round", "evaluation"):
        real, synthetic = (
            next(line for line in some if line["kind"] == kind) for some in (lines, made)
        )
        assert set(synthetic) <= set(real)
        assert set(real) - set(synthetic) <= {"time"}
        hospital = next(iter(real["hospitals"].values()))
        assert set(hospital) == set(next(iter(synthetic["hospitals"].values())))
        assert not set(hospital) & set(OWN)


# --- hostile rows --------------------------------------------------------------------------------

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats()
    | st.sampled_from([HOSTILE, "", "masks", "work", "west"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "hospitals",
                    "patients",
                    "examples",
                    "loss",
                    "setup",
                    "work",
                    "open",
                    "name",
                    "keep",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_hostile_rows_leave_a_page(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("hostile")
    write_masked_run(folder, rounds=2)
    keys = ("summed", "steps", "summed_over", "held_out_patients", "codec", "secure_aggregation")
    drawn = data.draw(st.fixed_dictionaries(dict.fromkeys(keys, JSON)))

    def change(line: Line) -> None:
        line |= {key: drawn[key] for key in drawn if key in line}

    rewrite(folder, change)
    ran = json.loads((folder / "experiment.json").read_text())
    ran |= {key: drawn[key] for key in ("codec", "secure_aggregation")}
    (folder / "experiment.json").write_text(json.dumps(ran))
    (folder / "model.safetensors").write_bytes(b"\x10" * 40)
    html = page(folder)
    assert {tag for tag, _ in Page(html).elements}.isdisjoint({"script", "img"})
    assert all(math.isfinite(number) for number in Page(html).numbers())


def test_hostile_names_are_text_under_masks_too(tmp_path: Path) -> None:
    write_masked_run(tmp_path, rounds=2)

    def change(line: Line) -> None:
        line["hospitals"] = {
            name + HOSTILE: told | {"reason": HOSTILE, "status": "left out"}
            for name, told in line["hospitals"].items()
        }
        for key in ("summed_over",):
            if key in line:
                line[key] = [HOSTILE] * 3

    rewrite(tmp_path, change)
    found = Page(page(tmp_path))
    assert {tag for tag, _ in found.elements}.isdisjoint({"script", "img"})
    assert HOSTILE in found.text
