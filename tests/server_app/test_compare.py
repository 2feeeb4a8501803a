"""Runs side by side: what differs, what came of them, and what cannot be compared."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from federation.schema import ConfigError, Experiment
from server_app import compose, sweep
from server_app.compare import compare, differing_keys, flat
from server_app.compare_commands import csv_text, find, show
from server_app.home import Federation, Home
from server_app.state import RunFolder
from tests.provisioned import provisioned

METRICS = ["auroc", "balanced_accuracy", "loss"]


def composed(*overrides: str) -> Experiment:
    return compose.experiment(["experiment=demo", "rounds=3", *overrides])


def run(
    path: Path,
    experiment: Experiment,
    course: Sequence[float] = (),
    *,
    state: str = "completed",
    task: dict[str, Any] | None = None,
    **extra: Any,
) -> RunFolder:
    """A run with these headline values after round 1, 2, …; north is 0.1 above, east 0.1 below."""
    record = {
        "experiment_sha256": experiment.sha256(),
        "task": task or {"metrics": METRICS, "headline": "auroc", "classes": ["a", "b"]},
    }
    folder = RunFolder.create(path, experiment, record)
    for number, value in enumerate(course, start=1):
        hospitals = {"north": value + 0.1, "east": value - 0.1}
        folder.append_metrics(
            {
                "kind": "round",
                "round": number,
                "seconds": 2.0,
                "hospitals": {
                    name: {"status": "ok", "bytes_up": up, "bytes_down": 4000, **extra}
                    for name, up in (("north", 1000), ("east", 3000))
                },
            }
        )
        folder.append_metrics(
            {
                "kind": "evaluation",
                "round": number,
                "overall": {"auroc": value, "loss": 1 - value},
                "worst": {},
                "hospitals": {
                    name: {"status": "ok", "metrics": {"auroc": own, "loss": 1 - own}}
                    for name, own in hospitals.items()
                },
            }
        )
    folder.write_status(state, len(course), experiment.rounds)
    return folder


def add(folder: RunFolder, **keys: Any) -> None:
    """Keys into the last evaluation."""
    rows = folder.metrics()
    rows[-1] |= keys
    (folder.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_figures_are_those_of_the_last_model(tmp_path: Path) -> None:
    folder = run(tmp_path / "a", composed(), (0.5, 0.8, 0.7))
    row = compare([folder]).rows[0]
    assert (row.runs, row.states, row.done, row.rounds) == (("a",), ("completed",), 3, 3)
    figures = row.figures
    assert figures["overall"].mean == 0.7
    assert figures["worst_hospital"].mean == pytest.approx(0.6)
    assert figures["worst_hospital"].names == ("east",)
    assert figures["bytes_up"].mean == 3 * (1000 + 3000) / 2
    assert figures["bytes_down"].mean == 3 * 4000
    assert figures["seconds"].mean == 6.0
    assert figures["rounds_to_95"].mean == 2  # 0.8 ≥ 0.95 · 0.7, before the end
    assert not figures.keys() & {"worst_group", "gap", "left_out", "epsilon"}


def test_only_what_differs_is_a_key(tmp_path: Path) -> None:
    folders = [
        run(tmp_path / "a", composed("name=first"), (0.5, 0.6, 0.7)),
        run(tmp_path / "b", composed("strategy=fedprox", "name=second"), (0.5, 0.6, 0.8)),
        run(tmp_path / "c", composed("codec=int8", "privacy=patient_dp"), (0.5, 0.5, 0.5)),
    ]
    compared = compare(folders)
    assert set(compared.keys) == {"strategy", "training.proximal_mu", "privacy", "codec"}
    assert [row.differs["strategy"] for row in compared.rows] == ["fedavg", "fedprox", "fedavg"]
    assert [row.differs["privacy"] for row in compared.rows] == [None, None, "patient_dp"]
    assert [row.differs["codec"] for row in compared.rows] == [None, None, "yes"]
    # 0.95 · 0.8 of the best run: 0.76
    assert "rounds_to_95" not in compared.rows[0].figures
    assert compared.rows[1].figures["rounds_to_95"].mean == 3


def test_options_differ_among_those_that_have_them() -> None:
    flats = [
        flat(composed(*overrides).model_dump(mode="json"))
        for overrides in (["strategy=afl"], ["strategy=fedavg"])
    ]
    assert differing_keys(flats) == ["strategy"]
    other = composed("strategy=afl", "strategy.mixture_learning_rate=0.2")
    third = flat(other.model_dump(mode="json"))
    assert differing_keys([*flats, third]) == ["strategy", "strategy.mixture_learning_rate"]


def test_seeds_become_mean_and_deviation(tmp_path: Path) -> None:
    finals = {"fedavg": (0.70, 0.76, 0.73), "fedprox": (0.80, 0.78, 0.85)}
    folders = [
        run(tmp_path / f"{name}-{seed}", composed(f"strategy={name}", f"seed={seed}"), (0.5, value))
        for name, values in finals.items()
        for seed, value in enumerate(values)
    ]
    compared = compare(folders)
    assert compared.over == ("seed",)
    assert [row.differs["strategy"] for row in compared.rows] == ["fedavg", "fedprox"]
    for row, values in zip(compared.rows, finals.values(), strict=True):
        assert len(row.runs) == row.figures["overall"].n == 3
        assert row.figures["overall"].mean == pytest.approx(sum(values) / 3)
        assert row.figures["overall"].deviation == pytest.approx(statistics.stdev(values))
        assert row.figures["worst_hospital"].mean == pytest.approx(sum(values) / 3 - 0.1)
    # one of the three passed 0.95 · 0.85; where not all did, n says so
    assert "rounds_to_95" not in compared.rows[0].figures
    assert compared.rows[1].figures["rounds_to_95"].n == 1
    assert len(compare(folders, over=()).rows) == 6
    by = compare(folders, by=("seed",))
    assert [row.differs for row in by.rows] == [{"seed": 0}, {"seed": 1}, {"seed": 2}]
    assert by.rows[0].figures["overall"].mean == pytest.approx(0.75)


def test_runs_that_differ_in_nothing_are_rows_of_their_own(tmp_path: Path) -> None:
    folders = [run(tmp_path / name, composed(), (0.5,)) for name in "ab"]
    assert [row.runs for row in compare(folders).rows] == [("a",), ("b",)]


def test_of_a_loss_the_largest_is_worst(tmp_path: Path) -> None:
    compared = compare([run(tmp_path / "a", composed(), (0.5, 0.6))], metric="loss")
    figures = compared.rows[0].figures
    assert figures["overall"].mean == pytest.approx(0.4)
    assert figures["worst_hospital"].mean == pytest.approx(0.5)
    assert figures["worst_hospital"].names == ("east",)
    assert "rounds_to_95" not in figures


def test_groups_privacy_and_the_left_out_hospital(tmp_path: Path) -> None:
    fair = {
        "rows": [],
        "withheld": {},
        "worst_group": {
            "group": "sex=female", "channel": "pneumonia", "metric": "auroc", "value": 0.61,
            "low": 0.5, "high": 0.7,
        },
        "gaps": [
            gap("age_band", 0.3, "age_band=80+"),
            gap("sex", 0.2, "sex=female"),
            gap("sex", 0.9, "sex=female", metric="sensitivity"),
        ],
        "hospitals": {},
    }  # fmt: skip
    experiment = composed("evaluation.leave_out=east")
    folder = run(tmp_path / "a", experiment, (0.7,), spent={"run_epsilon": 2.5})
    add(folder, fairness=fair)
    figures = compare([folder]).rows[0].figures
    worst = figures["worst_group"]
    assert (worst.mean, worst.low, worst.high, worst.names) == (0.61, 0.5, 0.7, ("sex=female",))
    assert (figures["gap"].mean, figures["gap"].names) == (0.2, ("sex",))
    assert figures["epsilon"].mean == 2.5
    assert figures["left_out"].mean == pytest.approx(0.6)
    assert figures["left_out"].names == ("east",)
    assert figures["worst_hospital"].names == ("north",)  # among those that trained
    add(folder, left_out={"hospital": "west", "metrics": {"auroc": 0.55}})
    assert compare([folder]).rows[0].figures["left_out"].mean == 0.55
    add(folder, fairness=fair | {"worst_group": None})
    assert "worst_group" not in compare([folder]).rows[0].figures


def gap(attribute: str, value: float, worst: str, metric: str = "auroc") -> dict[str, Any]:
    return {
        "attributes": [attribute], "channel": "pneumonia", "metric": metric, "value": value,
        "bound": 0.0, "low": 0.1, "high": 0.4, "worst": worst, "best": "x", "groups": 2,
    }  # fmt: skip


def test_runs_that_failed_or_go_on_are_told_apart(tmp_path: Path) -> None:
    failed = run(tmp_path / "a", composed(), (0.5,), state="failed")
    going = run(tmp_path / "b", composed("seed=1"), (), state="running")
    with going.conducting():
        compared = compare([failed, going])
    assert compared.rows[0].states == ("failed", "running")
    assert (compared.rows[0].done, compared.rows[0].rounds) == (0, 3)
    assert compared.rows[0].figures["overall"].n == 1
    assert compare([going]).rows[0].states == ("not conducted",)


def test_an_evaluation_that_nobody_answered_is_none(tmp_path: Path) -> None:
    """A run ends so where its hospitals went away; what was measured before stands."""
    folder = run(tmp_path / "a", composed(), (0.5, 0.8), state="failed")
    hospitals = {name: {"status": "left out", "reason": "timeout"} for name in ("north", "east")}
    folder.append_metrics(
        {"kind": "evaluation", "round": 3, "overall": {}, "worst": {}, "hospitals": hospitals}
    )
    figures = compare([folder]).rows[0].figures
    assert figures["overall"].mean == 0.8
    assert figures["worst_hospital"].names == ("east",)


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    folder = run(tmp_path / "a", composed(), (0.5,))
    other = run(tmp_path / "b", compose.experiment(["experiment=mammography"]), (0.5,))
    with pytest.raises(ConfigError, match="'a' is of task chest_xray, 'b' of mammography"):
        compare([folder, other])
    changed = run(
        tmp_path / "c", composed("seed=1"), (0.5,), task={"metrics": METRICS, "headline": "loss"}
    )
    with pytest.raises(ConfigError, match="judged by auroc, 'c' by loss: name one with --metric"):
        compare([folder, changed])
    assert compare([folder, changed], metric="loss").metric == "loss"
    with pytest.raises(ConfigError, match=r"no metric 'aurok', did you mean 'auroc'\?"):
        compare([folder], metric="aurok")
    with pytest.raises(
        ConfigError, match=r"no experiment has 'strateg', did you mean 'strategy'\?"
    ):
        compare([folder], by=["strateg"])
    with pytest.raises(ConfigError, match="no runs"):
        compare([])
    (tmp_path / "a" / "experiment.json").write_text("{}")
    with pytest.raises(ConfigError, match="SHA-256"):
        compare([folder])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    folder = tmp_path_factory.mktemp("compare")
    content = Federation(name="a", host="127.0.0.1", port=4711, hospitals=["north"])
    home = provisioned(content, Home(folder / "coordinator"), {"north": folder / "north"})
    planned = sweep.plan(["experiment=demo", "rounds=3", "seed=0,1,2"], name="grid")
    home.sweeps.mkdir()
    sweep.write(home, planned)
    for one in planned.runs[:2]:
        run(home.runs / one.run, one.experiment, (0.5, 0.7))
    run(home.runs / "alone", composed("strategy=fedprox"), (0.5, 0.6))
    return home


def test_runs_are_found_by_name_glob_and_sweep(home: Home) -> None:
    def names(*asked: str) -> list[str]:
        return [folder.name for folder in find(home, asked)]

    assert names("grid") == ["grid-1-seed-0", "grid-2-seed-1"]
    assert names("*-seed-1", "alone", "grid") == ["grid-2-seed-1", "alone", "grid-1-seed-0"]
    with pytest.raises(ConfigError, match="no run or sweep 'mars'"):
        names("alone", "mars")


def test_table_and_csv_hold_the_same(home: Home) -> None:
    compared = compare(find(home, ["*"]))
    console = Console(file=io.StringIO(), width=80, color_system=None)
    show(compared, console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "fedprox" in text
    assert "0.700 ± 0.000" in text
    assert "worst group" not in text  # nobody has one
    assert "task chest_xray; mean ± standard deviation over seed" in text
    rows = list(csv.DictReader(io.StringIO(csv_text(compared))))
    assert [row["strategy"] for row in rows] == ["fedprox", "fedavg"]
    assert float(rows[1]["overall"]) == 0.7
    assert (rows[1]["overall_n"], rows[1]["worst_group"]) == ("2", "")
    assert rows[1]["runs"] == "grid-1-seed-0 grid-2-seed-1"
