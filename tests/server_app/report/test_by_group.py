"""What the report and the model card say by group of patients and by hospital."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from federation.schema import Fairness
from server_app.report import fairness, heat, write_report
from server_app.report.card import model_card, write_card
from server_app.report.groups import by_group
from server_app.report.read import read_run
from server_app.report.wording import decimal, estimate
from tests.federation.fairness.drawn import HIPPOCAMPUS
from tests.server_app.report.parsed_page import Page, text
from tests.server_app.report.synthetic_groups import (
    PATIENTS,
    write_lines,
    write_run_by_group,
)
from tests.server_app.report.synthetic_run import experiment, write_run

HOSTILE = "<script>alert(1)</script>|`x`"


def page(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


def test_every_figure_by_group_is_on_the_page_as_it_was_counted(tmp_path: Path) -> None:
    last = write_run_by_group(tmp_path, pairs=True)[-1]["fairness"]
    html = page(tmp_path)
    shown = set(Page(html).numbers())
    for row in (*last["rows"], *(r for at in last["hospitals"].values() for r in at["rows"])):
        assert row["cases"] in shown
        assert {one["value"] for one in row["metrics"].values()} <= shown, row["group"]
    assert Page(html).open == []


def test_the_worst_hospital_and_the_worst_group_stand_beside_the_mean(tmp_path: Path) -> None:
    last = write_run_by_group(tmp_path)[-1]["fairness"]
    areas = {
        name: at["rows"][0]["metrics"]["auroc"]["value"] for name, at in last["hospitals"].items()
    }
    every, hospital, group = fairness.section(read_run(tmp_path)).tiles
    assert every.estimate and every.estimate.value == last["rows"][0]["metrics"]["auroc"]["value"]
    assert hospital.estimate and hospital.estimate.value == min(areas.values())
    assert areas[hospital.whose] == min(areas.values())
    worst = last["worst_group"]
    assert group.estimate and group.estimate.value == worst["value"]
    assert group.estimate.interval == (worst["low"], worst["high"])
    assert group.whose == fairness.group_label(worst["group"])
    assert f"in the worst group ({group.whose})" in text(page(tmp_path))


@pytest.mark.parametrize(
    ("auroc", "compared"),
    [({"value": 0.0, "cases": 1}, False), ({"value": 0.0, "cases": 10}, True),
     ({"value": 0.0}, True), (None, False)],
    ids=["few answered", "enough answered", "of an older run", "no area"],
)  # fmt: skip
def test_too_few_to_compare_is_of_the_cases_that_the_metric_needs(
    auroc: dict[str, float] | None, compared: bool
) -> None:
    """An older run's row says how many cases there are of each label, and not how many were answered."""
    good = {"group": "sex=male", "channel": "x", "metrics": {"auroc": {"value": 0.9}}}
    few = {"group": "sex=female", "channel": "x", "cases": 200, "positive": 100, "unanswered": 180}
    told = by_group({"rows": [good, few | {"metrics": {} if auroc is None else {"auroc": auroc}}]})
    assert told is not None
    said = fairness.note(told.rows[1], told, 10)
    assert (said != "too few to compare") == compared


def test_gaps_are_drawn_over_all_rounds(tmp_path: Path) -> None:
    lines = write_run_by_group(tmp_path, rounds=4)
    section = fairness.section(read_run(tmp_path))
    said = {
        line["round"]: gap
        for line in lines
        if line["kind"] == "evaluation"
        for gap in line["fairness"]["gaps"]
        if (gap["metric"], gap["attributes"]) == ("auroc", ["sex"])
    }
    assert len(said) == 5
    chart = next(c for c in section.gap_charts if c.key == "gap-auroc")
    place = chart.columns.index("sex")
    *before, last = said.values()
    assert [cells[place] for _, cells in chart.rows] == [
        *(decimal(gap["value"]) for gap in before),
        estimate(last["value"], (last["low"], last["high"])),
    ]


