"""Whose votes move the scales of a codec in the open: theirs alone whose updates count."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np

from federation.messages import Answer, Arrays, Expected, Reason, Request, Shape, Trained
from server_app.aggregation.plain import SCALES, Plain
from server_app.courier import Courier
from server_app.exchange import Outcome
from server_app.state import Checkpoint
from tests.federation.codec.networks import chain_of, integers, network, update_of
from tests.in_process import experiment

MODEL = network()
CHAIN = chain_of(MODEL, quantise=integers(16), error_feedback=False)
START: Arrays = {name: tensor.numpy() for name, tensor in MODEL.state_dict().items()}
DONE = Checkpoint(0, START, {})
HONEST = {"a": 0.01, "b": 0.02}  # standard deviation of an update's values


@dataclass(frozen=True)
class Hospitals:
    """In a courier's place. `refused`: whose answer turns out to be no good when it is here."""

    sizes: Mapping[str, float]
    refused: str | None = None

    def work(
        self,
        requests: Mapping[str, Request],
        done: Checkpoint,
        expected: Expected,
        *,
        taken: Callable[[Outcome], None],
    ) -> list[Outcome]:
        outcomes = []
        for seed, (name, request) in enumerate(requests.items()):
            current = CHAIN.scales_from_bytes(request.scales)
            update = update_of(MODEL, seed, self.sizes[name])
            encoded = CHAIN.encode(update, None, current, round=request.round, seed=seed)
            sent = CHAIN.to_bytes(encoded, round=request.round)
            trained = Trained({}, 1, 1, 0.0, 0.0, encoded=sent)
            outcome = Outcome(name, Answer(round=request.round, trained=trained))
            taken(outcome)
            if name == self.refused:
                outcome.reason = Reason.REPLAYED
            outcomes.append(outcome)
        return outcomes


def gathered(hospitals: Hospitals) -> tuple[dict[str, Reason | None], bytes]:
    """Why each was left out, and the scales after the first round."""
    content = experiment(largest_update_norm=5.0)
    parameters = frozenset(name for name, _ in MODEL.named_parameters())
    expected = Expected(Shape.of(START), frozenset())
    plain = Plain(cast(Courier, hospitals), content, expected, parameters, CHAIN)
    found = plain.gather(list(hospitals.sizes), Request("run", 1, evaluate=False, train=True), DONE)
    return {o.hospital: o.reason for o in found.outcomes}, found.codec[SCALES].tobytes()


def test_an_update_that_is_too_long_has_no_vote() -> None:
    _, alone = gathered(Hospitals(HONEST))
    reasons, beside = gathered(Hospitals({**HONEST, "bad": 1e6}))
    assert reasons == {"a": None, "b": None, "bad": Reason.NORM_TOO_LARGE}
    assert beside == alone


def test_an_answer_that_is_refused_afterwards_has_no_vote() -> None:
    _, alone = gathered(Hospitals(HONEST))
    reasons, beside = gathered(Hospitals({**HONEST, "bad": 0.1}, refused="bad"))
    assert reasons == {"a": None, "b": None, "bad": Reason.REPLAYED}
    assert beside == alone


def test_where_it_counts_a_vote_for_a_coarser_scale_is_followed() -> None:
    _, alone = gathered(Hospitals(HONEST))
    reasons, beside = gathered(Hospitals({**HONEST, "c": 0.1}))
    assert set(reasons.values()) == {None}
    one, other = (np.frombuffer(scales, np.int16) for scales in (alone, beside))
    assert (other >= one).all() and (other > one).any()
