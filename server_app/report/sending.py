"""How updates travelled: in secret or in the open, by which codec, in how many bytes and seconds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from server_app import described
from server_app.report.run import Round, Run

# Steps of a sum under masks (`server_app.aggregation.masked`) → what is said of them.
MASKED_STEPS = {
    "setup": ("Keys", "fresh keys and sealed shares of secrets"),
    "work": ("Work", "the model goes out; evaluation, training, masks; masked vectors come back"),
    "sign": ("Signing", "the hospitals sign who is in the sum"),
    "open": ("Opening", "they give the shares that take the masks off the sum"),
}
# The same of an encrypted one (`server_app.aggregation.encrypted`).
ENCRYPTED_STEPS = {
    "setup": ("Keys", "a hospital makes the run's key, and it goes to the others sealed"),
    "work": ("Work", "evaluation, training, encryption; encrypted vectors come back"),
    "sign": ("Signing", "the hospitals sign who is in the sum, and which model they hold"),
    "open": ("Opening", "they decrypt the sum, move the model, and tell the figures"),
}


@dataclass(frozen=True)
class Leg:
    """One round on the wire.

    Attributes:
        answers: good ones.
        together: hospitals in the sum; None where updates came one by one.
        up_share, down_share: of the bytes that as many answers, or models, would take as they are.
    """

    number: int
    answers: int
    asked: int
    together: int | None
    patients: int | None
    loss: float | None
    steps: Mapping[str, float]
    up: float | None
    down: float | None
    up_share: float | None
    down_share: float | None


@dataclass(frozen=True)
class Section:
    """What the report says of the way of the updates.

    Attributes:
        least: hospitals whose sum may be opened, by the experiment; a hospital may ask for more.
        chain: what became of an update, stage by stage; empty without a codec.
        in_secret: whether the coordinator got sums alone; encrypted: and could not read even these.
        weighted: whether hospitals counted by their patients, whose number each then made known.
        private: whether hospitals added noise to what was summed.
        up_share, down_share: of the bytes of all rounds together.
    """

    in_secret: bool
    encrypted: bool
    least: int | None
    weighted: bool
    private: bool
    chain: tuple[str, ...]
    down: str
    feedback: bool
    model_bytes: int | None
    legs: tuple[Leg, ...]
    up_share: float | None
    down_share: float | None

    @property
    def smallest(self) -> Leg | None:
        """The round whose sum was over fewest hospitals."""
        known = [leg for leg in self.legs if leg.together]
        return min(known, key=lambda leg: leg.together or 0, default=None)

    @property
    def steps(self) -> tuple[tuple[str, str, str], ...]:
        """The steps that any round tells of: key, label, meaning."""
        seen = {step for leg in self.legs for step in leg.steps}
        known = ENCRYPTED_STEPS if self.encrypted else MASKED_STEPS
        return tuple((step, *words) for step, words in known.items() if step in seen)

    @property
    def ahead(self) -> bool:
        """Whether keys of a round came with the round before."""
        return not self.encrypted and any(
            leg.steps and "setup" not in leg.steps for leg in self.legs
        )

    def seconds(self, step: str) -> float | None:
        return _total(leg.steps.get(step) for leg in self.legs)


def section(run: Run) -> Section | None:
    """None of a run whose updates travelled as they were, one by one."""
    if not run.in_secret and not run.codec:
        return None
    legs = tuple(_leg(r, run.model_bytes) for r in run.rounds)
    least = run.secure_aggregation.get("least")
    chosen = run.experiment.get("participation")
    weighting = chosen.get("weighting") if isinstance(chosen, dict) else None
    return Section(
        in_secret=run.in_secret,
        encrypted=run.encrypted,
        least=least if isinstance(least, int) else None,
        weighted=weighting != "equal",
        private=bool(run.private),
        chain=described.chain(run.codec),
        down=described.down(run.codec),
        feedback=described.lossy(run.codec) and run.codec.get("error_feedback") is True,
        model_bytes=run.model_bytes,
        legs=legs,
        up_share=_share(
            _total(leg.up for leg in legs), sum(leg.answers for leg in legs), run.model_bytes
        ),
        down_share=_share(
            _total(leg.down for leg in legs), sum(leg.asked for leg in legs), run.model_bytes
        ),
    )


def _leg(made: Round, model_bytes: int | None) -> Leg:
    good = [answer for answer in made.answers if answer.ok]
    reached = [answer for answer in made.answers if answer.bytes_down]
    up, down = made.total("bytes_up"), made.total("bytes_down")
    summed = made.summed
    return Leg(
        number=made.number,
        answers=len(good),
        asked=len(reached),
        together=None if summed is None else len(summed.hospitals),
        patients=None if summed is None else summed.patients,
        loss=None if summed is None else summed.loss,
        steps=made.steps,
        up=up,
        down=down,
        up_share=_share(up, len(good), model_bytes),
        down_share=_share(down, len(reached), model_bytes),
    )


def _share(moved: float | None, count: int, model_bytes: int | None) -> float | None:
    if moved is None or not count or not model_bytes:
        return None
    return moved / (count * model_bytes)


def _total(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
