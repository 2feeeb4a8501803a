"""Flower's entry point at the hospital: the story of one request.

Nothing heavy is imported before the request is there, and nothing may leave but through the outbox:
whatever goes wrong, with whatever text, becomes a reason code.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from contextlib import AbstractContextManager
from datetime import datetime
from logging import CRITICAL, NullHandler, getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client_app import disk
from client_app.audit import Audit
from client_app.outbox import Outbox, SecureSum, last_resort
from client_app.policy import Refused, allow, require_round, require_trainer
from client_app.site import SITE_VARIABLE, Site, read_site
from federation import wire
from federation.journal import describe
from federation.messages import Phase, Reason, Request, WireError
from federation.schema import ConfigError, Experiment, Training

if TYPE_CHECKING:  # it imports torch
    from client_app.received import Asked

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """One exchange: evaluate the model that came, train it, answer."""
    return Message(serve(message.content, dict(context.run_config)), reply_to=message)


def serve(records: RecordDict, run_config: dict[str, Any]) -> RecordDict:
    """The records to send back, whatever happens.

    Flower sends the text of an exception to the coordinator. So none gets past here: not of a site
    configuration that cannot be read, and not of a log that cannot be written.
    """
    try:
        _keep_libraries_quiet()
        try:
            site = read_site(Path(os.environ[SITE_VARIABLE]))
        except (ConfigError, OSError):
            return last_resort(Reason.BAD_SITE)
        site.state.mkdir(parents=True, exist_ok=True)
        return respond(records, run_config, site)
    except Exception as error:
        return last_resort(Reason.DISK_FULL if disk.is_full(error) else Reason.INTERNAL_ERROR)


def respond(records: RecordDict, run_config: dict[str, Any], site: Site) -> RecordDict:
    """The records to send back for the records that came."""
    began = time.monotonic()
    outbox = Outbox(Audit(site.state / "audit.jsonl"))
    request: Request | None = None
    try:
        request = wire.request_from_records(records)
        outbox.require_approved_code()
        experiment = Experiment.from_canonical(
            str(run_config["experiment"]), str(run_config["experiment-sha256"])
        )
        model = wire.blob(records)
        audit_head = outbox.asked(request, experiment.sha256(), model)
        training = allow(site, experiment, datetime.now().time())
        require_round(request, experiment)
        require_trainer(site, request, experiment)
        return _work(request, experiment, training, site, model, audit_head, began, outbox)
    except Refused as refused:
        return outbox.refusal(request, refused.reason)
    except WireError as error:
        return outbox.refusal(request, error.reason)
    except ConfigError as error:
        _log(site, error)
        return outbox.refusal(request, Reason.BAD_EXPERIMENT)
    except Exception as error:
        _log(site, error)
        return outbox.refusal(request, _reason(error))


def _work(
    request: Request,
    experiment: Experiment,
    training: Training,
    site: Site,
    model: bytes,
    audit_head: str,
    began: float,
    outbox: Outbox,
) -> RecordDict:
    from client_app.received import Asked

    asked = Asked(request, experiment, training, site, model, audit_head, began)
    if experiment.secure_aggregation is None:
        if request.phase is not Phase.WORK:
            raise Refused(Reason.BAD_EXPERIMENT)
        return _train_and_evaluate(asked, outbox, None)
    with _sum_under_way(asked) as secure:
        if request.phase is not Phase.WORK:
            return outbox.letter(request, secure.reply())
        return _train_and_evaluate(secure.begin_work(), outbox, secure)


def _sum_under_way(asked: Asked) -> AbstractContextManager[SecureSum]:
    secure = asked.experiment.secure_aggregation
    if secure is not None and secure.name == "ckks":
        from client_app.encrypted_model import Record, keep_record
        from client_app.encrypted_sum import EncryptedSum

        keep_record(asked.site.state, Record.of(asked.request.run, asked.experiment))
        return EncryptedSum.under_way(asked)
    from client_app.masked_sum import MaskedSum

    return MaskedSum.under_way(asked)


def _train_and_evaluate(asked: Asked, outbox: Outbox, secure: SecureSum | None) -> RecordDict:
    site, privacy = asked.site, asked.experiment.privacy
    if privacy is None:
        from client_app.plain_round import serve_plain

        return serve_plain(asked, outbox, secure)
    if site.privacy is None:
        raise Refused(Reason.NO_LEDGER)
    from client_app.private_round import serve_private

    return serve_private(asked, privacy, site.privacy, outbox, secure)


def _reason(error: Exception) -> Reason:
    import torch

    from client_app.training.loop import NonFiniteLoss

    if disk.is_full(error):
        return Reason.DISK_FULL
    if isinstance(error, NonFiniteLoss):
        return Reason.DIVERGED
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return Reason.OUT_OF_MEMORY
    return Reason.INTERNAL_ERROR


def _log(site: Site, error: Exception) -> None:
    """For the hospital's eyes: what failed and where, without the error's text."""
    with (site.state / "errors.jsonl").open("a") as file:
        file.write(json.dumps({"time": time.time(), "error": describe(error)}) + "\n")


def _keep_libraries_quiet() -> None:
    """Readers of images warn with the values they read; this process's output is a log."""
    warnings.simplefilter("ignore")
    for name in ("pydicom", "nibabel", "highdicom", "monai", "py.warnings"):
        getLogger(name).setLevel(CRITICAL)
    getLogger().addHandler(NullHandler())  # else Opacus gives the root logger one that prints
