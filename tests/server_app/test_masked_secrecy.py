"""What a coordinator of sums under masks has, on the wire, on its disk and in memory: the sum, and
nothing that looks like one hospital's update.

The search knows nothing of masks: it lays each hospital's integers, less what the sum tells of them,
beside all bytes at every place, read as numbers of every kind.
"""

from __future__ import annotations

import gc
import math
import types
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray
from scipy import signal, stats

from client_app import masked_sum
from federation import models, tasks, wire
from federation.codec import chain, packing
from federation.messages import Phase, Request
from federation.schema import Experiment
from federation.secure_aggregation import masks
from server_app.aggregation import masked as coordinator
from server_app.aggregation.masked import Masked
from tests.hospitals import Hospitals, content
from tests.masked import kept, masked

KINDS = ("<i1", "<u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<f4", "<f8")


def test_nothing_it_has_looks_like_one_hospital_s_update(
    five: Hospitals, trained: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    of = masked()
    everything = what_a_coordinator_has(five, of, "secret", monkeypatch)
    assert {"wire", "disk", "memory"} <= {where.split()[0] for where, _ in everything}
    assert strongest(five, of, everything) < 1


def test_without_masks_the_search_finds_them(
    five: Hospitals, trained: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutant: nothing is put on, nothing taken off; the sum is right, and nobody would notice."""
    monkeypatch.setattr(masked_sum.masks, "mask", lambda *_, **__: None)
    monkeypatch.setattr(coordinator.masks, "unmask", lambda *_, **__: None)
    of = masked()
    everything = what_a_coordinator_has(five, of, "mutant", monkeypatch)
    assert strongest(five, of, everything) > 5


@pytest.mark.parametrize("mutant", ["private mask alone", "pairwise masks alone"])
def test_either_kind_of_mask_hides_an_update(
    mutant: str, five: Hospitals, trained: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the bytes are uniform says nothing of the other mask; so each is looked at alone."""
    method = "pairwise" if mutant.startswith("private") else "private"
    real, add, off = getattr(masks._Masks, method), masks.stream.add, set()

    def noted(*args: Any) -> Any:
        off.add((made := real(*args)).key)
        return made

    def without(vector: Any, bits: int, streams: Any) -> None:
        add(vector, bits, [one for one in streams if one.key not in off])

    monkeypatch.setattr(masks._Masks, method, noted)
    monkeypatch.setattr(masks.stream, "add", without)
    of = masked()
    blobs = [blob for _, blob in updates_on_the_wire(five, of, mutant.replace(" ", "-"))]
    assert uniformity(b"".join(blobs)) > 1e-6


def test_masked_bytes_are_uniform(five: Hospitals, trained: list[Any]) -> None:
    """χ² over the values of a byte, in each hospital's part and over all; of figures and update."""
    of = masked()
    blobs = [blob for _, blob in updates_on_the_wire(five, of, "uniform")]
    assert len(blobs) == 5
    for blob in [*blobs, b"".join(blobs)]:
        assert uniformity(blob) > 1e-6
    for one, other in pairwise(blobs):
        assert abs(np.corrcoef(numbers(one, "<u1"), numbers(other, "<u1"))[0, 1]) < 0.06


def test_bytes_without_masks_are_not(
    five: Hospitals, trained: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masked_sum.masks, "mask", lambda *_, **__: None)
    monkeypatch.setattr(coordinator.masks, "unmask", lambda *_, **__: None)
    blobs = [blob for _, blob in updates_on_the_wire(five, masked(), "not-uniform")]
    assert uniformity(blobs[0]) < 1e-6


def uniformity(blob: bytes) -> float:
    return float(stats.chisquare(np.bincount(numbers(blob, "<u1"), minlength=256)).pvalue)


def updates_on_the_wire(made: Hospitals, of: Experiment, run: str) -> list[tuple[str, bytes]]:
    made.conduct(of, run, rounds=1)
    return [(name, wire.blob(reply)) for name, phase, reply in made.heard if phase is Phase.WORK]


# --- what there is --------------------------------------------------------------------------------


def what_a_coordinator_has(
    made: Hospitals, of: Experiment, run: str, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[str, bytes]]:
    """Of a first round: all that came, the run's files, and memory as it is at each step."""
    found: dict[bytes, str] = {}
    folder, conductor, start = made.conductor(of, run)
    aggregation = conductor.aggregation
    assert isinstance(aggregation, Masked)

    def look(where: str) -> None:
        for content_ in held_by(aggregation):
            found.setdefault(content_, f"memory {where}")
        for file in folder.path.rglob("*"):
            if file.is_file():
                found.setdefault(file.read_bytes(), f"disk {where} {file.name}")

    def meddle(request: Request, records: RecordDict, answer: Any) -> Any:
        look(f"at {request.phase.value}")
        return answer(records)

    made.meddle = dict.fromkeys(made.sites, meddle)
    done = conductor.round(start)
    look("after the round")
    folder.save(done)
    look("after the commit")
    for name, phase, reply in made.heard:
        found.setdefault(wire.blob(reply), f"wire {phase.value} of {name}")
        found.setdefault(bytes(reply["head"].get("letter", b"")), f"wire {phase.value} of {name}")
    # masked values are packed, of fewer bits than any type has
    unpacked = {
        values_of(wire.blob(reply), of).tobytes(): f"wire unpacked of {name}"
        for name, phase, reply in made.heard
        if phase is Phase.WORK
    }
    return [(where, content_) for content_, where in (found | unpacked).items()]


def values_of(blob: bytes, of: Experiment) -> NDArray[np.int32]:
    codec = codec_of(of)
    width = masks.headroom(codec.bits(round=1), 5)
    length = codec.length(round=1)
    size = packing.packed_length(length, width)
    return packing.signed(packing.unpack(blob[:size], width, length), width)


def held_by(root: object) -> Iterator[bytes]:
    """All arrays and bytes that can be reached from an object, but not through code or the Grid, at
    whose end the hospitals of this test are."""
    seen: set[int] = set()
    waiting = [root]
    code = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, Grid)
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, code):
            continue
        seen.add(id(one))
        if isinstance(one, np.ndarray):
            yield one.tobytes()
        elif isinstance(one, (bytes, bytearray, memoryview)):
            yield bytes(one)
        waiting += gc.get_referents(one)


