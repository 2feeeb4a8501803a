"""The page: what it says, what it must never hold, and how it is written."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from federation.messages import Reason
from server_app.report import Sample, wording, write_report
from server_app.report.reasons import REASONS
from server_app.report.style import CSS
from tests.server_app.report.parsed_page import Page
from tests.server_app.report.synthetic_run import write_run

HOSTILE = '<script>alert("1")</script>'


def samples() -> list[Sample]:
    rows, columns = np.mgrid[:40, :30]
    disc = ((rows - 20) ** 2 + (columns - 15) ** 2 < 60).astype(np.int64)
    image = disc + 0.1 * np.sin(rows)
    return [
        Sample("Case 1", image, truth=disc, predicted=np.roll(disc, 2, axis=0)),
        Sample("Case 2", image, scores={"normal": 0.25, "pneumonia": 0.75}, truth_name="normal"),
    ]


def write(folder: Path, *, pictures: bool = True) -> tuple[str, Page]:
    path = write_report(folder, samples=samples() if pictures else ())
    assert path == folder / "report.html"
    html = path.read_text(encoding="utf-8")
    return html, Page(html)


def test_every_metric_of_every_round_is_shown_as_given(tmp_path: Path) -> None:
    lines = write_run(tmp_path, rounds=6)
    _, page = write(tmp_path)
    numbers = set(page.numbers())
    for line in lines:
        if line["kind"] == "evaluation":
            given = set(line["overall"].values())
            given |= {v for told in line["hospitals"].values() for v in told["metrics"].values()}
        else:
            answers = [told for told in line["hospitals"].values() if told["status"] == "ok"]
            given = {line["seconds"], line["norm"]}
            given |= {a[k] for a in answers for k in ("loss", "seconds", "bytes_up", "patients")}
            given.add(sum(a["bytes_down"] for a in answers))
        assert given <= numbers
    final = lines[-1]
    assert f"{final['overall']['auroc']:.3f}" in page.text
    assert f"{final['worst']['auroc']['value']:.3f}" in page.text


def test_the_tags_are_balanced_and_the_ids_are_unique(run_folder: Path) -> None:
    _, page = write(run_folder)
    assert page.open == []
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids)) > 0
    links = [a["href"] or "" for _, a in page.elements if (a.get("href") or "").startswith("#")]
    assert {link[1:] for link in links} <= set(ids)


def test_nothing_points_to_the_network_and_nothing_runs(run_folder: Path) -> None:
    html, page = write(run_folder)
    for tag, attributes in page.elements:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base", "form"}
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in {"src", "href", "xlink:href", "srcset", "poster", "action", "data"}:
                assert (value or "").startswith(("#", "data:image/png;base64,"))
    assert not re.search(r"https?:|@import|url\((?!#)", html)


def test_hostile_names_are_text(tmp_path: Path) -> None:
    hostile = {HOSTILE: 0.9, '"><img src=x onerror=alert(1)>': 0.8, "$x_{1}$ & #0a0b01": 0.7}
    left = {1: {HOSTILE: "<b>unheard of</b>"}}
    write_run(tmp_path, rounds=2, hospitals=hostile, name=HOSTILE, left=left, state='"><script>')
    status = json.loads((tmp_path / "status.json").read_text())
    (tmp_path / "status.json").write_text(json.dumps(status | {"message": HOSTILE}))
    caption = Sample(HOSTILE, np.ones((4, 4)), scores={HOSTILE: 1.0}, truth_name=HOSTILE)
    html = write_report(tmp_path, samples=[caption]).read_text(encoding="utf-8")
    page = Page(html)
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "img", "b"})
    assert not any(name.startswith("on") for _, a in page.elements for name in a)
    assert page.open == []
    assert HOSTILE in page.text
    assert "$x_{1}$ &" in page.text
    assert "<b>unheard of</b>" in page.text


def test_each_figure_has_words_and_a_table(run_folder: Path) -> None:
    html, page = write(run_folder)
    figures = re.findall(r"<figure>.*?</figure>", html, flags=re.DOTALL)
    assert len(figures) == 7 + len(samples())
    drawings = [a for tag, a in page.elements if tag == "svg"]
    assert all(a["role"] == "img" and len(a["aria-label"] or "") > 5 for a in drawings)
    assert all("<table" in figure for figure in figures[:7])


def test_a_drawing_takes_its_colours_from_the_page(run_folder: Path) -> None:
    html, _ = write(run_folder, pictures=False)
    drawings = "".join(re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL))
    assert "var(--ink)" in drawings
    assert "var(--worst)" in drawings
    assert not re.search(r"#[0-9a-f]{6}\b(?<!#figure)", re.sub(r'="#[^"]*"', "", drawings))
    used = set(re.findall(r"var\((--[a-z0-9-]+)\)", html))
    assert used <= set(re.findall(r"(--[a-z0-9-]+):", html))


@pytest.mark.parametrize("reason", [reason.value for reason in Reason])
def test_every_reason_there_is_has_words(reason: str) -> None:
    assert wording.reason_label(reason) != reason
    assert wording.reason_sentence(reason).endswith(".")


def test_who_left_and_why_is_explained(tmp_path: Path) -> None:
    left = {2: {"west": "out_of_memory"}, 4: {"west": "out_of_memory", "east": "brand_new"}}
    write_run(tmp_path, rounds=5, left=left)
    _, page = write(tmp_path)
    text = " ".join(page.text.split())
    assert REASONS["out_of_memory"][1] in text
    assert "brand_new" in text
    assert "2 2, 4" in text  # rounds left, and which
    assert "2 of 4" in text  # took part in round 4


def test_the_page_says_what_is_not_protected(run_folder: Path) -> None:
    _, page = write(run_folder)
    text = " ".join(page.text.split())
    assert "The coordinator can read each hospital's update" in text
    assert "There is no differential privacy" in text


@pytest.mark.parametrize("lines", range(8))
def test_a_run_that_still_goes_on_can_be_looked_at(tmp_path: Path, lines: int) -> None:
    write_run(tmp_path, rounds=5, state="running")
    file = tmp_path / "metrics.jsonl"
    kept = file.read_text().splitlines(keepends=True)
    file.write_text("".join(kept[:lines]) + kept[lines][:30])
    _, page = write(tmp_path, pictures=False)
    assert "running" in page.text
    assert "1 line of metrics.jsonl" in " ".join(page.text.split())
    assert page.open == []


@pytest.mark.parametrize("missing", ["run.json", "experiment.json", "status.json", "metrics.jsonl"])
def test_a_missing_file_leaves_a_page(run_folder: Path, missing: str) -> None:
    (run_folder / missing).unlink()
    _, page = write(run_folder)
    assert page.open == []
    assert "What ran" in page.text


def test_lines_with_next_to_nothing_in_them_leave_a_page(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"kind":"round","round":1,"norm":0,"seconds":0}\n'
        '{"kind":"round","round":7,"hospitals":{"north":{"status":"ok","loss":0,"update_norm":0}}}\n'
        '{"kind":"evaluation","round":7,"hospitals":{"north":{"status":"left out"}}}\n'
        '{"kind":"evaluation","round":8,"overall":{"dice":0.5}}\n'
    )
    _, page = write(tmp_path)
    assert "0.500" in page.text


def test_many_hospitals_and_rounds_are_drawn(tmp_path: Path) -> None:
    many = {f"hospital-number-{i:02d}": 0.7 + 0.01 * i for i in range(20)}
    write_run(tmp_path, rounds=120, hospitals=many, left={5: {"hospital-number-03": "late"}})
    _, page = write(tmp_path, pictures=False)
    assert "The last 100 rounds; all of them are in metrics.jsonl." in page.text
    assert "hospital-number-19" in page.text


def test_the_same_folder_gives_the_same_bytes(run_folder: Path) -> None:
    first = write_report(run_folder, samples=samples()).read_bytes()
    assert write_report(run_folder, samples=samples()).read_bytes() == first


def test_a_failure_leaves_the_earlier_report_whole(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = write_report(run_folder).read_bytes()
    files = sorted(run_folder.iterdir())
    (run_folder / "metrics.jsonl").write_text("")

    def no_space(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="no space left"):
        write_report(run_folder)
    assert (run_folder / "report.html").read_bytes() == before
    assert sorted(run_folder.iterdir()) == files


def test_an_experiment_that_does_not_match_is_called_out(run_folder: Path) -> None:
    file = run_folder / "experiment.json"
    file.write_text(file.read_text().replace('"seed":7', '"seed":8'))
    _, page = write(run_folder)
    assert "experiment.json is not the experiment that ran" in page.text


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_told_from_its_ground(scheme: str) -> None:
    blocks = re.findall(r":root \{(.*?)\}", CSS, flags=re.DOTALL)
    colours = dict(re.findall(r"--([a-z0-9-]+): (#\w{6})", blocks[("light", "dark").index(scheme)]))
    pairs = [(name, ground) for name in colours for ground in ("card", "page")]
    pairs = [p for p in pairs if p[0].startswith("series") or p[0] in ("ink", "muted", "accent")]
    pairs += [(name, f"{name}-tint") for name in ("worst", "good", "wait")] + [("accent", "tint")]
    for text, ground in pairs:
        dark, light = sorted((luminance(colours[text]), luminance(colours[ground])))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)


def test_nobody_is_worst_where_all_are_equal(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    write_run(folder)
    before = quality_table(folder)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = max(row["round"] for row in rows if row["kind"] == "evaluation")
    for row in rows:
        if row["kind"] == "evaluation" and row["round"] == last:
            row["worst"] = {}
            for hospital in row["hospitals"].values():
                if hospital.get("metrics"):
                    hospital["metrics"] = dict.fromkeys(hospital["metrics"], 1.0)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert ">worst<" in before
    table = quality_table(folder)
    assert ">worst<" not in table
    assert "1.000" in table


def quality_table(folder: Path) -> str:
    page = write_report(folder).read_text()
    return page.split('id="quality"')[1].split("</table>")[0]
