"""What a sum that nobody can take apart costs: in the open, under masks, and by CKKS.

    python benchmarks/secure_aggregation.py [--parameters 25000000] [--hospitals 10]
        [--bits 32 16 8 4] [--dropouts 0 1 3] [--only none|masks|ckks] [--scaling] [--json FILE]

Real cryptography, in this process, one round without Flower and without training: hospitals encode a
vector of float32 as integers of b bits (stochastic rounding, one shared scale; of 32 bits those that the
headroom leaves, so that a word on the wire has 32), protect it, and the coordinator adds and opens. The
sum is compared with the plain sum of the same integers; a difference ends the benchmark.

- *client*: seconds of one hospital, from floats to bytes; *floor*: of the same run, the quantising and
  as many bytes of AES-256-CTR as its masks have, nothing else. *ratio* is of the two.
- *server*: seconds of the coordinator a round, with so many hospitals that vanish after sharing.
- *up*: bytes of one hospital's message; *keys*: bytes up of all its letters together.
- *memory*: largest resident set with the client's work above that before there was a vector, over the
  size of the float32 vector (which is 1 of it), in a process of its own.

`--scaling` prints, for 5, 10, 25, 50 and 100 hospitals, seconds a client and on the server and the bytes
of letters, for one million parameters of 16 bits; threads are this machine's cores.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from federation.codec import packing
from federation.codec.quantise import integers
from federation.secure_aggregation import letters, masks
from federation.secure_aggregation.ckks import Ckks
from federation.secure_aggregation.masks import Cohort, Held, Occasion, Secrets
from federation.secure_aggregation.scheme import Sum

_CHUNK = 1 << 18
_EXPONENT = -20  # of the shared scale: a step is 2^-20


@dataclass
class Row:
    """One variant; seconds, bytes, and shares of the float32 vector."""

    variant: str
    bits: int
    hospitals: int
    dropouts: int
    client: float
    floor: float
    server: float
    up: int
    keys: int
    memory: float = 0.0


def quantised(vector: NDArray[np.float32], bits: int, seed: int) -> NDArray[np.int32]:
    """As the codec does it, piece by piece."""
    source = np.random.Generator(np.random.PCG64(seed))
    values = np.empty(len(vector), np.int32)
    for start in range(0, len(vector), _CHUNK):
        part = slice(start, start + _CHUNK)
        values[part] = integers.encode(vector[part], _EXPONENT, bits, source)
    return values


def update(parameters: int, seed: int) -> NDArray[np.float32]:
    """A hospital's, of about a hundred steps of the scale."""
    drawn = np.random.default_rng(seed).standard_normal(parameters, np.float32)
    drawn *= np.float32(100 * 2.0**_EXPONENT)
    return drawn


def carried(bits: int, hospitals: int) -> int:
    """Bits of a value: of 32, what leaves room for the sum in a word of 32."""
    return bits if bits < 32 else 32 - (hospitals - 1).bit_length()


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


