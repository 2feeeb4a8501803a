"""What the experiment says of groups and bins."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from federation.schema import Closed

Attribute = Literal["sex", "age_band", "manufacturer", "field_strength", "view", "breast_density"]
Unit = Literal["task", "image", "patient"]

# Years where the bands that hospitals know begin (`client_app.imaging.attributes`).
AGES = (18, 40, 60, 80)


class Options(Closed):
    """By which groups a run is measured, and how finely.

    The order of `attributes` matters where hospitals withhold small groups: what is named first is
    withheld last.
    """

    attributes: tuple[Attribute, ...] = Field(
        default=("sex", "age_band", "manufacturer"),
        min_length=1,
        description="first ones kept longest",
    )
    pairs: bool = Field(default=False, description="also groups by two attributes together")
    unit: Unit = Field(
        default="task", description="what is counted: as the task measures, images or patients"
    )
    age_cuts: tuple[int, ...] = Field(
        default=AGES, min_length=1, description="years where bands begin, of 18, 40, 60 and 80"
    )
    manufacturers: tuple[str, ...] = Field(
        default=("siemens", "ge", "philips", "canon", "fujifilm", "agfa", "carestream", "hologic"),
        min_length=1,
        max_length=32,
        description="by name; all others are one group",
    )
    score_bins: int = Field(default=32, ge=8, le=256, multiple_of=2)
    dice_bins: int = Field(default=20, ge=5, le=100)
    threshold: float = Field(
        default=0.5, gt=0, lt=1, description="probability from which a case is called positive"
    )
    operating_point: float = Field(
        default=0.9,
        gt=0,
        lt=1,
        description="specificity, or sensitivity, at which the other is read",
    )
    least_cases: int = Field(
        default=10, ge=1, description="of each class; groups with fewer enter no gap"
    )

    @field_validator("attributes", "manufacturers")
    @classmethod
    def _once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError("a name stands there twice")
        return names

    @field_validator("manufacturers")
    @classmethod
    def _words(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not name.isidentifier() or name in ("other", "unknown", "withheld"):
                raise ValueError("manufacturers are single words, not other, unknown or withheld")
        return names

    @field_validator("age_cuts")
    @classmethod
    def _known_ages(cls, cuts: tuple[int, ...]) -> tuple[int, ...]:
        if not set(cuts) <= set(AGES) or sorted(set(cuts)) != list(cuts):
            raise ValueError("age_cuts are some of 18, 40, 60 and 80, in this order")
        return cuts
