"""Whose weights they are: a run that cannot be trusted is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from client_app.prediction.model import read_model
from federation.schema import ConfigError
from tests.client_app.prediction.phantom import (
    CPU,
)


def test_a_run_is_read_from_its_folder_or_any_file_in_it(run: Path) -> None:
    read = read_model(run, CPU)
    assert (read.run, read.round, read.task.name) == ("monday", 3, "hippocampus")
    assert read.sha256 == hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()
    assert read_model(run / "model.safetensors", CPU).sha256 == read.sha256
    stored = safetensors.torch.load_file(run / "model.safetensors")
    for name, tensor in read.network.state_dict().items():
        torch.testing.assert_close(tensor, stored[name], rtol=0, atol=0)


def _other_weights(run: Path) -> None:
    safetensors.torch.save_file({"w": torch.zeros(3)}, run / "model.safetensors")


def _not_finite(run: Path) -> None:
    tensors = safetensors.torch.load_file(run / "model.safetensors")
    next(iter(tensors.values())).fill_(float("nan"))
    safetensors.torch.save_file(tensors, run / "model.safetensors")


def _cut_short(run: Path) -> None:
    content = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(content[:-100])


def _too_large(run: Path) -> None:
    with (run / "model.safetensors").open("ab") as file:
        file.truncate(1 << 27)


def _edited(run: Path) -> None:
    text = (run / "experiment.json").read_text()
    (run / "experiment.json").write_text(text.replace('"rounds":3', '"rounds":4'))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: (run / "experiment.json").unlink(), "there is no run"),
        (lambda run: (run / "model.safetensors").unlink(), "no round of this run"),
        (lambda run: (run / "run.json").write_text("[]"), "not the record of a run"),
        (lambda run: (run / "experiment.json").write_bytes(b"\xff\xfe"), "is not text"),
        (_edited, "does not have the SHA-256"),
        (_other_weights, "not a model of this experiment"),
        (_not_finite, "not finite"),
        (_cut_short, "is damaged"),
        (_too_large, "larger than a model"),
    ],
)
def test_a_run_that_cannot_be_trusted_is_refused(
    run: Path, spoil: Callable[[Path], Any], message: str
) -> None:
    spoil(run)
    with pytest.raises(ConfigError, match=message):
        read_model(run, CPU)
