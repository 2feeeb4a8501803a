"""Reading a run's folder: whole, partial, cut off, repeated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from server_app.report.read import RunFolderError, read_run
from server_app.report.run import Run, Worst
from tests.server_app.report.synthetic_run import Line, write_run


def test_every_number_is_read_as_written(tmp_path: Path) -> None:
    lines = write_run(tmp_path, rounds=5)
    run = read_run(tmp_path)
    for line in lines:
        if line["kind"] == "evaluation":
            read = next(e for e in run.evaluations if e.round == line["round"])
            assert read.overall == line["overall"]
            assert {m.hospital: m.metrics for m in read.measured} == {
                name: told["metrics"] for name, told in line["hospitals"].items()
            }
            assert read.worst["auroc"] == Worst(**line["worst"]["auroc"])
        else:
            found = next(r for r in run.rounds if r.number == line["round"])
            assert (found.seconds, found.norm) == (line["seconds"], line["norm"])
            for answer in found.answers:
                told = line["hospitals"][answer.hospital]
                assert all(getattr(answer, key) == value for key, value in told.items())
    assert run.hospitals == ("east", "north", "south", "west")
    assert run.experiment_intact is True
    assert run.metrics[0] == run.headline == "auroc"


def test_an_experiment_that_was_changed_afterwards_is_noticed(run_folder: Path) -> None:
    file = run_folder / "experiment.json"
    file.write_text(file.read_text().replace('"seed":7', '"seed":8'))
    assert read_run(run_folder).experiment_intact is False


@pytest.mark.parametrize("cut", [1, 20, 200])
def test_a_truncated_last_line_is_counted_and_set_aside(run_folder: Path, cut: int) -> None:
    whole = read_run(run_folder)
    file = run_folder / "metrics.jsonl"
    file.write_text(file.read_text()[: -1 - cut])
    run = read_run(run_folder)
    assert run.broken_lines == 1
    assert run.rounds == whole.rounds
    assert run.evaluations == whole.evaluations[:-1]


def test_a_round_repeated_after_a_restart_counts_once_and_last(
    run_folder: Path,
) -> None:
    file = run_folder / "metrics.jsonl"
    again = {"kind": "round", "round": 20, "seconds": 77.0, "hospitals": {}}
    file.write_text(file.read_text() + json.dumps(again) + "\n")
    run = read_run(run_folder)
    assert [r.number for r in run.rounds] == list(range(1, 21))
    assert run.rounds[-1].seconds == 77.0


@pytest.mark.parametrize("kept", ["run.json", "experiment.json", "status.json", "metrics.jsonl"])
def test_one_file_of_the_four_is_enough(run_folder: Path, kept: str) -> None:
    for file in run_folder.iterdir():
        if file.name != kept:
            file.unlink()
    assert isinstance(read_run(run_folder), Run)


@pytest.mark.parametrize(
    "line",
    [
        "null",
        "[1, 2]",
        '{"kind": "round"}',
        '{"kind": "round", "round": "three"}',
        '{"kind": "round", "round": 1e400, "hospitals": {}}',
        '{"kind": "round", "round": ' + "9" * 400 + "}",
        "{" * 100_000,
        "\u2028",
    ],
)
def test_a_line_of_nonsense_is_broken_and_nothing_else(tmp_path: Path, line: str) -> None:
    good = '{"kind": "round", "round": 1, "hospitals": {"north": null}}'
    (tmp_path / "metrics.jsonl").write_text(f"{line}\n{good}\n", encoding="utf-8")
    run = read_run(tmp_path)
    assert [r.number for r in run.rounds] == [1]
    assert run.rounds[0].answers[0].status == "unknown"
    assert run.broken_lines == (0 if line.isspace() else 1)


def test_missing_null_and_unknown_fields_are_no_matter(tmp_path: Path) -> None:
    lines: list[Line] = [
        {"kind": "round", "round": 1},
        {"kind": "round", "round": 2, "seconds": None, "hospitals": {"north": {"loss": "high"}}},
        {"kind": "evaluation", "round": 2, "overall": None, "worst": {"auroc": None}, "new": 1},
        {"kind": "weather", "round": 3},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    run = read_run(tmp_path)
    assert [r.number for r in run.rounds] == [1, 2]
    assert run.rounds[1].answers[0].loss is None
    assert run.broken_lines == 0
    assert (run.headline, run.worst_hospital(), run.state) == (None, None, "unknown")


def test_nan_is_not_a_number_to_show(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"kind":"round","round":1,"hospitals":{"north":{"status":"ok","loss":NaN}}}\n'
    )
    assert read_run(tmp_path).rounds[0].answers[0].loss is None


def test_the_worst_hospital_is_found_where_the_run_did_not_say(run_folder: Path) -> None:
    file = run_folder / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    expected = lines[-1]["worst"]["auroc"]
    for line in lines:
        line.pop("worst", None)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_run(run_folder).worst_hospital() == Worst(**expected)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="holds none of"):
        read_run(tmp_path)
    with pytest.raises(RunFolderError, match="not a folder"):
        read_run(tmp_path / "missing")
