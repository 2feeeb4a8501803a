"""Overrides become an experiment, or one line that says what is wrong."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from federation import models, registry, tasks
from federation.schema import ConfigError, Experiment, Fairness
from server_app.compose import CONFIGS, choices, experiment

DP = ["privacy=patient_dp"]


@pytest.mark.parametrize("name", choices("experiment"))
def test_every_experiment_file_composes(name: str) -> None:
    more = ["evaluation.leave_out=north"] if name == "leave_one_out" else []
    composed = experiment([f"experiment={name}", *more])
    assert composed.name == name.replace("_", "-") or composed.name == name


@pytest.mark.parametrize("strategy", choices("strategy"))
@pytest.mark.parametrize(
    "name",
    [name for name in choices("experiment") if name not in ("private_demo", "leave_one_out")],
)
def test_every_ready_experiment_leaves_a_strategy_what_it_needs(name: str, strategy: str) -> None:
    """Optimiser, weighting and least are the strategy's: an experiment is composed after it."""
    composed = experiment([f"experiment={name}", f"strategy={strategy}"])
    own = experiment([f"strategy={strategy}"])
    assert composed.training.optimizer == own.training.optimizer
    assert composed.participation.weighting == own.participation.weighting
    assert composed.participation.least == own.participation.least


def test_every_task_and_model_has_a_config_and_the_other_way_round() -> None:
    assert choices("task") == registry.names(tasks)
    assert choices("model") == registry.names(models)


def test_groups_and_values_are_overridden() -> None:
    composed = experiment(
        ["task=hippocampus", "model=unet", "strategy=fedadam", "rounds=3", "training.batch_size=2"]
    )
    assert (composed.task.name, composed.model.name) == ("hippocampus", "unet")
    assert composed.strategy.options["beta_1"] == 0.9
    assert (composed.rounds, composed.training.batch_size) == (3, 2)


def test_fedprox_brings_its_term_and_an_experiment_may_choose_it() -> None:
    assert experiment(["strategy=fedprox"]).training.proximal_mu == 0.01
    assert experiment(["strategy=fedprox", "training.proximal_mu=0.5"]).training.proximal_mu == 0.5


def test_an_experiment_has_no_privacy_unless_it_is_chosen() -> None:
    assert experiment(["experiment=demo"]).privacy is None
    assert experiment(["experiment=private_demo", "privacy=none"]).privacy is None


def test_privacy_is_an_override_and_comes_with_its_noise() -> None:
    """The noise is in what is sent, and is that of which Google's accountant says it costs ε."""
    from dp_accounting import NeighboringRelation, dp_event
    from dp_accounting.pld import PLDAccountant

    composed = experiment(["experiment=demo", "privacy=patient_dp", "privacy.epsilon=3"])
    sent = Experiment.from_canonical(composed.canonical(), composed.sha256())
    assert sent.privacy is not None
    assert sent.privacy.noise_multiplier is not None
    peer = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE)
    event = dp_event.GaussianDpEvent(sent.privacy.noise_multiplier)
    peer.compose(
        dp_event.PoissonSampledDpEvent(sent.privacy.sampling_rate, event),
        sent.rounds * sent.training.local_steps,
    )
    assert peer.get_epsilon(sent.privacy.delta) == pytest.approx(3.0, abs=0.02)


def test_noise_may_be_given_in_place_of_epsilon() -> None:
    composed = experiment([*DP, "privacy.epsilon=null", "privacy.noise_multiplier=1.5"])
    assert composed.privacy is not None
    assert (composed.privacy.noise_multiplier, composed.privacy.epsilon) == (1.5, None)


