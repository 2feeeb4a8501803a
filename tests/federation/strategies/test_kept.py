"""What stays at hospitals, by name; and what such strategies refuse."""

from __future__ import annotations

from typing import Any

import pytest

from federation import models, strategies, tasks
from federation.codec.exchange.all_but_normalisation import normalisation
from federation.figures import Figures
from federation.schema import ConfigError, Experiment
from server_app import compose
from tests.in_process import PRIVATE, experiment

KEEPING = ("fedbn", "fedper", "fedrep", "local_only")


def described(name: str, model: dict[str, Any] | None = None, **changes: Any) -> Experiment:
    strategy = {"name": name} | changes.pop("strategy", {})
    training = {"local_steps": 4, "batch_size": 2, "learning_rate": 0.1}
    content = {"model": model or {"name": "resnet"}, "training": training} | changes
    return experiment(strategy=strategy, **content)


def stays(of: Experiment) -> frozenset[str]:
    network = models.build(of.model, tasks.build(of.task), seed=0)
    return strategies.kept_at_hospitals(of, network)


def arrays(of: Experiment) -> set[str]:
    return set(models.build(of.model, tasks.build(of.task), seed=0).state_dict())


def test_names_of_what_stays() -> None:
    batch = {"name": "resnet", "norm": "batch"}
    of = described("fedbn", batch)
    network = models.build(of.model, tasks.build(of.task), seed=0)
    assert stays(of) == normalisation(network)
    assert {"bn1.running_mean", "bn1.num_batches_tracked", "bn1.weight"} <= stays(of)
    assert not {name for name in stays(of) if "conv" in name or "fc" in name}
    head = {"fc.weight", "fc.bias"}
    assert stays(described("fedper")) == stays(described("fedrep")) == head
    assert stays(described("local_only", batch)) == arrays(described("fedavg", batch))
    assert stays(described("fedavg")) == stays(described("ditto")) == frozenset()
    assert stays(described("fedper", strategy={"personal_layers": []})) == frozenset()
    chosen = {"personal_layers": ["fc", "layer4.*.conv1"]}
    assert stays(described("fedper", strategy=chosen)) == {
        *head, *(n for n in arrays(described("fedavg")) if n.startswith("layer4.0.conv1")),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("of", "message"),
    [
        (described("fedbn", {"name": "mlp"}), "the model has none that learn: choose strategy=fedavg"),
        (described("fedper", strategy={"personal_layers": ["fd"]}),
         "no layer 'fd', its last is 'fc.weight'"),
        (described("fedper", strategy={"personal_layers": ["layer4.conv1"]}),
         r"no layer 'layer4.conv1', did you mean 'layer4\.0\.conv1'\?"),
        (described("fedper", strategy={"personal_layers": ["*"]}), "choose strategy=local_only"),
        (described("fedrep", strategy={"personal_layers": ["*"]}), "choose strategy=local_only"),
        (described("fedper", {"name": "mlp", "hidden": []}), "choose strategy=local_only"),
    ],
)  # fmt: skip
def test_layers_that_are_not_there_are_refused(of: Experiment, message: str) -> None:
    strategies.build(of)
    with pytest.raises(ConfigError, match=message):
        stays(of)


@pytest.mark.parametrize("name", KEEPING)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codec": {"exchange": {"name": "adapters"}}}, "codec.exchange=adapters trains"),
        ({"codec": {"exchange": {"name": "head"}}}, "codec.exchange=head trains the last layer"),
        ({"evaluation": {"leave_out": "north"}}, "evaluation.leave_out"),
    ],
)
def test_what_would_train_or_measure_other_layers_is_refused(
    name: str, changes: dict[str, Any], message: str
) -> None:
    strategies.build(described(name))
    with pytest.raises(ConfigError, match=f"strategy={name}.*{message}.*choose"):
        strategies.build(described(name, **changes))


@pytest.mark.parametrize("name", ["fedper", "fedrep"])
def test_a_head_that_stays_cannot_be_all_that_is_trained(name: str) -> None:
    strategies.build(described(name, privacy=PRIVATE))
    with pytest.raises(ConfigError, match=r"privacy\.trainable=head trains nothing else"):
        strategies.build(described(name, privacy=PRIVATE | {"trainable": "head"}))


@pytest.mark.parametrize(("steps", "share"), [(1, 0.5), (4, 0.1), (4, 0.95)])
def test_a_phase_without_a_step_is_refused(steps: int, share: float) -> None:
    training = {"local_steps": steps, "batch_size": 2, "learning_rate": 0.1}
    with pytest.raises(ConfigError, match=r"strategy\.head_share"):
        strategies.build(described("fedrep", strategy={"head_share": share}, training=training))


def test_ditto_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ConfigError, match=r"strategy=ditto .* choose strategy=fedper, fedrep or"):
        strategies.build(described("ditto", privacy=PRIVATE))
    sgd = {"local_steps": 1, "batch_size": 2, "learning_rate": 0.1, "optimizer": "sgd"}
    strategies.build(described("ditto", training=sgd, strategy={"personal_weight": 10.0}))
    with pytest.raises(ConfigError, match=r"past the global one\. Lower one of them"):
        strategies.build(described("ditto", training=sgd, strategy={"personal_weight": 10.1}))


def test_metrics_of_personal_models_are_declared_everywhere() -> None:
    plain, own = described("fedavg"), described("ditto")
    assert strategies.metric_names(plain, ("auroc", "loss")) == ("auroc", "loss")
    names = ("auroc", "loss", "personal_auroc", "personal_loss")
    assert strategies.metric_names(own, ("auroc", "loss")) == names
    task = tasks.build(own.task)
    assert Figures.of(own, task).metrics == strategies.metric_names(own, task.metrics)
    assert Figures.of(own, task).length == Figures.of(plain, task).length + 2 * len(task.metrics)


@pytest.mark.parametrize("name", [*KEEPING, "ditto"])
def test_each_is_a_choice_of_the_coordinators(name: str) -> None:
    of = compose.experiment(["experiment=demo", f"strategy={name}"])
    assert strategies.build(of).combine is None
    assert bool(stays(of)) == (name != "ditto")


def test_a_model_without_such_layers_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(ConfigError, match="strategy=fedbn keeps normalisation layers"):
        compose.experiment(["experiment=demo", "strategy=fedbn", "model=mlp"])
