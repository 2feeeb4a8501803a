"""Exchanges in which Flower is slow to hand a reply out, or cannot: the others, and the deadline."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import httpx
import pytest
from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.supercore.inflatable import inflatable_utils
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectUnavailableError
from flwr.supercore.run import RunNotRunningException

from federation import wire
from federation.messages import Expected, Reason, Request, Shape
from federation.pace import hurry_flower
from federation.processes import wait_until
from server_app.exchange import Exchange, Outcome, Parcel
from tests.in_process import METRICS, START, UNREADABLE, InProcessGrid, Node, adding, experiment

FAR = 60.0  # seconds to a deadline that no test reaches


class SuperLinks(InProcessGrid):
    """Hands out replies as Flower's SuperLink does: once, and first of all takes them off its list.

    Attributes:
        cut_off: hospitals whose reply is listed, and whose parts do not come until `given_up`.
        waiting: hospitals for whose parts somebody waits.
    """

    def __init__(self, nodes: Iterable[Node], cut_off: Iterable[str] = ()) -> None:
        super().__init__(nodes)
        self.cut_off, self.waiting = set(cut_off), set[str]()
        self.given_up = threading.Event()
        self._whose: dict[str, str] = {}

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        messages = list(messages)
        ids = super().push_messages(messages)
        names = [self.nodes[message.metadata.dst_node_id].name for message in messages]
        self._whose.update(zip(ids, names, strict=True))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        asked = list(message_ids)
        bad = self.unreadable & set(asked)
        taken = [self.replies.pop(number) for number in asked if number in self.replies]
        for reply in taken:
            name = self._whose[reply.metadata.reply_to_message_id]
            if name in self.cut_off:
                self.waiting.add(name)
                self.given_up.wait()
                self.waiting.remove(name)
        if bad:
            raise ValueError("an object that does not inflate")
        return taken


@pytest.fixture
def threads() -> Iterator[None]:
    """What an exchange started ends, too."""
    before = set(threading.enumerate())
    yield
    assert wait_until(lambda: set(threading.enumerate()) <= before, seconds=20)


@pytest.fixture
def rescued() -> Iterator[Callable[[SuperLinks], SuperLinks]]:
    """Ends the wait for cut-off parts after a while, so that a test which hangs fails instead."""
    timers = []

    def rescue(grid: SuperLinks) -> SuperLinks:
        timers.append(threading.Timer(20, grid.given_up.set))
        timers[-1].start()
        return grid

    yield rescue
    for timer in timers:
        timer.cancel()


def ask(
    grid: InProcessGrid, *, deadline: float, attempts: int = 2, **options: Any
) -> list[Outcome]:
    content = experiment(deadline=deadline, attempts=attempts).participation
    exchange = Exchange(grid, grid.roster(), content)
    request = Request("run", 1, evaluate=False, train=True)
    names = [node.name for node in grid.nodes.values()]
    parcels = {name: Parcel(request, wire.pack(START)) for name in names}
    expected = Expected(Shape.of(START), frozenset(METRICS))
    return exchange.ask(parcels, expected, wait=0.3, **options)


def good(outcomes: list[Outcome]) -> list[str]:
    return [outcome.hospital for outcome in outcomes if outcome.is_good]


@pytest.mark.usefixtures("threads")
def test_a_reply_cut_off_on_its_way_holds_up_nobody(
    rescued: Callable[[SuperLinks], SuperLinks],
) -> None:
    """The others' answers are taken while it is waited for, and the exchange ends at its deadline."""
    nodes = [Node(name, adding(1.0)) for name in ("cut", "east", "north")]
    grid = rescued(SuperLinks(nodes, cut_off=["cut"]))
    taken: list[tuple[str, bool]] = []

    def take(outcome: Outcome) -> None:
        assert wait_until(lambda: "cut" in grid.waiting, seconds=10)
        taken.append((outcome.hospital, threading.current_thread() is threading.main_thread()))

    outcomes = ask(grid, deadline=3.0, taken=take)
    assert not grid.given_up.is_set()
    assert sorted(taken) == [("east", True), ("north", True)]
    assert good(outcomes) == ["east", "north"]
    assert outcomes[0].reason is Reason.LATE
    assert outcomes[0].answer is None

    before = repr(outcomes)
    grid.given_up.set()  # now its parts come
    assert wait_until(lambda: not grid.waiting, seconds=10)
    assert repr(outcomes) == before
    assert len(taken) == 2


