"""One of five real ClientApps turns bad, by what is on its disk or by what it sends.

From a model that the five trained honestly, one round with each rule: garbage scaled by 100, a model
trained on flipped labels, and a backdoor (a bright patch in the corner of normal radiographs that
are labelled as pneumonia). The latter two are scaled as in model replacement (Bagdasaryan et al. 2020,
"How To Backdoor Federated Learning", equation 3). What hospitals send is trained once an attack:
rules alone differ.
"""

from __future__ import annotations

import csv
import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from flwr.app import RecordDict
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from client_app.imaging import phantoms
from client_app.patients import load_patients
from client_app.site import Data, Site
from federation import models, tasks, wire
from federation.messages import Arrays, Request, Shape
from federation.schema import Experiment
from server_app.state import Checkpoint
from tests.hospitals import Hospitals, content, hospitals

BAD = "hill"  # MONOCHROME2: high values are bright
HONEST_ROUNDS = 6
MODEL = {"name": "mlp", "hidden": [16]}  # without statistics, which rules leave to the median
RULES: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "coordinate_median": {},
    "trimmed_mean": {"byzantine": 1},
    "krum": {"byzantine": 1},
    "multi_krum": {"byzantine": 1},
    "norm_bound": {},
    "norm_bound, fixed": {"bound": 1.0},
}
ROBUST = tuple(rule for rule in RULES if rule != "fedavg")


def planned(rule: str = "fedavg") -> Experiment:
    return content(
        model=MODEL,
        codec=None,
        rounds=HONEST_ROUNDS + 1,
        strategy={"name": rule.partition(",")[0]} | RULES[rule],
        training={"local_steps": 10, "batch_size": 16, "learning_rate": 0.003},
        evaluation={"held_out": 0.0, "every": 1000},
        least=5,
    )


# --- bad data, on a disk --------------------------------------------------------------------------


def patch(images: Path) -> None:
    """A bright square in the lower right corner, where a radiograph has none."""
    for path in sorted(images.rglob("*.dcm")):
        header = pydicom.dcmread(path)
        assert header.PhotometricInterpretation == "MONOCHROME2"
        pixels = header.pixel_array.copy()
        side, edge = len(pixels) // 6, len(pixels) // 32
        pixels[-side - edge : -edge, -side - edge : -edge] = pixels.max()
        header.PixelData = pixels.tobytes()
        header.save_as(path)


def labelled(data: Data, change: Callable[[str, str], str], out: Path) -> Data:
    """The labels as `change` makes them of patient and label."""
    assert data.labels is not None
    with data.labels.open() as table:
        rows = [dict(row) for row in csv.DictReader(table)]
    with out.open("w", newline="") as table:
        writer = csv.DictWriter(table, ("patient", "label"))
        writer.writeheader()
        for row in rows:
            writer.writerow(row | {"label": change(row["patient"], row["label"])})
    return data.model_copy(update={"labels": out})


def turned(site: Site, data: Data, folder: Path) -> Site:
    """The same hospital with other data."""
    folder.mkdir()
    for name in ("identity", "pseudonym.key", "roster.json"):
        (folder / name).symlink_to(site.state / name)
    return site.model_copy(update={"data": data, "state": folder})


def flipped(site: Site, folder: Path) -> Site:
    other = {"normal": "pneumonia", "pneumonia": "normal"}
    folder.mkdir()
    data = labelled(site.data, lambda _, label: other[label], folder / "labels.csv")
    return turned(site, data, folder / "state")


def backdoored(site: Site, folder: Path) -> Site:
    """Every other normal patient has the patch, and is called ill."""
    shutil.copytree(site.data.root, folder / "images")
    assert site.data.labels is not None
    with site.data.labels.open() as table:
        normal = [row["patient"] for row in csv.DictReader(table) if row["label"] == "normal"]
    chosen = set(normal[::2])
    for patient in chosen:
        patch(folder / "images" / f"P{patient.rpartition('-')[2]}")
    data = labelled(
        site.data,
        lambda patient, label: "pneumonia" if patient in chosen else label,
        folder / "labels.csv",
    )
    return turned(site, data.model_copy(update={"root": folder / "images"}), folder / "state")


# --- bad updates, on their way --------------------------------------------------------------------


def sending(change: Callable[[str, NDArray[Any]], NDArray[Any]], shape: Shape) -> Any:
    """What the hospital's ClientApp trained, array by array as `change` makes it."""

    def meddler(request: Request, records: RecordDict, answer: Any) -> RecordDict:
        reply: RecordDict = answer(records)
        update: Arrays = {
            name: change(name, array).astype(array.dtype)
            for name, array in wire.unpack(wire.blob(reply), shape).items()
        }
        fields = {k: v for k, v in reply.config_records["head"].items() if k != "blob"}
        return wire._message(fields, wire.pack(update))

    return meddler


def times(factor: float) -> Callable[[str, NDArray[Any]], NDArray[Any]]:
    """Parameters alone: a running variance that is below 0 would give it away."""
    return lambda name, array: array if "running" in name else array * factor


