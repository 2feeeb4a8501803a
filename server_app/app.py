"""Flower's entry point at the coordinator: the story of a run."""

from __future__ import annotations

import os
from logging import ERROR, INFO
from pathlib import Path

from flwr.app import Context
from flwr.common.logger import log
from flwr.serverapp import Grid, ServerApp

from federation import models, strategies, tasks
from federation.messages import Arrays
from federation.pace import hurry_flower
from federation.schema import ConfigError, Experiment
from federation.tasks import Task
from server_app import tallies
from server_app.exchange import Exchange, TooFewHospitals
from server_app.home import HOME_VARIABLE, Home
from server_app.rounds import Conductor
from server_app.state import Checkpoint, RunFolder

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Conduct the run that the run configuration names, from its last committed round."""
    hurry_flower()
    config = context.run_config
    home = Home(Path(os.environ[HOME_VARIABLE]))
    experiment = Experiment.from_canonical(
        str(config["experiment"]), str(config["experiment-sha256"])
    )
    folder = RunFolder(home.runs / str(config["run"]))
    with folder.conducting():
        try:
            _conduct(grid, home, folder, experiment)
        except Exception as error:
            round_ = folder.status()["round"]
            message = (
                str(error) if isinstance(error, (ConfigError, TooFewHospitals)) else repr(error)
            )
            folder.write_status("failed", round_, experiment.rounds, message)
            log(ERROR, "run %s failed: %s", folder.name, message)
            raise
        folder.write_status("completed", experiment.rounds, experiment.rounds)


def _conduct(grid: Grid, home: Home, folder: RunFolder, experiment: Experiment) -> None:
    task = tasks.build(experiment.task)
    strategy = strategies.build(experiment)
    fresh, parameters = initial_model(experiment, task)
    start = folder.load()
    if start is None:
        start = Checkpoint(0, fresh, {})
        folder.save(start)
    folder.drop_metrics_after(start.round)
    folder.write_status("running", start.round, experiment.rounds)
    log(INFO, "run %s goes on from round %d of %d", folder.name, start.round, experiment.rounds)
    tally = tallies.of_experiment(experiment, task)
    exchange = Exchange(
        grid,
        home.roster(),
        experiment.participation,
        frozenset(task.metrics),
        private=experiment.privacy is not None,
        tally=tally.size if tally else 0,
    )
    conductor = Conductor(
        folder, experiment, strategy, exchange, parameters, task.headline, home.lodgings, tally
    )
    conductor.conduct(start)


def initial_model(experiment: Experiment, task: Task) -> tuple[Arrays, frozenset[str]]:
    """The untrained global model, drawn from the experiment's seed, and its parameters' names."""
    network = models.build(experiment.model, task, seed=experiment.seed)
    arrays = {
        name: tensor.detach().cpu().numpy().copy(order="C")
        for name, tensor in network.state_dict().items()
    }
    return arrays, frozenset(name for name, _ in network.named_parameters())
