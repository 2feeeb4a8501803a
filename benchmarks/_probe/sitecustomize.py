"""Notes when what happens in the processes of a federation; Python imports this at its start.

Does something only where CONSILIUM_PROBE names a folder: then functions of Flower's and of ours are
wrapped as their modules are imported, and each call appends a line to `PID.jsonl` there. Nothing is
imported for it, and the code that is measured is not changed.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = os.environ.get("CONSILIUM_PROBE")

Tags = Callable[[tuple[Any, ...], dict[str, Any], Any], dict[str, Any] | None]


def note(event: str, began: float, **tags: object) -> None:
    row = {"event": event, "began": began, "ended": time.monotonic(), "pid": os.getpid(), **tags}
    with Path(f"{FOLDER}/{os.getpid()}.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def wrap(owner: Any, name: str, event: str, tags: Tags | None = None) -> None:
    """Note each call of `owner.name`; not the calls for which `tags` gives None."""
    inner = getattr(owner, name)

    def noted(*args: Any, **kwargs: Any) -> Any:
        began, used = time.monotonic(), time.process_time()
        result = inner(*args, **kwargs)
        used = time.process_time() - used
        extra = {} if tags is None else tags(args, kwargs, result)
        if extra is not None:
            note(event, began, used=used, **extra)
        return result

    setattr(owner, name, noted)


def _of(message: Any, *, reply: bool = False) -> dict[str, Any]:
    metadata = message.metadata
    node = metadata.src_node_id if reply else metadata.dst_node_id
    return {"round": metadata.group_id, "node": str(node)}


def _grid(module: ModuleType) -> None:
    wrap(module.HttpGrid, "_try_push_messages", "push", lambda a, k, r: _of(next(iter(a[2]))))
    wrap(module.HttpGrid, "get_nodes", "get_nodes")

    def collected(_args: Any, _kwargs: Any, replies: Any) -> dict[str, Any] | None:
        return {"replies": [_of(reply, reply=True) for reply in replies]} if replies else None

    wrap(module.HttpGrid, "pull_messages", "collect", collected)


def _supernode(module: Any) -> None:
    inner_pull, inner_push = module._pull_and_store_message, module._push_messages

    def pull(**kwargs: Any) -> Any:
        heard: list[Any] = []
        receive = kwargs["receive"]

        def listening() -> Any:
            received = receive()
            if received is not None:
                heard.extend([time.monotonic(), _of(received[0])])
            return received

        result = inner_pull(**{**kwargs, "receive": listening})
        if heard:
            note("store", heard[0], **heard[1])
        return result

    def push(**kwargs: Any) -> Any:
        seen: list[Any] = []
        send = kwargs["send"]

        def sending(message: Any, *rest: Any) -> Any:
            seen.extend([time.monotonic(), _of(message, reply=True)])
            return send(message, *rest)

        result = inner_push(**{**kwargs, "send": sending})
        if seen:
            note("send", seen[0], **seen[1])
        return result

    module._pull_and_store_message, module._push_messages = pull, push


def _clientapp(module: Any) -> None:
    # not its `run_clientapp`, which the hospital's code approval looks into
    wrap(module, "pull_task_input", "input", lambda a, k, r: _of(r[0]))
    wrap(module, "push_message", "answer")


def _forked(module: Any) -> None:
    inner = module.run_client_app

    @functools.wraps(inner)  # it is sent to the new process by its name
    def born(*args: Any) -> Any:
        note("born", time.monotonic(), parent=args[-1])
        return inner(*args)

    module.run_client_app = born


def _spans(*names: str) -> Callable[[ModuleType], None]:
    def apply(module: ModuleType) -> None:
        for name in names:
            owner, _, function = name.rpartition(".")
            wrap(getattr(module, owner) if owner else module, function, f"{module.__name__}.{name}")

    return apply


HOOKS: dict[str, Callable[[ModuleType], None]] = {
    "flwr.superlink.grid.http_grid": _grid,
    "flwr.supernode.start_client_internal": _supernode,
    "flwr.supernode.runtime.run_clientapp": _clientapp,
    "flwr.clientapp.client_app": lambda m: wrap(m.ClientApp, "__call__", "call"),
    "flwr.supercore.superexec.plugin.base_exec_plugin": lambda m: wrap(
        m.AutoExecPlugin, "launch_task", "launch"
    ),
    "client_app.app": _spans("read_site", "_work"),
    "client_app.answers": _spans("place", "Answers.keep"),
    "client_app.encrypted_state": _spans("EncryptedRun.keep_state"),
    "client_app.held_model": _spans("HeldModel.whole"),
    "client_app.masked_sum": _spans(
        "integers_of", "MaskedSum.begin_work", "MaskedSum.masked", "MaskedSum.reply"
    ),
    "client_app.outbox": _spans("Outbox.answer", "Outbox._record"),
    "client_app.patients": _spans("find_patients"),
    "client_app.received": _spans("receive", "encode", "update_of"),
    "client_app.residual": _spans("Residual.before", "Residual.keep"),
    "client_app.sessions": _spans("Sessions.keep"),
    "client_app.task_process": _forked,
    "client_app.training.loop": _spans("train", "evaluate"),
    "federation.codec.chain": _spans(
        "Chain.encode", "Chain.to_bytes", "Chain.from_bytes", "Chain.decode", "Chain.decode_one"
    ),
    "federation.codec.down": _spans("difference", "apply"),
    "federation.codec.packing": _spans("pack", "unpack"),
    "federation.models": _spans("build"),
    "federation.secure_aggregation.encryption": _spans("Vectors.encrypt", "Vectors.update_of"),
    "federation.secure_aggregation.masks": _spans("mask", "unmask", "rebuild"),
    "federation.tasks": _spans("build"),
    "federation.wire": _spans(
        "answer_from_records", "answer_to_records", "pack", "records_to_bytes", "unpack"
    ),
    "server_app.aggregation.masked": _spans("Masked._mean", "Masked._open", "Masked._work"),
    "server_app.aggregation.plain": _spans("weighted_mean", "norm"),
    "server_app.aggregation.unopened": _spans("Unopened.save"),
    "server_app.descent": _spans("Descent.parcels", "Descent.settle"),
    "server_app.rounds": _spans("Conductor.round", "Conductor.step", "_training_row"),
    "server_app.state": _spans(
        "RunFolder.save", "RunFolder.write_status", "RunFolder.append_metrics"
    ),
}


class Finder:
    """Finds the modules of HOOKS as Python does, and wraps them when they have run."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name not in HOOKS:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def then_wrap(module: ModuleType) -> None:
            execute(module)
            HOOKS[name](module)

        spec.loader.exec_module = then_wrap  # type: ignore[method-assign]
        return spec


if FOLDER:
    sys.meta_path.insert(0, Finder)
