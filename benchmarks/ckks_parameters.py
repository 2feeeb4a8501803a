"""What homomorphic sums cost: our CKKS against NVFLARE's default parameters, with the same library.

    python benchmarks/ckks_parameters.py [--parameters N] [--hospitals N] [--bits N ...]
                                         [--turns N] [--workers N] [--json FILE]

Each hospital encrypts a vector of N parameters, the coordinator adds what it receives, and a hospital
decrypts the sum. The variants take turns in one run:

- *ours, b bits*: `federation.secure_aggregation.ckks.Ckks`, signed integers of b bits;
- *4096 [54, 54]*: TenSEAL's vectors of float64 at the least parameters that TenSEAL's own asymmetric
  encryption has, one ciphertext for 2048 values;
- *NVFLARE*: TenSEAL's vectors at what NVFLARE 2.9 provisions by default (8192, [60, 40, 40], scale
  2**40), encrypted, serialised, loaded, added and decrypted as its filters and aggregator do. It gives
  every client the secret key at provisioning.

Printed is the median over turns of

- *up*, *down*: bytes a parameter of one hospital's ciphertexts, and of the sum's;
- *encrypt*, *add*, *decrypt*: processor seconds for each million parameters; *add* is one hospital's
  ciphertexts read, checked and added, *decrypt* the whole of a sum;
- *error*: the largest difference to the plain sum; ours is 0 or the run fails;
- *memory*: largest amount beyond the imports that a hospital's encryption takes, in a process of its
  own, over the size of the vector as float32; the vector itself and the result are part of it.

With `--workers` the clock's seconds of our encryption in so many processes are printed as well.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tenseal

from federation.secure_aggregation.ckks import Ckks
from federation.secure_aggregation.scheme import Sum

_PIECE = 1 << 16  # values of a TenSEAL vector: about a layer


@dataclass
class Row:
    """Bytes a parameter; CPU seconds for a million parameters; largest error; share of float32."""

    variant: str
    up: float
    down: float
    encrypt: float
    add: float
    decrypt: float
    error: float
    memory: float = 0.0


class Variant(Protocol):
    name: str

    def vector(self, seed: int) -> Any: ...

    def encrypt(self, hospital: int, values: Any) -> Any: ...

    def start(self) -> Any: ...

    def add(self, total: Any, hospital: int, blob: Any) -> Any: ...

    def finish(self, total: Any) -> Any: ...

    def decrypt(self, blob: Any) -> Any: ...

    def size(self, blob: Any) -> int: ...


class Ours:
    def __init__(self, parameters: int, hospitals: int, bits: int, workers: int = 1) -> None:
        self.name = f"ours, {bits} bits"
        members = tuple(f"hospital-{number:04}" for number in range(hospitals))
        self._sum = Sum("run", 1, "update", members, 2, "0" * 64, parameters, bits)
        self._scheme = Ckks(workers)
        self._key = self._scheme.make_key()

    def vector(self, seed: int) -> Any:
        most = (1 << (self._sum.bits - 1)) - 1
        return np.random.default_rng(seed).integers(-most, most + 1, self._sum.size, np.int64)

    def encrypt(self, hospital: int, values: Any) -> bytes:
        return self._scheme.encrypt(self._key, self._sum, self._sum.members[hospital], values)

    def start(self) -> Any:
        return self._scheme.total(self._key.public.to_bytes(), self._sum)

    def add(self, total: Any, hospital: int, blob: bytes) -> Any:
        total.add(self._sum.members[hospital], blob)
        return total

    def finish(self, total: Any) -> bytes:
        blob: bytes = total.to_bytes()
        return blob

    def decrypt(self, blob: bytes) -> Any:
        part = self._scheme.partial_decrypt(self._key, self._sum, blob)
        return self._scheme.combine(self._sum, [part]).values

    def size(self, blob: bytes) -> int:
        return len(blob)


class TenSeal:
    def __init__(
        self, name: str, parameters: int, ring: int, moduli: list[int], scale: float
    ) -> None:
        self.name = name
        self._parameters = parameters
        self._context = tenseal.context(
            tenseal.SCHEME_TYPE.CKKS, ring, coeff_mod_bit_sizes=moduli, n_threads=1
        )
        self._context.global_scale = scale
        self._secret = self._context.secret_key()
        self._public = tenseal.context_from(self._context.serialize(save_secret_key=False))

    def vector(self, seed: int) -> Any:
        return np.random.default_rng(seed).normal(0, 0.01, self._parameters)

    def encrypt(self, hospital: int, values: Any) -> list[bytes]:
        pieces = (values[start : start + _PIECE] for start in range(0, len(values), _PIECE))
        with _quiet():
            return [tenseal.ckks_vector(self._context, piece).serialize() for piece in pieces]

    def start(self) -> Any:
        return None

    def add(self, total: Any, hospital: int, blob: list[bytes]) -> Any:
        vectors = [tenseal.ckks_vector_from(self._public, piece) for piece in blob]
        if total is None:
            return vectors
        return [a + b for a, b in zip(total, vectors, strict=True)]

    def finish(self, total: Any) -> list[bytes]:
        return [vector.serialize() for vector in total]

    def decrypt(self, blob: list[bytes]) -> Any:
        loaded = (tenseal.ckks_vector_from(self._public, piece) for piece in blob)
        return np.concatenate([vector.decrypt(self._secret) for vector in loaded])

    def size(self, blob: list[bytes]) -> int:
        return sum(map(len, blob))


@contextmanager
def _quiet() -> Iterator[None]:
    """TenSEAL warns of each vector that takes more than one ciphertext, past Python's streams."""
    sys.stdout.flush()
    kept, nowhere = [os.dup(1), os.dup(2)], os.open(os.devnull, os.O_WRONLY)
    try:
        for stream in (1, 2):
            os.dup2(nowhere, stream)
        yield
    finally:
        for stream, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, stream)
        for number in (*kept, nowhere):
            os.close(number)


