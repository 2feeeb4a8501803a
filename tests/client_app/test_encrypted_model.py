"""Models that only hospitals hold: listed, exported, and used to predict."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from client_app.cli import app
from client_app.encrypted_state import EncryptedRun
from client_app.prediction.model import read_model
from tests.hospitals import Hospitals, content, hospitals, train_quickly

pytest.importorskip("tenseal")
CKKS = {"name": "ckks", "least": 3}
RUN = "monday"


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    made = hospitals(tmp_path_factory.mktemp("three"), 3)
    with pytest.MonkeyPatch.context() as patch:
        train_quickly(patch)
        made.conduct(content(rounds=2, secure_aggregation=CKKS), RUN)
    return made


@pytest.fixture
def site(three: Hospitals, tmp_path: Path) -> Path:
    """The first hospital's site.yaml, with its real state."""
    first = next(iter(three.sites.values()))
    file = tmp_path / "site.yaml"
    said = first.model_dump(mode="json", exclude_defaults=True)
    file.write_text(yaml.safe_dump(said))
    return file


def hospital(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_a_held_model_is_listed_exported_and_read_for_predictions(
    three: Hospitals, site: Path, tmp_path: Path
) -> None:
    listed = json.loads(hospital("model", "list", "--site", site, "--json").stdout)
    assert listed == [
        {"run": RUN, "task": "chest_xray", "model": "resnet", "round": 2, "rounds": 2}
    ]
    assert "2 of 2" in hospital("model", "list", "--site", site).stdout

    out = tmp_path / "exported"
    made = hospital("model", "export", RUN, "--out", out, "--site", site)
    assert made.exit_code == 0, made.output
    assert "after 2 of 2 rounds" in made.stdout
    assert {file.stat().st_mode & 0o777 for file in out.iterdir()} == {0o600}
    import torch

    model = read_model(out, torch.device("cpu"))
    first = next(iter(three.sites.values()))
    of = model.experiment
    held = EncryptedRun.of(first.state, RUN).state(of.sha256())
    assert held is not None
    assert model.round == 2
    for name, tensor in model.network.state_dict().items():
        assert (tensor.numpy() == held.model[name]).all()


def test_what_is_wrong_is_said_before_anything_is_written(site: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    for run, out, words in (
        ("tuesday", tmp_path / "new", "no model of a run 'tuesday' is held here; held: monday"),
        (RUN, there, "is there already; name another --out"),
    ):
        refused = subprocess.run(
            [sys.executable, "-c", "from client_app.cli import main; main()", "model", "export",
             run, "--out", str(out), "--site", str(site)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert refused.returncode == 1
        assert words in " ".join(refused.stderr.split())
        assert "Traceback" not in refused.stderr
    assert not (tmp_path / "new").exists()
    assert not list(there.iterdir())


def test_the_coordinators_folder_says_where_the_model_is(three: Hospitals) -> None:
    import torch

    from federation.schema import ConfigError

    with pytest.raises(ConfigError, match="at the hospitals; export it with hospital model export"):
        read_model(three.folder / "runs" / RUN, torch.device("cpu"))