# --- the search -----------------------------------------------------------------------------------


def strongest(made: Hospitals, of: Experiment, everything: Iterable[tuple[str, bytes]]) -> float:
    """The strongest correlation of any hospital's update with anything, in units of what chance would
    give once in a million such searches."""
    codec = codec_of(of)
    first = codec.first_scales(of.training)
    updates = []
    for name in made.sites:
        seed = tasks.seeded(of.seed, name, 1).initial_seed()
        update, _ = kept(made, name, of)
        encoded = codec.encode(update, None, first, round=1, seed=seed)
        updates.append(encoded.values.astype(np.float64))
    total = np.sum(updates, axis=0)
    own = [update - total * (update @ total) / (total @ total) for update in updates]
    best, tried = 0.0, 0
    for _, content_ in everything:
        for series in readings(content_, len(total)):
            tried += len(series) - len(total) + 1
            best = max(best, *(largest_correlation(series, update) for update in own))
    assert tried
    chance = math.sqrt(2 * math.log(len(own) * tried * 1e6) / len(total))
    return best / chance


def readings(content_: bytes, least: int) -> Iterator[NDArray[np.float64]]:
    """The bytes as numbers of every kind, from every first byte."""
    for kind in KINDS:
        size = np.dtype(kind).itemsize
        for offset in range(size):
            if (len(content_) - offset) // size >= least:
                yield numbers(content_[offset:], kind)


def numbers(content_: bytes, kind: str) -> NDArray[Any]:
    size = np.dtype(kind).itemsize
    return np.frombuffer(content_[: len(content_) // size * size], kind)


def largest_correlation(series: NDArray[Any], update: NDArray[np.float64]) -> float:
    """|r| of the update with the window of the series that is most like it."""
    if series.dtype.kind == "f":  # bytes that are none give anything; ranks say enough
        series = stats.rankdata(np.where(np.isfinite(series), series, 0))
    values = series.astype(np.float64)
    values = (values - values.mean()) / (values.std() or 1.0)
    n = len(update)
    centred = update - update.mean()
    products = signal.correlate(values, centred, "valid", method="fft")
    sums = np.cumsum(np.concatenate([[0.0], values]))
    squares = np.cumsum(np.concatenate([[0.0], values**2]))
    means = (sums[n:] - sums[:-n]) / n
    spread = np.sqrt(np.maximum((squares[n:] - squares[:-n]) / n - means**2, 0))
    usable = spread > 0.1
    if not usable.any():
        return 0.0
    return float(np.max(np.abs(products[usable] / (n * spread[usable] * centred.std()))))


def codec_of(of: Experiment) -> chain.Chain:
    assert of.codec is not None
    return chain.build(of.codec, models.build(of.model, tasks.build(of.task), seed=0), seed=of.seed)


def test_the_search_finds_an_update_wherever_it_is(five: Hospitals, trained: list[Any]) -> None:
    """As float32 amid other bytes, and as bytes at an odd place."""
    of = content()
    five.conduct(masked(), "planted", rounds=1)
    codec = codec_of(of)
    update, _ = kept(five, "east", of)
    seed = tasks.seeded(of.seed, "east", 1).initial_seed()
    first = codec.first_scales(of.training)
    values = codec.encode(update, None, first, round=1, seed=seed).values
    noise = np.random.default_rng(1).integers(0, 256, 4 * len(values), np.uint8).tobytes()
    for planted in (values.astype("<f4").tobytes(), (values // 256).astype("<i1").tobytes()):
        assert strongest(five, of, [("", noise[:33] + planted + noise[:99])]) > 3
    assert strongest(five, of, [("", noise)]) < 1