def main() -> None:
    arguments = _arguments()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, TenSEAL {tenseal.__version__}; "
        f"{arguments.parameters:,} parameters, {arguments.hospitals} hospitals, "
        f"{arguments.turns} turns"
    )
    makers = _makers(arguments)
    variants = [make() for make in makers]
    turns = [[_measure(variant, arguments) for variant in variants] for _ in range(arguments.turns)]
    rows = []
    for place, make in enumerate(makers):
        row = _median([turn[place] for turn in turns])
        row.memory = _in_new_process(_peak, make) / (4 * arguments.parameters)
        rows.append(row)
    _print(rows)
    if arguments.workers > 1:
        bits = arguments.bits[0]
        for workers in (1, arguments.workers):
            seconds = _clock(Ours(arguments.parameters, arguments.hospitals, bits, workers))
            print(f"  ours, {bits} bits, {workers} processes: {seconds:.2f} s by the clock")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2))


def _makers(arguments: argparse.Namespace) -> list[Callable[[], Variant]]:
    parameters = arguments.parameters
    return [
        *(partial(Ours, parameters, arguments.hospitals, bits) for bits in arguments.bits),
        partial(TenSeal, "4096 [54, 54]", parameters, 4096, [54, 54], 2.0**30),
        partial(TenSeal, "NVFLARE", parameters, 8192, [60, 40, 40], 2.0**40),
    ]


def _measure(variant: Variant, arguments: argparse.Namespace) -> Row:
    encrypting = adding = 0.0
    plain, total, up = None, variant.start(), 0
    for hospital in range(arguments.hospitals):
        values = variant.vector(hospital)
        plain = values if plain is None else plain + values
        began = time.process_time()
        blob = variant.encrypt(hospital, values)
        encrypting += time.process_time() - began
        up = variant.size(blob)
        began = time.process_time()
        total = variant.add(total, hospital, blob)
        adding += time.process_time() - began
    began = time.process_time()
    added = variant.finish(total)
    adding += time.process_time() - began
    began = time.process_time()
    opened = variant.decrypt(added)
    decrypting = time.process_time() - began
    error = float(np.abs(opened - plain).max())
    if isinstance(variant, Ours) and error != 0:
        raise RuntimeError("our sum is not the plain one")
    millions = arguments.parameters / 1e6
    return Row(
        variant.name,
        up / arguments.parameters,
        variant.size(added) / arguments.parameters,
        encrypting / arguments.hospitals / millions,
        adding / arguments.hospitals / millions,
        decrypting / millions,
        error,
    )


def _median(rows: list[Row]) -> Row:
    columns = ("up", "down", "encrypt", "add", "decrypt", "error")
    values = {key: statistics.median(getattr(row, key) for row in rows) for key in columns}
    return Row(rows[0].variant, **values)


def _clock(variant: Ours) -> float:
    values = variant.vector(0)
    began = time.perf_counter()
    variant.encrypt(0, values)
    return time.perf_counter() - began


# --- memory --------------------------------------------------------------------------------------


def _peak(make: Callable[[], Variant]) -> int:
    """Bytes; in a process that did nothing before."""
    before = _status("RssAnon")
    variant = make()
    variant.encrypt(0, variant.vector(0))
    return _status("VmHWM") - _status("RssFile") - before


def _status(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def _in_new_process(function: Callable[..., int], make: Callable[[], Variant]) -> int:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, make).result()


# --- output --------------------------------------------------------------------------------------


def _print(rows: list[Row]) -> None:
    print(f"  {'':14}{'up':>10}{'down':>10}{'encrypt':>11}{'add':>10}{'decrypt':>10}{'error':>10}"
          f"{'memory':>9}")  # fmt: skip
    for row in rows:
        print(
            f"  {row.variant:14}{row.up:8.2f} B{row.down:8.2f} B{row.encrypt:9.3f} s"
            f"{row.add:8.4f} s{row.decrypt:8.3f} s{row.error:10.1e}{row.memory:8.1f}×"
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--parameters", type=int, default=1_000_000)
    parser.add_argument("--hospitals", type=int, default=10)
    parser.add_argument("--bits", type=int, nargs="+", default=[32, 16, 8, 4])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, help="processes of the last measurement")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.parameters < 1 or arguments.hospitals < 2 or arguments.turns < 1:
        parser.error("--parameters and --turns must be at least 1, --hospitals at least 2")
    return arguments


if __name__ == "__main__":
    main()