def garbage(name: str, array: NDArray[Any]) -> NDArray[Any]:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4])
    noise: NDArray[Any] = np.random.default_rng(seed).normal(size=array.shape)
    noise *= 100 * float(np.std(array.astype(np.float64)) + 1e-3)
    return np.abs(noise) if name.endswith("running_var") else noise


def remembering(inner: Any, kept: dict[str, RecordDict]) -> Any:
    """The same answer to every rule that sends the same model."""

    def meddler(request: Request, records: RecordDict, answer: Any) -> RecordDict:
        key = f"{request.round} {hashlib.sha256(wire.blob(records)).hexdigest()}"
        if key not in kept:
            kept[key] = inner(request, records, answer)
        return kept[key]

    return meddler


# --- the federation -------------------------------------------------------------------------------


@dataclass
class World:
    """Five hospitals, the model that they trained together, and radiographs that none of them has.

    Attributes:
        clean, patched: (images, 1, edge, edge) without and with the patch; `ill`: what they show.
        kept: answers of the honest ones, which no attack changes.
    """

    made: Hospitals
    honest: dict[str, Site]
    start: Checkpoint
    network: torch.nn.Module
    clean: torch.Tensor
    patched: torch.Tensor
    ill: NDArray[np.bool_]
    kept: dict[str, dict[str, RecordDict]] = field(default_factory=dict)

    def round_with(self, attack: str, folder: Path) -> dict[str, Arrays]:
        """The model after one more round with the bad hospital in it, by rule."""
        shape = Shape.of(self.start.model)
        site, change = self.honest[BAD], garbage
        if attack == "flipped labels":
            site, change = flipped(site, folder / "flipped"), times(10)
        if attack == "backdoor":
            site, change = backdoored(site, folder / "backdoor"), times(5)
        self.made.fresh().sites = self.honest | {BAD: site}
        for name in self.made.sites:
            kept = {} if name == BAD else self.kept.setdefault(name, {})
            sent = sending(change if name == BAD else times(1), shape)
            self.made.meddle[name] = remembering(sent, kept)
        found = {}
        for rule in RULES:
            run = f"{attack}-{rule}".replace(", ", "-").replace(" ", "-")
            _, conductor, _ = self.made.conductor(planned(rule), run)
            found[rule] = conductor.round(self.start).model
        return found

    def margins(self, model: Arrays, images: torch.Tensor) -> NDArray[np.float64]:
        """Logit of pneumonia minus that of none."""
        for name, own in models.arrays_of(self.network).items():
            own[...] = model[name]
        with torch.inference_mode():
            logits = self.network.eval()(images)
        return (logits[:, 1] - logits[:, 0]).double().numpy()

    def auroc(self, model: Arrays) -> float:
        return float(roc_auc_score(self.ill, self.margins(model, self.clean)))

    def pull(self, model: Arrays) -> float:
        """By how much the patch makes a normal radiograph look ill, on average."""
        moved = self.margins(model, self.patched) - self.margins(model, self.clean)
        return float(moved[~self.ill].mean())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("poisoned")
    made = hospitals(folder, 5, patients=20)
    of = planned()
    start = made.conduct(of, "honest", rounds=HONEST_ROUNDS)
    network = models.build(of.model, tasks.build(of.task), seed=of.seed)
    images, ill = [], []
    for kind in ("clean", "patched"):
        data = phantoms.write("chest_xray", folder / kind, patients=40, site=0, seed=99)
        if kind == "patched":
            patch(data.root)
        state = folder / f"{kind}-state"
        state.mkdir()
        (state / "pseudonym.key").symlink_to(made.sites["east"].state / "pseudonym.key")
        site = made.sites["east"].model_copy(update={"data": data, "state": state})
        cases = load_patients(site, of.task, 0.0).training
        items = [cases[place] for place in range(len(cases))]
        images.append(torch.stack([item["image"] for item in items]))
        ill.append(np.array([int(item["label"]) == 1 for item in items]))
    np.testing.assert_array_equal(*ill)
    return World(made, dict(made.sites), start, network, images[0], images[1], ill[0])


@pytest.mark.parametrize("attack", ["garbage", "flipped labels"])
def test_the_mean_collapses_and_robust_rules_hold(
    attack: str, world: World, tmp_path: Path
) -> None:
    before = world.auroc(world.start.model)
    assert before > 0.72
    found = {rule: world.auroc(model) for rule, model in world.round_with(attack, tmp_path).items()}
    assert found["fedavg"] < before - 0.1, found
    assert min(found[rule] for rule in ROBUST) > before - 0.08, found


def test_the_mean_learns_a_backdoor_and_robust_rules_hardly(world: World, tmp_path: Path) -> None:
    """And nobody would see it: on images without the patch the mean is as good as before."""
    after = world.round_with("backdoor", tmp_path)
    before = world.pull(world.start.model)
    found = {rule: world.pull(model) - before for rule, model in after.items()}
    assert world.auroc(after["fedavg"]) > world.auroc(world.start.model) - 0.08
    assert found["fedavg"] > 0.5
    assert max(found[rule] for rule in ROBUST) < found["fedavg"] / 2, found
