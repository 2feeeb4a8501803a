"""Flower's SuperNode, looking for work more often, and never waiting for a ClientApp that is gone.

Flower's loop sleeps three seconds when the SuperLink has no message and half a second while the
ClientApp works, and offers no setting for either (flwr 1.41, `supernode/start_client_internal.py`).
At one exchange a round that is most of what a round costs. This starts the unchanged SuperNode with
another clock for those two sleeps (see `federation.pace`): between 0.05 and 3 seconds, so that a busy
hospital answers at once and an idle one costs what it always did.

Flower's SuperNode waits for a reply before it takes the next message. A ClientApp that is told to end
(its SuperExec was stopped or killed) ends without one, and from then on the hospital would be online
and deaf. `AnsweringState` sends the error for it that Flower sends for one that fell silent.

Flower's SuperNode reads defaults of the run's configuration out of the bundle that came, before anybody
has judged it, unpacks them without a bound, and ends where they are not what it expects. Here it never
opens a bundle (`run_config`): a run of ours brings every value itself. For the same reason the keys of
`policy.reviewers` are not handed to Flower's own gate (`--trusted-entities`), which ends the SuperNode
over a malformed signature, is content with any one key, and leaves nothing in the audit log. What a
bundle is worth is decided by `code_approval` in the task's process.
"""

from __future__ import annotations

import time
from types import ModuleType
from typing import Any

from flwr.app import Error
from flwr.common.constant import SubStatus
from flwr.supercore.constant import TaskType
from flwr.supernode import start_client_internal as flower_loop
from flwr.supernode.cli import flower_supernode
from flwr.supernode.nodestate import nodestate_factory
from flwr.supernode.nodestate.in_memory_nodestate import (
    CLIENT_APP_CRASHED_ERROR,
    InMemoryNodeState,
)

from federation.heartbeat import Heartbeat
from federation.pace import Pace, hurry_flower

_WORKING = 0.5  # Flower's sleep while the ClientApp works; the other is for when there is nothing
_WORKING_PAUSE = 0.02
_READS = "get_fused_config_from_fab"  # how Flower's loop opens a bundle


class Clock:
    """What Flower's loop sees of the module `time`."""

    def __init__(self) -> None:
        self._pace = Pace(shortest=0.05)
        self._heart = Heartbeat()

    def sleep(self, seconds: float) -> None:
        """Sleep, `seconds` being what Flower asked for and never exceeded.

        Flower's loop comes here when the SuperLink has answered, or while a ClientApp works.
        """
        self._heart.beat()
        if seconds == _WORKING:
            self._pace.news()
            time.sleep(_WORKING_PAUSE)
        else:
            time.sleep(min(self._pace.pause(), seconds))


class AnsweringState(InMemoryNodeState):  # type: ignore[misc]
    """A failed ClientApp that left no reply is answered for; Flower does so for an AgentApp alone."""

    def finish_task(self, task_id: int, sub_status: str, details: str) -> bool:
        finished: bool = super().finish_task(task_id, sub_status, details)
        if finished and sub_status == SubStatus.FAILED:
            for task in self.get_tasks(task_ids=[task_id]):
                if task.type == TaskType.CLIENT_APP:
                    self._store_error_replies({task.run_id}, CLIENT_APP_CRASHED_ERROR)
        return finished

    def _store_error_replies(self, run_ids: set[int], error: Error) -> None:
        with self.lock_msg_store:
            for entry in self.msg_store.values():
                metadata = entry.message.metadata
                if metadata.run_id in run_ids and not metadata.reply_to_message_id:
                    entry.is_retrieved = True  # also one that its ClientApp did not live to fetch
            super()._store_error_replies(run_ids, error)


def run_config(_bundle: object, run: Any) -> dict[str, Any]:
    """What a run was started with, without the defaults that its bundle may have."""
    return dict(run.override_config)


def main() -> None:
    """`flower-supernode` with its own arguments.

    Raises:
        RuntimeError: flwr changed, and this no longer does what it says.
    """
    if not isinstance(flower_loop.time, ModuleType):
        raise RuntimeError("flwr changed: its SuperNode loop has no module `time` to pace any more")
    if nodestate_factory.InMemoryNodeState is not InMemoryNodeState:
        raise RuntimeError("flwr changed: its SuperNode keeps its state in another class")
    if _READS not in flower_loop._pull_and_store_message.__code__.co_names:
        raise RuntimeError("flwr changed: its SuperNode reads a bundle's configuration elsewhere")
    setattr(flower_loop, _READS, run_config)
    nodestate_factory.InMemoryNodeState = AnsweringState
    flower_loop.time = Clock()
    hurry_flower()
    flower_supernode()


if __name__ == "__main__":
    main()
