"""An experiment's codec, and what its sums keep from the coordinator, in words for people.

For terminal and report. Both take an experiment as plain JSON, so that one of another version, with
parts that are not known here, is still shown: by its own names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FIRST_BITS = 16  # of integers in the first round, when nobody knows their scale yet

_EXCHANGE = {
    "all": "all arrays",
    "all_but_normalisation": "all arrays but those of normalisation layers",
    "head": "the last layer alone",
    "adapters": "low-rank adapters (rank {rank}) in place of large weights",
}
_SPARSIFY = {
    "rand_k": "{keep} of their values, drawn anew each round, the same at all hospitals",
    "top_k": "each hospital's largest {keep} of their values",
}
_QUANTISE = {
    "integers": "integers of {bits} bits",
    "fp16": "fp16",
    "bf16": "bf16",
}


def chain(codec: Mapping[str, Any]) -> tuple[str, ...]:
    """What becomes of an update on its way up, stage by stage; empty without a codec."""
    if not codec:
        return ()
    stages = [_stage(codec.get("exchange") or {"name": "all"}, _EXCHANGE)]
    if codec.get("sparsify"):
        stages.append(_stage(codec["sparsify"], _SPARSIFY))
    quantise = codec.get("quantise")
    stages.append(_stage(quantise, _QUANTISE) if quantise else "float32")
    bits = _option(quantise, "bits")
    if _option(quantise, "name") == "integers" and isinstance(bits, int) and bits < FIRST_BITS:
        stages[-1] += f" ({FIRST_BITS} in the first round)"
    return tuple(stages)


def lossy(codec: Mapping[str, Any]) -> bool:
    """Whether an update arrives otherwise than it left."""
    return bool(codec.get("sparsify") or codec.get("quantise"))


def down(codec: Mapping[str, Any]) -> str:
    """How models go to hospitals."""
    if codec and codec.get("down", "differences") == "differences":
        bits = codec.get("down_bits", 8)
        return f"what changed since the last, in {bits} bits; whole to whoever does not hold that"
    return "whole, each time"


def threshold(hospitals: int) -> int:
    """Of so many in a sum, how many have to stay to its end: the smallest number above two thirds."""
    return 2 * hospitals // 3 + 1


def readable(secure: Mapping[str, Any], hospitals: int | None = None) -> str:
    """What the coordinator will be able to read of updates.

    Args:
        hospitals: that the run asks.
    """
    if not secure:
        return "each hospital's update and figures, one by one"
    least = secure.get("least", 3)
    if secure.get("name") == "ckks":
        fewest = max(int(least), threshold(hospitals or 0))
        model = "the final model" if secure.get("release") == "coordinator" else "no model"
        return f"sums of figures over at least {fewest} hospitals and {model}; of updates nothing"
    text = f"only sums over at least {least} hospitals"
    if hospitals is not None and isinstance(least, int) and threshold(hospitals) > least:
        text += f" ({threshold(hospitals)} where all {hospitals} give keys)"
    return text + ", and of no hospital an update or a figure alone"


def _stage(chosen: Any, words: Mapping[str, str]) -> str:
    """A stage's words with its options; in its own name where it is not known, or not as here."""
    name = str(_option(chosen, "name"))
    options = dict(chosen) if isinstance(chosen, dict) else {}
    keep = options.get("keep")
    if isinstance(keep, int | float) and not isinstance(keep, bool):
        options["keep"] = f"{keep:.3g}" if not 0 <= keep <= 1 else f"{keep * 100:.3g} %"
    try:
        return words[name].format_map(options)
    except KeyError:
        return name


def _option(chosen: Any, key: str) -> Any:
    return chosen.get(key) if isinstance(chosen, dict) else chosen
