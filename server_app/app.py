"""Flower's entry point at the coordinator: the story of a run."""

from __future__ import annotations

import os
from logging import ERROR, INFO
from pathlib import Path

from flwr.app import Context
from flwr.common.logger import log
from flwr.serverapp import Grid, ServerApp

from federation import journal, models, strategies, tasks
from federation.pace import hurry_flower
from federation.schema import ConfigError, Experiment
from server_app import aggregation, tallies
from server_app.courier import Courier
from server_app.exchange import Exchange, TooFewHospitals
from server_app.fairness import Counted
from server_app.home import HOME_VARIABLE, Home
from server_app.rounds import Conductor
from server_app.state import RunFolder

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Conduct the run that the run configuration names, from its last committed round."""
    journal.to_supervisor()
    config = context.run_config
    home = Home(Path(os.environ[HOME_VARIABLE]))
    experiment = Experiment.from_canonical(
        str(config["experiment"]), str(config["experiment-sha256"])
    )
    hurry_flower(experiment.participation.deadline)  # a late answer is not waited for either
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
    task = tasks.of_experiment(experiment)
    strategy = strategies.build(experiment)
    network = models.build(experiment.model, task, seed=experiment.seed)
    start = folder.load()
    if start is None:
        start = aggregation.untrained(experiment, network)
        folder.save(start)
    folder.drop_metrics_after(start.round)
    folder.write_status("running", start.round, experiment.rounds)
    log(INFO, "run %s goes on from round %d of %d", folder.name, start.round, experiment.rounds)
    tally = tallies.of_experiment(experiment, task)
    descent = aggregation.descent_of(experiment)
    courier = Courier(
        folder,
        Exchange(grid, home.roster(), experiment.participation, home.suspensions),
        descent,
        home.lodgings if experiment.privacy is not None else None,
    )
    conductor = Conductor(
        folder,
        experiment,
        strategy,
        aggregation.build(experiment, courier, network, task),
        descent,
        # As when it was started, whoever came since: what strategies remember may be a mean over these.
        tuple(folder.record()["hospitals"]),
        frozenset(name for name, _ in network.named_parameters()),
        task.headline,
        tally,
        Counted.of(experiment, task),
    )
    conductor.conduct(start)
