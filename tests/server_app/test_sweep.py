"""A sweep: what Hydra's grammar says it is, checked before it starts, done one run after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from federation.schema import ConfigError
from server_app import compose, sweep, sweep_commands
from server_app.control import RunState, Unreachable
from server_app.home import Federation, Home
from server_app.state import RunFolder
from tests.provisioned import provisioned


@pytest.mark.parametrize(
    "overrides",
    [
        ["rounds=3"],
        ["strategy=fedavg,fedprox", "seed=0,1,2", "training.learning_rate=0.01,0.001"],
        ["codec=[rand_k,int4]", "seed=range(1,6,2)"],
        ["codec=[rand_k,int8],[top_k,int8]", "rounds=choice(1,2)"],
        ["strategy=sort(fedprox,fedavg)", "name='a,b'"],
    ],
)
def test_the_product_is_hydras(overrides: list[str]) -> None:
    """Against Hydra's own sweeper, which `--multirun` of its command line uses."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    split = getattr(BasicSweeper, "split_arguments")(parsed, None)  # noqa: B009
    ours = [list(one.overrides) for one in sweep.combinations(overrides)]
    assert ours == [list(one) for batch in split for one in batch]


def test_a_glob_chooses_in_its_group() -> None:
    found = [one.overrides[0] for one in sweep.combinations(["strategy=glob(fed*,exclude=feda*)"])]
    expected = [c for c in compose.choices("strategy") if c.startswith("fed")]
    assert found == [f"strategy={name}" for name in expected if not name.startswith("feda")]
    assert "strategy=fedprox" in found