def test_noisy_metrics_of_a_task_without_a_tally_are_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = tasks.build
    monkeypatch.setattr(tasks, "build", lambda c: dataclasses.replace(whole(c), tally=None))
    with pytest.raises(ConfigError, match=r"privacy\.metrics=noisy: task chest_xray"):
        experiment(
            [*DP, "privacy.epsilon=null", "privacy.noise_multiplier=9", "privacy.metrics=noisy"]
        )


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["strategy=fedadm"], ["strategy", "'fedadm'", "did you mean 'fedadam'"]),
        (["stratgy=fedavg"], ["'stratgy'", "did you mean 'strategy'"]),
        (["training.lr=0.1"], ["'lr'"]),
        (["+training.lr=0.1"], ["training.lr", "known:"]),
        (["training.local_step=3"], ["'local_step'", "did you mean 'local_steps'"]),
        (["rounds=0"], ["rounds is 0", "greater than or equal to 1"]),
        (["rounds=many"], ["rounds is 'many'", "integer"]),
        (["rounds"], ["'rounds'", "key=value"]),
        (["task.size=7"], ["tasks/chest_xray", "size is 7"]),
        (["experiment=demoo"], ["'demoo'", "did you mean 'demo'"]),
        (["training.learning_rate=[1"], ["key=value"]),
        (["model=unet", "model.chanels=[8]"], ["chanels"]),
        (["privacy=patient-dp"], ["'patient-dp'", "did you mean 'patient_dp'"]),
        (["privacy.epsilon=3"], ["'privacy.epsilon=3'", "privacy=patient_dp"]),
        (["privacy=none", "privacy.epsilon=3"], ["privacy=patient_dp"]),
        ([*DP, "privacy.epsilonn=3"], ["'epsilonn'", "did you mean 'epsilon'"]),
        ([*DP, "+privacy.epsilonn=3"], ["privacy.epsilonn", "did you mean 'epsilon'"]),
        ([*DP, "privacy.sampling_rate=2"], ["privacy.sampling_rate is 2", "equal to 1"]),
        ([*DP, "privacy.epsilon=null"], ["noise_multiplier, or epsilon"]),
        ([*DP, "privacy.noise_multiplier=1"], ["makes the run cost", "privacy.epsilon is 8"]),
        ([*DP, "privacy.metrics=noisy", "privacy.metrics_noise_multiplier=0.1"], ["metrics alone"]),
        ([*DP, "training.gradient_clipping_norm=1"], ["privacy.clipping_norm"]),
        (
            [*DP, "privacy.noise_multiplier=9", "model.norm=batch"],
            ["BatchNorm", "model.norm=group"],
        ),
        (["experiment=leave_one_out"], ["say which hospital", "evaluation.leave_out=NAME"]),
        (
            ["evaluation.leave_out=a", "participation.hospitals=[b,c,d]"],
            ["'a'", "participation.hospitals does not name", "add it there"],
        ),
        (
            ["evaluation.leave_out=a", "participation.hospitals=[a,b]"],
            ["participation.least is 2", "names only 1"],
        ),
        (
            [*DP, "evaluation.leave_out=a"],
            ["privacy.metrics=none", "choose privacy.metrics=noisy or public"],
        ),
        (
            ["evaluation.leave_out=a", "evaluation.held_out=0"],
            ["evaluation.held_out=0 leaves none", "0.25"],
        ),
        (
            ["evaluation.leave_out=a", "strategy=fedper"],
            ["evaluation.leave_out", "strategy=fedper keeps", "choose strategy=fedavg"],
        ),
        (["fairness=by_grup"], ["'by_grup'", "did you mean 'by_group'"]),
        (["fairness=none", "fairness.pairs=true"], ["no fairness", "fairness=by_group"]),
        (["fairness.pars=true"], ["'pars'", "did you mean 'pairs'"]),
        (["fairness.attributes=[sex,age]"], ["fairness.attributes", "'age'"]),
        (
            [
                "fairness.attributes=[sex,age_band,manufacturer,field_strength,view,breast_density]",
                "fairness.pairs=true",
                "fairness.score_bins=256",
            ],
            ["counts a hospital", "pairs=false"],
        ),
        (["fairness.noise_multiplier=5"], ["privacy=patient_dp", "leave it null"]),
        ([*DP, "fairness.noise_multiplier=5"], ["privacy.metrics=none", "metrics=noisy"]),
        (["codec=int88"], ["codec", "'int88'", "did you mean 'int8'"]),
        (["codec=[rand_q,int4]"], ["'rand_q'", "did you mean 'rand_k'"]),
        (["codec=rand_k,int4"], ["brackets", "codec=[rand_k,int4]"]),
        (["codec=[]"], ["known: adapters"]),
        (["codec=[int8,int4]"], ["int8 and int4", "codec.quantise", "choose one"]),
        (["codec=[none,int4]"], ["codec=none stands alone"]),
        (["codec.quantise.bits=4"], ["no codec", "codec=int8"]),
        (["codec=none", "codec.down=full"], ["no codec", "codec=int8"]),
        (["codec=int8", "codec.quantise.bits=17"], ["quantise/integers", "bits is 17"]),
        (["codec=int8", "+codec.quantise.bit=4"], ["'bit'", "did you mean 'bits'"]),
        (["codec=int8", "codec.down_bits=3"], ["codec.down_bits is 3"]),
        (["codec=int8", "codec.error_fedback=false"], ["did you mean 'error_feedback'"]),
        (["codec=[rand_k,int8]", "codec.sparsify.keep=0"], ["sparsify/rand_k", "keep is 0"]),
        (["codec=int8", "codec.quantise.name=int8"], ["quantise: there is no 'int8'"]),
        (
            [*DP, "codec=[adapters,int8]", "privacy.engine=per_sample"],
            ["codec.exchange=adapters", "privacy.engine=loop"],
        ),
    ],
)
def test_wrong_overrides_are_one_line(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        experiment(overrides)
    for word in words:
        assert word in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", [name for name in choices("codec") if name != "none"])
def test_each_codec_fills_one_slot_and_brings_the_options_of_its_stage(name: str) -> None:
    codec = experiment([f"codec={name}"]).codec
    assert codec is not None
    given = {
        (slot, part.name): part.options
        for slot in ("exchange", "sparsify", "quantise")
        if (part := getattr(codec, slot)) is not None and part.name != "all"
    }
    assert len(given) == 1
    (_, stage), options = given.popitem()
    if stage == "integers":
        assert name == f"int{options['bits']}"
    else:
        assert stage == name


def test_codecs_are_chained_and_their_options_overridden() -> None:
    composed = experiment(
        ["codec=[adapters,rand_k,int4]", "codec.quantise.bits=6", "codec.sparsify.keep=0.05"]
    )
    codec = composed.codec
    assert codec is not None and codec.sparsify is not None and codec.quantise is not None
    assert (codec.exchange.name, codec.exchange.options["rank"]) == ("adapters", 8)
    assert (codec.sparsify.name, codec.sparsify.options) == ("rand_k", {"keep": 0.05})
    assert (codec.quantise.name, codec.quantise.options) == ("integers", {"bits": 6})
    assert codec.error_feedback and codec.down == "differences"
    assert Experiment.from_canonical(composed.canonical(), composed.sha256()) == composed


def test_there_is_no_codec_unless_one_is_chosen() -> None:
    assert experiment([]).codec is None
    assert experiment(["codec=none"]).codec is None


def test_a_codec_goes_with_privacy_and_its_feedback_too() -> None:
    composed = experiment(
        [*DP, "privacy.epsilon=null", "privacy.noise_multiplier=9", "codec=[adapters,rand_k,int4]"]
    )
    assert composed.codec is not None and composed.codec.error_feedback


def test_a_stage_of_a_codec_is_one_file_and_one_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signs alone, of a size that does not change; dropped in as docs/researcher.md promises."""
    import shutil

    import numpy as np
    from torch import nn

    from federation.codec import chain, quantise

    code = tmp_path / "code"
    code.mkdir()
    (code / "signs.py").write_text(
        "import numpy as np\n"
        "from federation.schema import Closed\n"
        "LINEAR = False\n"
        "class Options(Closed):\n"
        "    size: float = 0.5\n"
        "def bits(options, round):\n"
        "    return 2\n"
        "def encode(values, exponent, bits, source):\n"
        "    return np.sign(values).astype(np.int32)\n"
        "def decode(integers, exponent):\n"
        "    return integers * 0.5\n"
    )
    configs = tmp_path / "configs"
    shutil.copytree(CONFIGS, configs)
    (configs / "codec" / "signs.yaml").write_text("quantise: { name: signs, size: 0.5 }\n")
    monkeypatch.setattr(quantise, "__path__", [*quantise.__path__, str(code)])
    composed = experiment(["codec=[head,signs]"], configs=configs)
    assert composed.codec is not None
    one = chain.build(composed.codec, nn.Linear(3, 1, bias=False), seed=0)
    update = {"weight": np.array([[0.3, -7, 0]], np.float32)}
    encoded = one.encode(update, None, np.empty(0, np.int16), round=1, seed=0)
    blob = one.to_bytes(encoded, round=1)
    found = one.decode_one(one.from_bytes(blob, round=1), np.empty(0, np.int16), round=1)
    assert found["weight"].tolist() == [[0.5, -0.5, 0.0]]
    assert one.unshared == "codec.quantise=signs"


def test_a_strategy_is_one_file_and_one_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What docs/researcher.md promises: drop in two files, choose it by name."""
    import shutil

    import numpy as np

    from federation import strategies

    code = tmp_path / "code"
    code.mkdir()
    (code / "half.py").write_text(
        "from federation.schema import Closed\n"
        "class Options(Closed):\n"
        "    factor: float = 0.5\n"
        "def step(options, model, update, state):\n"
        "    return {n: w + options.factor * update[n] for n, w in model.items()}, state\n"
    )
    configs = tmp_path / "configs"
    shutil.copytree(CONFIGS, configs)
    (configs / "strategy" / "half.yaml").write_text("name: half\nfactor: 0.25\n")
    monkeypatch.setattr(strategies, "__path__", [*strategies.__path__, str(code)])
    composed: Experiment = experiment(["strategy=half"], configs=configs)
    model, _ = strategies.build(composed).step({"w": np.ones(1)}, {"w": np.ones(1)}, {})
    assert model["w"][0] == 1.25


def test_counts_by_group_are_as_the_schema_has_them_and_can_be_left_out() -> None:
    assert experiment([]).fairness == Fairness()
    assert experiment(["fairness=none"]).fairness is None
    private = experiment(DP)  # nothing is refused, and nothing leaves
    assert private.fairness == Fairness()
    assert private.counted is None
    noisy = [*DP, "privacy.metrics=noisy", "fairness.noise_multiplier=30"]
    counted = experiment(noisy)
    assert counted.counted is not None
    # the run's ε pays for them: more noise in its training
    without = experiment(noisy[:-1])
    assert counted.privacy is not None
    assert without.privacy is not None
    assert counted.privacy.noise_multiplier is not None
    assert without.privacy.noise_multiplier is not None
    assert counted.privacy.noise_multiplier > without.privacy.noise_multiplier
