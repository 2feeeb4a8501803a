"""`hospital ledger`: what it makes, shows, checks and refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from client_app import cli
from client_app.budget import commands, screen
from client_app.imaging.pseudonym import load_key, open_key
from client_app.ledger import MOST_REMAINING, Budget, Ledger, cohort_id
from federation.privacy.accounting import Mechanism, epsilon
from federation.schema import ConfigError

SITE = """
hospital: north
kit: kit
state: state
data: {root: images}
policy: {most_epsilon_a_run: 5.0}
privacy: {patients: 412, accountant: rdp}
"""
BUDGET = Budget(8.0, 1e-5, "rdp", 5.0)
STEP, TALLY = Mechanism(4.0, 0.2, 8), Mechanism(20.0, 1.0, 1)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLUMNS", "100")
    file = tmp_path / "site.yaml"
    file.write_text(SITE)
    return file


@pytest.fixture
def charged(site: Path) -> Path:
    """Two runs, the first with metrics and a round that was trained twice."""
    assert hospital("create", site).exit_code == 0
    with opened(site) as ledger:
        for run, rounds in (("monday", (1, 2, 2)), ("tuesday", (1, 2, 3))):
            for round_ in rounds:
                ledger.charge(
                    run=run,
                    round=round_,
                    request=f"{round_:064x}",
                    experiment="e" * 64,
                    mechanisms=[STEP, TALLY] if run == "monday" else [STEP],
                    budget=BUDGET,
                    lodged=None,
                    attempts=2,
                )
    return site


def opened(site: Path) -> Ledger:
    state = site.parent / "state"
    return Ledger.open(state / "ledger.sqlite", cohort_id(open_key(state), "north"))


def hospital(*arguments: object) -> Result:
    """`hospital ledger` of a command and a site; a bare site is shown."""
    *words, site = map(str, arguments)
    # each call prints to where this call's output goes
    commands.console = commands.Console()
    return CliRunner().invoke(cli.app, ["ledger", *words, "--site", site])


def fails(result: Result, says: str) -> None:
    """One line that tells what to do: `runs_as` prints it, and the command ends with 1."""
    assert result.exit_code == 1
    assert isinstance(result.exception, ConfigError)
    assert re.search(says, str(result.exception)), str(result.exception)
    assert "\n" not in str(result.exception)


def test_create_says_what_was_promised(site: Path) -> None:
    result = hospital("create", site)
    assert result.exit_code == 0
    for said in ("412 patients", "ε", "8 at δ = 1e-05", "ledger.head", "pseudonym.key"):
        assert said in result.output
    with opened(site) as ledger:
        assert ledger.verify()[0] == 0
    fails(hospital("create", site), "there already")


def test_an_empty_ledger_is_shown(site: Path) -> None:
    hospital("create", site)
    result = hospital(site)
    assert result.exit_code == 0
    assert "Nothing was charged yet" in result.output
    figures = json.loads(hospital("show", "--json", site).output)
    assert (figures["epsilon"], figures["left"], figures["runs"]) == (0.0, 8.0, [])
    assert figures["present"] is None


def test_all_figures_as_json(charged: Path) -> None:
    figures = json.loads(hospital("--json", charged).output)
    assert json.loads(hospital("show", "--json", charged).output) == figures
    history = [STEP] * 6 + [TALLY] * 3
    assert figures["epsilon"] == pytest.approx(epsilon(history, 1e-5, "rdp"))
    assert figures["left"] == pytest.approx(8 - figures["epsilon"])
    assert figures["curve"][-1] == figures["epsilon"]
    assert len(figures["curve"]) == figures["charges"] == 6
    assert figures["budget"] == {
        "epsilon": 8.0,
        "delta": 1e-5,
        "accountant": "rdp",
        "most_epsilon_a_run": 5.0,
    }
    monday, tuesday = figures["runs"]
    assert (monday["run"], monday["charges"], monday["rounds"]) == ("monday", 3, 2)
    assert [m["steps"] for m in monday["mechanisms"]] == [24, 3]
    assert monday["epsilon"] == pytest.approx(epsilon([STEP, TALLY] * 3, 1e-5, "rdp"))
    assert tuesday["epsilon"] == pytest.approx(epsilon([STEP] * 3, 1e-5, "rdp"))
    assert monday["share"] + tuesday["share"] == pytest.approx(1.0)
    assert monday["share"] > tuesday["share"]
    assert monday["epsilon"] + tuesday["epsilon"] > figures["epsilon"]
    assert figures["same_terms"]
    assert re.match("patient", figures["unit"])
    assert "one patient" in figures["adjacency"]
    assert re.fullmatch(r"RDP \(opacus [\d.]+\)", figures["accountant"])


def test_the_rounds_that_remain_can_be_charged(charged: Path) -> None:
    present = json.loads(hospital("--json", charged).output)["present"]
    assert (present["run"], present["round"], present["experiment"]) == ("tuesday", 3, "e" * 64)
    count = present["remaining"]

    def cost(run_rounds: int) -> bool:
        """Whether the run's part and the budget hold with so many more rounds of it."""
        own = epsilon([STEP] * (3 + run_rounds), 1e-5, "rdp")
        total = epsilon([STEP] * (6 + run_rounds) + [TALLY] * 3, 1e-5, "rdp")
        return own <= 5.0 and total <= 8.0

    assert cost(count)
    assert not cost(count + 1)
    assert f"{count} more rounds like that one fit" in hospital(charged).output