def test_a_quoted_choice_of_a_group_is_the_choice() -> None:
    combined = sweep.combinations(["strategy='fedavg','fedprox'"])
    assert [one.overrides for one in combined] == [("strategy=fedavg",), ("strategy=fedprox",)]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["strategy=fedavg,"], "is not an override"),
        (["training.learning_rate=interval(0,1)"], "no single values"),
        (["seed=range(0,2000)"], "2,000 runs; 1,000 are the most"),
        (["seed=range(3,3)"], "sweeps over nothing"),
        (["strategy=glob(mars*)"], "sweeps over nothing"),
        (["rounds=glob(*)"], r"glob\(\) chooses in a group"),
        (["seed=0,1,0"], "seed=0 is the same experiment as seed=0"),
        (["strategy=fedavg,fedprx", "seed=0,1"], r"strategy=fedprx seed=0 \(3 of 4\): .*fedprox"),
        (["strategy=fedavg,krum", "participation.least=3"], r"strategy=krum \(2 of 2\)"),
        (["rouns=3", "seed=0,1"], r"seed=0 \(1 of 2\): unknown key 'rouns'"),
    ],
)
def test_a_wrong_sweep_is_refused_by_name(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        sweep.plan(["experiment=demo", *overrides])


def test_names_say_what_differs_and_are_valid() -> None:
    swept = ["strategy=fedavg,fedprox", "training.learning_rate=0.01,1e-3", "seed=7"]
    planned = sweep.plan(["experiment=demo", *swept], name="grid")
    assert [one.run for one in planned.runs] == [
        "grid-1-strategy-fedavg_learning-rate-0.01",
        "grid-2-strategy-fedavg_learning-rate-0.001",
        "grid-3-strategy-fedprox_learning-rate-0.01",
        "grid-4-strategy-fedprox_learning-rate-0.001",
    ]
    long = sweep.run_name("s" * 64, 1000, 1000, ["strategy=" + "x" * 99])
    assert len(long) <= 81
    assert long.startswith("s" * 64 + "-1000-")
    odd = sweep.run_name("s", 2, 12, ["codec=[rand_k,int4]", "x='Å b'"])
    assert odd == "s-02-codec-rand-k-int4_x-b"


class Federated:
    """In place of the SuperLink: each run is done at once, by the `does` of its name."""

    def __init__(self) -> None:
        self.home: Home | None = None
        self.done: list[str] = []
        self.stopped: list[int] = []
        self.does: Callable[[str, RunFolder], RunState] = completes
        self.states: dict[int, RunState] = {}

    def __enter__(self) -> Federated:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def check(self) -> None:
        pass

    def start_run(self, bundle: str, config: dict[str, str]) -> int:
        assert self.home is not None
        self.done.append(config["run"])
        number = len(self.done)
        folder = RunFolder(self.home.runs / config["run"])
        self.states[number] = self.does(config["run"], folder)
        return number

    def run(self, run_id: int) -> RunState:
        return self.states[run_id]

    def stop_run(self, run_id: int) -> bool:
        self.stopped.append(run_id)
        self.states[run_id] = RunState("finished", "stopped", "")
        return True


def completes(run: str, folder: RunFolder) -> RunState:
    folder.append_metrics(
        {
            "kind": "evaluation",
            "round": 1,
            "overall": {"auroc": 0.75},
            "worst": {},
            "hospitals": {"north": {"status": "ok", "metrics": {"auroc": 0.75}}},
        }
    )
    folder.write_status("completed", 1, 1)
    return RunState("finished", "completed", "")


def fails(run: str, folder: RunFolder) -> RunState:
    folder.write_status("failed", 0, 1, "too few hospitals")
    return RunState("finished", "failed", "")


@pytest.fixture(scope="module")
def _home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    folder = tmp_path_factory.mktemp("sweep")
    names = ["north", "east"]
    content = Federation(name="a", host="127.0.0.1", port=4711, hospitals=names)
    return provisioned(content, Home(folder / "coordinator"), {n: folder / n for n in names})


@pytest.fixture
def federated(_home: Home, monkeypatch: pytest.MonkeyPatch) -> Federated:
    for place in (_home.runs, _home.sweeps):
        for path in sorted(place.rglob("*"), reverse=True) if place.exists() else []:
            path.rmdir() if path.is_dir() else path.unlink()
    control = Federated()
    control.home = _home
    monkeypatch.setattr(sweep_commands, "Control", lambda home: control)
    monkeypatch.setattr(sweep_commands, "write_report", lambda path: path / "report.html")
    monkeypatch.setattr("server_app.bundle.build", lambda: b"code")
    return control


def start(federated: Federated, *overrides: str, **own: str) -> None:
    assert federated.home is not None
    sweep_commands.multirun(federated.home, own, ["experiment=demo", "rounds=1", *overrides])


def go_on(federated: Federated, name: str) -> None:
    assert federated.home is not None
    sweep_commands.multirun(federated.home, {"resume": name}, [])


def test_one_that_fails_is_said_and_the_others_go_on(
    federated: Federated, capsys: pytest.CaptureFixture[str]
) -> None:
    federated.does = lambda run, folder: (fails if "s-2" in run else completes)(run, folder)
    with pytest.raises(ConfigError, match=r"1 of 3 runs failed: s-2-seed-1; .*-m resume=s "):
        start(federated, "seed=0,1,2", run="s")
    assert federated.done == ["s-1-seed-0", "s-2-seed-1", "s-3-seed-2"]
    printed = capsys.readouterr().out
    assert "run s-2-seed-1 failed: too few hospitals" in printed
    assert "comparison" in printed

    federated.does = completes
    go_on(federated, "s")  # the one that failed alone
    assert federated.done[3:] == ["s-2-seed-1"]
    go_on(federated, "s")
    assert len(federated.done) == 4


def test_a_wrong_combination_is_refused_before_anything_starts(federated: Federated) -> None:
    with pytest.raises(ConfigError, match="seed=-1"):
        start(federated, "seed=0,-1", run="s")
    with pytest.raises(ConfigError, match="'mars' is not on the roster"):
        start(federated, "participation.hospitals=null,[north,mars]", run="s")
    assert federated.home is not None
    assert federated.done == []
    assert sweep.names(federated.home) == []


def test_the_same_sweep_again_goes_on_and_another_of_its_name_is_refused(
    federated: Federated,
) -> None:
    start(federated, "seed=0,1", run="s")
    start(federated, "seed=0,1", run="s")
    assert len(federated.done) == 2
    with pytest.raises(ConfigError, match="there is a sweep 's' already"):
        start(federated, "seed=0,2", run="s")
    assert federated.home is not None
    (federated.home.sweeps / "s.json").unlink()
    with pytest.raises(ConfigError, match="'s-2-seed-1' of another experiment"):
        start(federated, "seed=5,1", "training.batch_size=8", run="s")
    assert len(federated.done) == 2


def test_interrupted_it_stops_its_run_and_starts_no_other(federated: Federated) -> None:
    def interrupted(run: str, folder: RunFolder) -> RunState:
        if "s-2" in run:
            return RunState("running", "", "")
        return completes(run, folder)

    federated.does = interrupted

    def once(run_id: int) -> RunState:
        if federated.states[run_id].status == "running" and not federated.stopped:
            calls.append(run_id)
            if len(calls) == 1:
                raise KeyboardInterrupt
        return federated.states[run_id]

    calls: list[int] = []
    cast(Any, federated).run = once
    with pytest.raises(ConfigError, match=r"stopped in run s-2-seed-1; .* resume=s goes on"):
        start(federated, "seed=0,1,2", run="s")
    assert federated.done == ["s-1-seed-0", "s-2-seed-1"]
    assert federated.stopped == [2]
    assert federated.home is not None
    assert RunFolder(federated.home.runs / "s-2-seed-1").status()["state"] == "failed"

    federated.does = completes
    go_on(federated, "s")
    assert federated.done[2:] == ["s-2-seed-1", "s-3-seed-2"]


def test_without_the_superlink_it_does_not_try_the_rest(federated: Federated) -> None:
    def unreachable(run: str, folder: RunFolder) -> RunState:
        raise Unreachable("the SuperLink does not answer")

    federated.does = unreachable
    with pytest.raises(Unreachable, match="resume=s"):
        start(federated, "seed=0,1,2", run="s")
    assert federated.done == ["s-1-seed-0"]


def test_a_run_under_way_is_followed_and_not_started_again(federated: Federated) -> None:
    start(federated, "seed=0,1", run="s")
    assert federated.home is not None
    home = federated.home
    folder = RunFolder(home.runs / "s-2-seed-1")
    folder.write_status("running", 0, 1)
    with folder.conducting():
        assert sweep.state(home, sweep.read(home, "s").runs[1]) == "under way"
        folder.write_status("completed", 1, 1)  # its last word; it holds the lock a moment longer
        go_on(federated, "s")
    assert len(federated.done) == 2


def test_two_processes_do_not_do_one_sweep(federated: Federated) -> None:
    start(federated, "seed=0,1", run="s")
    assert federated.home is not None
    with (
        sweep.conducting(federated.home, "s"),
        pytest.raises(ConfigError, match="conducted already"),
    ):
        go_on(federated, "s")


def test_what_is_kept_is_what_was_planned(federated: Federated) -> None:
    assert federated.home is not None
    planned = sweep.plan(["experiment=demo", "privacy=patient_dp,none"], name="p")
    federated.home.sweeps.mkdir(exist_ok=True)
    sweep.write(federated.home, planned)
    assert sweep.read(federated.home, "p") == planned
    hashes = [one.experiment.sha256() for one in sweep.read(federated.home, "p").runs]
    assert hashes == [one.experiment.sha256() for one in planned.runs]


def test_a_run_is_there_whole_or_not_at_all(
    federated: Federated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed as it is made, it is made again by whoever goes on with the sweep."""
    assert federated.home is not None
    of = compose.experiment(["experiment=demo"])
    path, record = federated.home.runs / "monday", {"experiment_sha256": of.sha256()}

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "write_record", killed)
        with pytest.raises(KeyboardInterrupt):
            RunFolder.create(path, of, record)
    planned = sweep.Planned("monday", (), of)
    assert sweep.state(federated.home, planned) == "new"
    assert RunFolder.create(path, of, record).experiment() == of
    with pytest.raises(ConfigError, match="resume=monday"):
        RunFolder.create(path, of, record)
    assert RunFolder(path).experiment() == of
    assert sweep.state(federated.home, planned) == "begun"