def test_what_was_withheld_is_said_as_such(tmp_path: Path) -> None:
    last = write_run_by_group(tmp_path)[-1]["fairness"]
    assert last["withheld"]
    told = fairness.withheld_words(last["withheld"])
    assert f"Withheld: {told}." in text(page(tmp_path))
    assert f"Withheld: {told}." in model_card(read_run(tmp_path))
    write_run_by_group(tmp_path / "all", attributes=("sex",), patients={"north": 900, "east": 900})
    assert "No hospital withheld a small group." in text(page(tmp_path / "all"))


def test_a_hospital_whose_counts_are_nothing_is_named(tmp_path: Path) -> None:
    """It sends zeros where it has too few patients: figures are not of its cases then."""
    lines = write_run_by_group(tmp_path)
    assert "No counts came from" not in text(page(tmp_path))
    lines[-1]["fairness"]["hospitals"]["west"] = {"rows": [], "withheld": {}}
    write_lines(tmp_path, lines)
    assert fairness.section(read_run(tmp_path)).silent == ("west",)
    assert "No counts came from west: too few patients" in text(page(tmp_path))


def test_dice_has_quantiles_by_group(tmp_path: Path) -> None:
    last = write_run_by_group(tmp_path, task=HIPPOCAMPUS)[-1]["fairness"]
    section = fairness.section(read_run(tmp_path))
    assert [channel.name for channel in section.channels] == ["anterior", "posterior"]
    for channel in section.channels:
        assert not channel.positive
        assert [chart.key.endswith("-quantiles") for chart in channel.charts] == [False, True]
    assert section.metric == last["worst_group"]["metric"] == "dice_mean"


def test_the_map_of_hospitals_shades_from_best_to_worst(tmp_path: Path) -> None:
    lines = write_run(tmp_path)
    shown = heat.of(read_run(tmp_path))
    assert shown is not None
    rows = {row.hospital: row.cells for row in shown.rows}
    for metric, best, worst in (("auroc", max, min), ("loss", min, max)):
        column = {
            name: told["metrics"][metric]
            for name, told in lines[-1]["hospitals"].items()
            if "metrics" in told
        }
        assert {name: rows[name][metric].value for name in column} == column
        assert rows[best(column, key=lambda name: column[name])][metric].shade == 0
        assert rows[worst(column, key=lambda name: column[name])][metric].shade == heat.SHADES
        spread = max(column.values()) - min(column.values())
        assert shown.spread[metric] == pytest.approx(spread)


def test_without_counts_it_says_why(tmp_path: Path) -> None:
    write_run(tmp_path / "none", ran=experiment(20))
    assert "the experiment has no fairness" in text(page(tmp_path / "none"))
    chosen = Fairness().model_dump(mode="json")
    write_run(tmp_path / "few", ran=experiment(20, fairness=chosen))
    assert "but no counts came" in text(page(tmp_path / "few"))
    assert "How it does by group of patients is not known" in model_card(read_run(tmp_path / "few"))


def test_the_card_tells_what_the_run_tells(tmp_path: Path) -> None:
    last = write_run_by_group(tmp_path, pairs=True)[-1]
    path = write_card(tmp_path)
    card = path.read_text(encoding="utf-8")
    assert path == tmp_path / "model_card.md"
    sha256 = json.loads((tmp_path / "run.json").read_text())["experiment_sha256"]
    assert sha256 in card
    assert "Not a medical device" in card
    for heading in ("Intended use", "Data", "Results", "By group", "Limits", "How to reproduce"):
        assert f"\n## {heading}\n" in card
    assert decimal(last["overall"]["auroc"]) in card
    for name in PATIENTS:
        assert f"| {name} |" in card
    assert fairness.group_label(last["fairness"]["worst_group"]["group"]) in card
    tables = [line for line in card.splitlines() if line.startswith("|")]
    assert tables
    assert all(line.endswith("|") for line in tables)


def test_names_in_a_card_are_text(tmp_path: Path) -> None:
    write_run_by_group(tmp_path, patients={HOSTILE: 200, "north": 200})
    card = model_card(read_run(tmp_path))
    assert "<script" not in card
    assert "&lt;script&gt;" in card
    assert "`x`" not in card