class Masked:
    """Hospitals with keys and shares, ready for the masked input."""

    def __init__(self, hospitals: int, bits: int) -> None:
        self.names = [f"hospital-{number:03}" for number in range(hospitals)]
        self.identities = {name: Ed25519PrivateKey.generate() for name in self.names}
        self.public = {name: key.public_key() for name, key in self.identities.items()}
        occasion = Occasion("run", 1, 0, "0" * 64)
        made = {n: masks.advertise(occasion, n, 1, self.identities[n]) for n in self.names}
        adverts = [advert for _, advert in made.values()]
        self.cohort: Cohort = masks.cohort(adverts, occasion, self.public, least=3)
        self.secrets: dict[str, Secrets] = {name: secrets for name, (secrets, _) in made.items()}
        sealed = {name: masks.share(self.secrets[name], self.cohort) for name in self.names}
        self.held: dict[str, Held] = {
            name: masks.receive(
                self.secrets[name], self.cohort, {n: sealed[n][name] for n in self.names}, least=3
            )
            for name in self.names
        }
        self.bits = bits
        self.wire_bits = masks.headroom(bits, hospitals)
        self.letters = len(letters.advert_to_bytes(adverts[0])) + len(
            letters.sealed_to_bytes(sealed[self.names[0]])
        )

    def message(self, name: str, vector: NDArray[np.float32], seed: int) -> bytes:
        """All that a hospital does for its masked input."""
        residues = masks.to_residues(quantised(vector, self.bits, seed), self.wire_bits)
        sharers = self.held[name].sharers
        masks.mask(
            self.secrets[name], self.cohort, sharers, residues, self.wire_bits, part="update"
        )
        return packing.pack(residues, self.wire_bits)

    def open(self, blobs: dict[str, bytes], length: int) -> NDArray[Any]:
        """All that the coordinator does, the hospitals' shares already there."""
        total = np.zeros(length, np.uint32)
        for blob in blobs.values():
            np.add(total, packing.unpack(blob, self.wire_bits, length), out=total)
        rebuilt = masks.rebuild(
            self.cohort,
            tuple(self.names),
            tuple(sorted(blobs)),
            self.openings(tuple(sorted(blobs))),
        )
        masks.unmask(total, rebuilt, self.wire_bits, part="update")
        return packing.signed(total, self.wire_bits)

    def openings(self, survivors: tuple[str, ...]) -> dict[str, Any]:
        if not hasattr(self, "_openings") or self._openings[0] != survivors:
            sharers = self.held[self.names[0]].sharers
            signatures = {
                name: masks.sign_survivors(
                    self.secrets[name],
                    self.cohort,
                    sharers,
                    survivors,
                    self.identities[name],
                    least=3,
                )
                for name in survivors
            }
            made = {
                name: masks.open_shares(
                    self.held[name], self.secrets[name], self.cohort, survivors, signatures,
                    self.public, signed=survivors, least=3,
                )
                for name in survivors
            }  # fmt: skip
            self._openings: tuple[tuple[str, ...], dict[str, Any]] = (survivors, made)
        return self._openings[1]


def floor(vector: NDArray[np.float32], bits: int, masks_: int, word: int) -> float:
    """Seconds of quantising, and of as many bytes of AES-256-CTR as so many masks have; medians."""

    def stream() -> None:
        zeros, made = memoryview(bytes(_CHUNK)), bytearray(_CHUNK + 16)
        for _ in range(masks_):
            cipher = Cipher(algorithms.AES(bytes(32)), modes.CTR(bytes(16))).encryptor()
            for start in range(0, len(vector) * word, _CHUNK):
                cipher.update_into(zeros[: min(_CHUNK, len(vector) * word - start)], made)

    def typical(work: Callable[[], Any]) -> float:
        return float(np.median([timed(work)[0] for _ in range(5)]))

    return typical(lambda: quantised(vector, bits, 0)) + typical(stream)


def none(parameters: int, hospitals: int, bits: int, dropouts: Sequence[int]) -> list[Row]:
    bits = carried(bits, hospitals)
    vector = update(parameters, 0)

    def message() -> bytes:
        return packing.pack(quantised(vector, bits, 0), bits)

    blob = message()
    client = float(np.median([timed(message)[0] for _ in range(5)]))

    def add() -> None:
        total = np.zeros(parameters, np.int64)
        for _ in range(hospitals):
            total += packing.signed(packing.unpack(blob, bits, parameters), bits)

    server = float(np.median([timed(add)[0] for _ in range(3)]))
    least = floor(vector, bits, 0, 4)
    return [Row("none", bits, hospitals, 0, client, least, server, len(blob), 0)]


def masked(parameters: int, hospitals: int, bits: int, dropouts: Sequence[int]) -> list[Row]:
    bits = carried(bits, hospitals)
    party = Masked(hospitals, bits)
    blobs: dict[str, bytes] = {}
    seconds = []
    party.message(party.names[0], update(parameters, 0), 0)  # the first pays for fresh memory
    plain, sums = np.zeros(parameters, np.int32), {}  # by how many hospitals are in them
    for seed, name in enumerate(party.names):
        vector = update(parameters, seed)
        taken, blobs[name] = timed(lambda v=vector, n=name, s=seed: party.message(n, v, s))
        seconds.append(taken)
        plain += quantised(vector, bits, seed)
        if hospitals - seed - 1 in dropouts:
            sums[seed + 1] = plain.copy()
    word = masks.word(party.wire_bits).itemsize
    least = floor(update(parameters, 0), bits, hospitals, word)
    rows = []
    for lost in dropouts:
        there = party.names[: hospitals - lost]
        party.openings(tuple(there))  # the hospitals' part
        server, total = timed(lambda n=there: party.open({k: blobs[k] for k in n}, parameters))
        if not np.array_equal(total, sums[len(there)]):
            raise SystemExit("the sum under masks is not the plain one")
        up = len(blobs[party.names[0]])
        client = float(np.median(seconds))
        rows.append(Row("masks", bits, hospitals, lost, client, least, server, up, party.letters))
    return rows


