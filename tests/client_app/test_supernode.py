"""What the SuperNode does when a ClientApp ends without an answer."""

from __future__ import annotations

import pytest
from flwr.app import Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode, SubStatus
from flwr.supercore.constant import TaskType
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState

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