def test_words_bar_plot_and_table(charged: Path) -> None:
    output = hospital(charged).output
    assert "spent ε = " in output
    assert "one run alone may spend ε = 5" in output
    for row in (r"monday +3 +2 +4 +0\.2 +24 ", r"tuesday +3 +3 +4 +0\.2 +24 ", r" 20 +1 +3 "):
        assert re.search(row, output), row
    for word in ("unit ", "adjacency ", "δ ", "accountant ", "head "):
        assert word in output
    assert "█" in output
    assert "░" in output
    assert "\x1b" not in output


def test_charges_at_another_delta_are_said(charged: Path) -> None:
    charged.write_text(SITE.replace("412,", "412, delta: 1.0e-6,"))
    figures = json.loads(hospital("--json", charged).output)
    assert not figures["same_terms"]
    assert figures["epsilon"] > figures["curve"][-1]  # counted anew at the smaller δ
    assert "another δ" in hospital(charged).output


def test_verify_says_one_line(charged: Path) -> None:
    result = hospital("verify", charged)
    assert result.exit_code == 0
    with opened(charged) as ledger:
        assert result.output == f"6 charges, unbroken; head {ledger.verify()[1]}\n"


@pytest.mark.parametrize("words", [[], ["show"], ["show", "--json"], ["verify"]])
def test_a_ledger_that_cannot_be_used_is_one_line(charged: Path, words: list[str]) -> None:
    ledger = charged.parent / "state/ledger.sqlite"
    ledger.write_bytes(ledger.read_bytes()[:5000])
    fails(hospital(*words, charged), r"ledger\.sqlite: .*backup")
    ledger.unlink()
    fails(hospital(*words, charged), "is gone.*backup")
    ledger.with_suffix(".head").unlink()
    fails(hospital(*words, charged), "hospital ledger create")


def test_another_key_is_another_cohort(charged: Path) -> None:
    key = charged.parent / "state/pseudonym.key"
    key.unlink()
    fails(hospital("verify", charged), r"pseudonym\.key is gone.*restore")
    assert not key.exists()
    load_key(key)  # a new one
    fails(hospital("verify", charged), r"other patients.*pseudonym\.key")


@pytest.mark.parametrize("words", [["create"], [], ["show"], ["verify"]])
def test_a_site_without_a_budget_is_told_how_to_get_one(site: Path, words: list[str]) -> None:
    site.write_text(SITE[: SITE.index("privacy:")])
    fails(hospital(*words, site), "no `privacy:`.*`patients:`.*hospital ledger create")
    fails(hospital(*words, site.with_name("none.yaml")), "no site configuration")
    assert not (site.parent / "state").exists()


def test_the_ledger_may_lie_elsewhere(site: Path) -> None:
    site.write_text(SITE.replace("412,", "412, ledger: elsewhere/budget.sqlite,"))
    assert hospital("create", site).exit_code == 0
    names = {file.name for file in (site.parent / "elsewhere").iterdir()}
    assert names == {"budget.sqlite", "budget.head"}
    assert hospital("verify", site).exit_code == 0


def test_wrong_input(charged: Path) -> None:
    def run(*arguments: str) -> Result:
        return CliRunner().invoke(cli.app, ["ledger", *arguments])

    before = run("--site", str(charged), "verify")
    assert before.exit_code == 2
    assert "after `verify`" in before.output
    for wrong in (["verfy"], ["show", "--jsn"], ["create", "now"]):
        assert run(*wrong).exit_code == 2


def test_the_bar_fills() -> None:
    assert screen.bar(0.0, 10) == "░" * 10
    assert screen.bar(0.001, 10) == "█" + "░" * 9
    assert screen.bar(0.5, 10) == "█" * 5 + "░" * 5
    assert screen.bar(1.3, 10) == "█" * 10


@pytest.mark.parametrize(
    ("curve", "last_column"),
    [([4.0], 4.0), ([1.0, 8.0], 8.0), ([n / 100 for n in range(1, 501)], 5.0), ([9.0], 8.0)],
)
def test_the_plot_ends_at_what_was_spent(curve: list[float], last_column: float) -> None:
    lines = screen.plot(curve, 8.0, 40)
    heights = "▁▂▃▄▅▆▇█"
    rows = [line[11:].ljust(40) for line in lines[:-2]]
    columns = min(40, len(curve))

    def height(column: int) -> float:
        return sum((heights.index(row[column]) + 1) / 8 for row in rows if row[column] != " ")

    assert height(columns - 1) == pytest.approx(last_column, abs=1 / 16)
    assert [height(c) for c in range(columns)] == sorted(height(c) for c in range(columns))
    assert all(row[columns:].isspace() or not row[columns:] for row in rows)
    assert f"charge {len(curve):,}" in lines[-1]


def test_a_name_cannot_draw_on_the_terminal(charged: Path) -> None:
    with opened(charged) as ledger:
        ledger.charge(
            run="[red]\x1b[2Jnight",
            round=1,
            request="0" * 64,
            experiment="e" * 64,
            mechanisms=[STEP],
            budget=BUDGET,
            lodged=None,
            attempts=1,
        )
    output = hospital(charged).output
    assert "\x1b" not in output
    assert "[red]\\x1b[2Jnight" in output


def test_many_rounds_are_not_counted_out(charged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(*_: Any) -> int:
        return MOST_REMAINING

    monkeypatch.setattr(Ledger, "remaining", endless)
    assert "100,000 or more more rounds" not in hospital(charged).output
    assert "100,000 or more rounds" in hospital(charged).output
    assert json.loads(hospital("--json", charged).output)["present"]["remaining_is_at_least"]