def ckks(parameters: int, hospitals: int, bits: int, dropouts: Sequence[int]) -> list[Row]:
    bits = carried(bits, hospitals)
    names = tuple(f"hospital-{number:03}" for number in range(hospitals))
    of = Sum("run", 1, "update", names, 2, "0" * 64, parameters, bits)
    scheme = Ckks()
    key = scheme.make_key()
    values = quantised(update(parameters, 0), bits, 0).astype(np.int64)
    client, _ = timed(lambda: scheme.encrypt(key, of, names[0], values))
    total = scheme.total(key.public.to_bytes(), of)
    blob, server, expected = b"", 0.0, np.zeros(parameters, np.int64)
    for seed, name in enumerate(names):
        values = quantised(update(parameters, seed), bits, seed).astype(np.int64)
        blob = scheme.encrypt(key, of, name, values)
        server += timed(lambda n=name, b=blob: total.add(n, b))[0]
        expected += values
    opening, part = timed(lambda: scheme.partial_decrypt(key, of, total.to_bytes()))
    if not np.array_equal(scheme.combine(of, [part]).values, expected):
        raise SystemExit("the decrypted sum is not the plain one")
    least = floor(update(parameters, 0), bits, 0, 4)
    row = Row("ckks", bits, hospitals, 0, client + opening, least, server, len(blob), 0)
    return [row]


VARIANTS = {"none": none, "masks": masked, "ckks": ckks}


def memory(variant: str, parameters: int, hospitals: int, bits: int) -> float:
    """In a process of its own: what one hospital's work adds to the largest resident set."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_memory, variant, parameters, hospitals, bits).result()


def _memory(variant: str, parameters: int, hospitals: int, bits: int) -> float:
    bits = carried(bits, hospitals)
    party = Masked(hospitals, bits) if variant == "masks" else None
    before = _largest()
    vector = update(parameters, 0)
    if party is not None:
        party.message(party.names[0], vector, 0)
    elif variant == "none":
        packing.pack(quantised(vector, bits, 0), bits)
    else:
        names = tuple(f"hospital-{number:03}" for number in range(hospitals))
        of = Sum("run", 1, "update", names, 2, "0" * 64, parameters, bits)
        scheme = Ckks()
        scheme.encrypt(scheme.make_key(), of, names[0], quantised(vector, bits, 0).astype(np.int64))
    return (_largest() - before) / vector.nbytes


def _largest() -> int:
    """The largest resident set of this process, in bytes: `ru_maxrss` would be its parent's too."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", type=int, default=25_000_000)
    parser.add_argument("--hospitals", type=int, default=10)
    parser.add_argument("--bits", type=int, nargs="+", default=[32, 16, 8, 4])
    parser.add_argument("--dropouts", type=int, nargs="+", default=[0, 1, 3])
    parser.add_argument("--only", choices=sorted(VARIANTS))
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows: list[Row] = []
    if arguments.scaling:
        for hospitals in (5, 10, 25, 50, 100):
            rows += masked(1_000_000, hospitals, 16, [0, (hospitals - 1) // 3])
    else:
        for bits in arguments.bits:
            for name, variant in VARIANTS.items():
                if arguments.only in (None, name):
                    found = variant(
                        arguments.parameters, arguments.hospitals, bits, arguments.dropouts
                    )
                    found[0].memory = memory(name, arguments.parameters, arguments.hospitals, bits)
                    rows += found
                    _print(rows[-len(found) :])
    _print(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


def _print(rows: list[Row]) -> None:
    table = Table(title="a round without training")
    for title in ("", "bits", "hospitals", "gone", "client s", "floor s", "ratio", "server s",
                  "up MB", "letters kB", "memory"):  # fmt: skip
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(
            row.variant, str(row.bits), str(row.hospitals), str(row.dropouts),
            f"{row.client:.2f}", f"{row.floor:.2f}", f"{row.client / row.floor:.2f}",
            f"{row.server:.2f}", f"{row.up / 1e6:.1f}", f"{row.keys / 1e3:.1f}",
            f"{row.memory:.1f}" if row.memory else "",
        )  # fmt: skip
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
