"""What the SuperNode does when a ClientApp ends without an answer, or a bundle is none."""

from __future__ import annotations

import hashlib
import io
import zipfile
from typing import Any

import pytest
from flwr.app import Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode, SubStatus
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supernode import start_client_internal as flower_loop
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState

from client_app import supernode
from client_app.supernode import AnsweringState

RUN, NODE = 7, 11


def request() -> Message:
    message = Message(RecordDict({"x": MetricRecord({"a": 1})}), NODE, "train")
    message.metadata.__dict__["_run_id"] = RUN
    message.metadata.__dict__["_message_id"] = message.object_id
    return message


def at_work(state: InMemoryNodeState, *, fetched: bool = True) -> tuple[Message, int]:
    """A request that came, and the task that a ClientApp has taken for it."""
    message = request()
    task = state.create_task(task_type=TaskType.CLIENT_APP, run_id=RUN, fab_hash="x")
    assert task is not None
    state.store_message(message)
    assert state.claim_task(task) and state.activate_task(task)
    if fetched:
        assert len(state.get_messages_legacy(run_ids=[RUN], is_reply=False)) == 1
    return message, task


def state(kind: type[InMemoryNodeState] = AnsweringState) -> InMemoryNodeState:
    made = kind(ObjectStoreFactory().store())
    made.set_node_id(NODE)
    return made


@pytest.mark.parametrize("fetched", [True, False])
def test_a_client_app_that_was_told_to_end_is_answered_for(fetched: bool) -> None:
    node = state()
    message, task = at_work(node, fetched=fetched)
    assert node.finish_task(task, SubStatus.FAILED, "by a signal")
    (reply,) = node.get_messages_legacy(is_reply=True)
    assert reply.metadata.reply_to_message_id == message.metadata.message_id
    assert reply.has_error() and reply.error.code == ErrorCode.CLIENT_APP_CRASHED
    assert "signal" not in reply.error.reason  # what a task says of its end stays here


def test_a_client_app_that_did_answer_is_not_answered_for_again() -> None:
    node = state()
    message, task = at_work(node)
    own = Message(RecordDict(), reply_to=message)
    own.metadata.__dict__["_message_id"] = own.object_id
    node.store_message(own)
    assert node.finish_task(task, SubStatus.FAILED, "raised")
    assert node.get_messages_legacy(is_reply=True) == [own]


def test_flower_alone_would_wait_for_ever() -> None:
    """Should this fail, flwr has mended it, and `AnsweringState` can go."""
    node = state(InMemoryNodeState)
    _, task = at_work(node)
    assert node.finish_task(task, SubStatus.FAILED, "by a signal")
    assert node.get_messages_legacy(is_reply=True) == []


# A bundle on its way through the SuperNode; `code_approval` judges it in the task's process


def swollen() -> bytes:
    """A pyproject.toml of 100 MB in 100 kB."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("pyproject.toml", b"#" * 100_000_000)
    return buffer.getvalue()


def named_alone() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("pyproject.toml", b"[[[")
    return buffer.getvalue()


MADE = {
    "empty": b"",
    "no zip": b"PK" + bytes(1000),
    "oversized": bytes(11 * 1024**2),
    "swollen": swollen(),
    "no toml": named_alone(),
}


def pulled(content: bytes, node: InMemoryNodeState, verifications: dict[str, str]) -> int | None:
    """Flower's own step from a request at the SuperLink to a task here."""
    message = request()
    objects = get_all_nested_objects(message)
    run = Run.create_empty(RUN)
    run.fab_hash = hashlib.sha256(content).hexdigest()
    run.override_config = {"run": "one"}
    took: int | None = flower_loop._pull_and_store_message(
        state=node,
        object_store=ObjectStoreFactory().store(),
        node_config={},
        receive=lambda: (message, get_object_tree(message)),
        get_run=lambda _: run,
        get_fab=lambda *_: Fab(run.fab_hash, content, verifications),
        pull_object=lambda _, name: objects[name].deflate(),
        confirm_message_received=lambda *_: None,
        trusted_entities=None,
    )
    return took


@pytest.mark.parametrize("kind", MADE)
def test_a_malformed_bundle_reaches_the_judge_unopened(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flower_loop, supernode._READS, supernode.run_config)
    monkeypatch.setattr(zipfile, "ZipFile", lambda *_: pytest.fail("it was opened"))
    content, node = MADE[kind], state()
    assert pulled(content, node, {"fpk_0": "{", "valid_license": ""}) == RUN
    (task,) = node.get_tasks()
    assert (task.type, task.run_id) == (TaskType.CLIENT_APP, RUN)
    fab = node.get_fab(hashlib.sha256(content).hexdigest())
    assert fab is not None and fab.content == content
    assert fab.verifications["fpk_0"] == "{"  # the judge has to see that it is wrong
    context = node.get_run_series_context(0)
    assert context is not None and context.run_config == {"run": "one"}


@pytest.mark.parametrize("kind", ["empty", "no zip", "no toml"])
def test_flower_alone_would_end_over_it(kind: str) -> None:
    """Should this fail, flwr has mended it, and `run_config` may be needed no more."""
    with pytest.raises((zipfile.BadZipFile, ValueError)):
        pulled(MADE[kind], state(), {})


@pytest.mark.parametrize("change", ["renamed", "unused"])
def test_another_flower_starts_no_supernode(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def pull(**_: Any) -> None:
        """Flower's, if it read bundles elsewhere."""

    monkeypatch.setattr(supernode, "flower_supernode", lambda: pytest.fail("it was started"))
    if change == "unused":
        monkeypatch.setattr(flower_loop, "_pull_and_store_message", pull)
    else:
        monkeypatch.setattr(supernode, "_READS", "another_name")
    with pytest.raises(RuntimeError, match="flwr changed"):
        supernode.main()