@pytest.mark.usefixtures("threads")
def test_where_not_all_are_needed_a_cut_off_reply_is_not_waited_for(
    rescued: Callable[[SuperLinks], SuperLinks], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server_app.exchange.GRACE", 0.5)
    nodes = [Node(name, adding(1.0)) for name in ("cut", "east", "north")]
    grid = rescued(SuperLinks(nodes, cut_off=["cut"]))
    outcomes = ask(grid, deadline=FAR, enough=2)
    assert not grid.given_up.is_set()
    assert good(outcomes) == ["east", "north"]
    assert outcomes[0].reason is Reason.LATE
    grid.given_up.set()


@pytest.mark.usefixtures("threads")
def test_a_hospital_whose_reply_flower_gave_up_is_asked_again() -> None:
    """Flower's word for parts that will never come; the hospital is back by then."""
    times: list[int] = []

    def killed_once(records: RecordDict) -> RecordDict | Error:
        times.append(1)
        gone = Error(ErrorCode.MESSAGE_UNAVAILABLE, "the object-push session expired")
        return gone if len(times) == 1 else adding(1.0)(records)

    grid = SuperLinks([Node("back", killed_once), Node("east", adding(1.0))])
    outcomes = ask(grid, deadline=FAR)
    assert good(outcomes) == ["back", "east"]
    assert [outcome.attempts for outcome in outcomes] == [2, 1]

    times.clear()
    outcomes = ask(grid, deadline=FAR, attempts=1)
    assert outcomes[0].reason is Reason.UNAVAILABLE


@pytest.mark.usefixtures("threads")
def test_an_unreadable_answer_takes_no_other_along() -> None:
    """Though the SuperLink hands each out only once."""
    nodes = [
        Node("east", adding(1.0), delay=0.2),
        Node("north", adding(1.0), delay=0.2),
        Node("odd", lambda records: UNREADABLE, delay=0.2),
    ]
    outcomes = ask(SuperLinks(nodes), deadline=FAR, attempts=1)
    assert good(outcomes) == ["east", "north"]
    assert outcomes[2].reason is Reason.MALFORMED


@pytest.mark.usefixtures("threads")
def test_a_hospital_whose_reply_the_superlink_failed_to_hand_out_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its database was busy for too long, and it is no fault of the hospital's."""
    grid = SuperLinks([Node("east", adding(1.0)), Node("north", adding(1.0))])
    pull, failed = grid.pull_messages, list[str]()

    def once(message_ids: Iterable[str]) -> list[Message]:
        replies = pull(message_ids)
        if replies and not failed:
            failed.append("here")
            request = httpx.Request("POST", "https://superlink/confirm")
            raise httpx.HTTPStatusError("500", request=request, response=httpx.Response(500))
        return replies

    monkeypatch.setattr(grid, "pull_messages", once)
    outcomes = ask(grid, deadline=FAR)
    assert good(outcomes) == ["east", "north"]
    assert sorted(outcome.attempts for outcome in outcomes) == [1, 2]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    "end", [RunNotRunningException(), httpx.ConnectError("refused")], ids=["stopped", "away"]
)
def test_the_end_of_a_run_ends_the_exchange(
    end: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower tells it where replies are waited for, and it is no answer of a hospital."""
    grid = SuperLinks([Node("east", lambda records: None), Node("north", lambda records: None)])

    def pull(message_ids: Iterable[str]) -> list[Message]:
        raise end

    monkeypatch.setattr(grid, "pull_messages", pull)
    with pytest.raises(type(end)):
        ask(grid, deadline=FAR)


@pytest.mark.usefixtures("threads")
def test_an_answer_in_time_counts_though_reading_another_took_past_the_deadline() -> None:
    """Both are there; while the coordinator has its hands full with one the deadline passes."""
    nodes = [Node(name, adding(1.0)) for name in ("east", "north")]
    grid = SuperLinks(nodes)
    read = threading.Event()

    def take(outcome: Outcome) -> None:
        read.wait(3.0)
        read.set()

    assert good(ask(grid, deadline=2.0, taken=take)) == ["east", "north"]


def test_who_is_not_on_the_roster_is_absent_without_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was removed since the run began, and a round would wait for it each time."""
    grid = InProcessGrid([Node("east", adding(1.0))])
    exchange = Exchange(grid, grid.roster(), experiment(deadline=FAR).participation)
    monkeypatch.setattr(grid, "get_nodes", lambda: pytest.fail("it was waited for"))
    parcel = Parcel(Request("run", 1, evaluate=False, train=True), wire.pack(START))
    expected = Expected(Shape.of(START), frozenset(METRICS))
    (outcome,) = exchange.ask({"gone": parcel}, expected, wait=FAR)
    assert (outcome.reason, outcome.attempts) == (Reason.ABSENT, 0)


def test_parts_that_never_come_are_waited_for_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's own loop, which an exchange that is over leaves behind: it ends by itself."""
    function = inflatable_utils.pull_objects
    monkeypatch.setattr(function, "__kwdefaults__", dict(function.__kwdefaults__ or {}))
    tree = inflatable_utils.pull_and_inflate_object_from_tree
    monkeypatch.setattr(tree, "__kwdefaults__", dict(tree.__kwdefaults__ or {}))
    hurry_flower(0.3)

    def never(object_id: str) -> bytes:
        raise ObjectUnavailableError(object_id)

    with pytest.raises(ObjectPullError):
        function(["part"], never)
    assert function(["part"], lambda object_id: b"content") == {"part": b"content"}
