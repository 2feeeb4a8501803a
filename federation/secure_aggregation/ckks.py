"""Homomorphic sums by CKKS (Cheon et al. 2017), with the SEAL that TenSEAL brings.

Hospitals share one symmetric key of a run; the coordinator has none and adds what it cannot read. One
hospital of each run makes the key and seals it to the others (`federation.secure_aggregation.sealing`).
**One hospital that colludes with the coordinator can read every other hospital's update**, because any
of them can decrypt; a threshold scheme would not have that, and could stand behind the same `Scheme`.

*Parameters.* Ring degree N = 4096, ternary secret, one prime q of 60 bits, no multiplication. The
Homomorphic Encryption Standard (Albrecht et al. 2018, table 1) allows 75 bits for 192-bit security at
this N (109 for 128 bits), and SEAL is asked to enforce that. A second prime would serve only public-key
encryption, which nobody here needs: those who encrypt also decrypt. A hospital's noise is then that of
one fresh error polynomial, and c1 travels as a seed.

*Exactness.* A decrypted number is off by a normal error with deviation about 147·√n / Δ for n hospitals
(`ciphertexts.deviation`), and the scale Δ is so large that 8 deviations stay below 1/4, and 16 below the
1/2 at which rounding would give another integer than the sum (chance under 2**-180).

*Noise.* The approximate result of CKKS minus the exact one is the encryption's error, which is linear in
the key: who sees it for some thousand coefficients can solve for the key (Li & Micciancio 2021, eprint
2020/1533). Only integers leave this module: the exact sum, a function of the plain vectors alone, which
tells nothing of the error. A coordinator could shift c0 to push numbers over a rounding edge, and learn
errors from which ones moved (Cheon et al. 2024, eprint 2024/127), so a number further than 1/4 from an
integer refuses the whole sum; an honest one is refused with chance 2**-49 a number. A shift by a whole
integer moves numbers whatever their error. The refusal itself still is one bit, so hospitals sign which
total they decrypt, one a round (`federation.secure_aggregation.agreement`), and a run whose total was
refused gets no further. HE does not authenticate values: anybody can add a plain constant to a sum, so
vectors have a tag beside them (`federation.secure_aggregation.linear_mac`), without which none is used.

*Randomness.* Each ciphertext has its own 64 bytes from the operating system, and a SEAL context of
its own that they seed, because a seeded context would repeat itself. From them SEAL draws first the
public seed of c1, and then the error, as it does in its own seeded mode, which TenSEAL does not
expose.
"""

from __future__ import annotations

import hashlib
import hmac
import multiprocessing
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from federation.messages import Reason, WireError
from federation.schema import ConfigError
from federation.secure_aggregation import ciphertexts
from federation.secure_aggregation.ciphertexts import (
    FURTHEST,
    MODULUS,
    RING,
    SEED_BYTES,
    Blob,
    Packing,
    Part,
    PublicContext,
    Residues,
    RunningTotal,
)
from federation.secure_aggregation.keys import derived, encoded
from federation.secure_aggregation.scheme import Integers, Opened, Sum

RUN_KEY_BYTES = 32
SECRET_BYTES = SEED_BYTES + RUN_KEY_BYTES


@dataclass(frozen=True)
class HospitalKey:
    """What hospitals hold and the coordinator never does. It is small: SEAL makes the key from a seed.

    Attributes:
        seed: 64 bytes; the secret key is expanded from them.
        run_key: 32 bytes; tags of ciphertexts and model snapshots are made under it.
        public: says which key this is.
    """

    seed: bytes = field(repr=False)
    run_key: bytes = field(repr=False)
    public: PublicContext

    def to_bytes(self) -> bytes:
        """Secret: to be sealed."""
        return self.seed + self.run_key

    @classmethod
    def from_bytes(cls, secret: bytes, public: bytes) -> HospitalKey:
        """Raises:
        WireError: BAD_KEY if the secret is not the one that `public` names, or not a secret.
        """
        if len(secret) != SECRET_BYTES:
            raise WireError(Reason.BAD_KEY)
        seed, run_key = secret[:SEED_BYTES], secret[SEED_BYTES:]
        named = PublicContext.from_bytes(public)
        with closing(_Seal(seed)) as seal:
            if not hmac.compare_digest(seal.key_id(), named.key_id):
                raise WireError(Reason.BAD_KEY)
        return cls(seed, run_key, named)


@dataclass(frozen=True)
class Ckks:
    """`federation.secure_aggregation.scheme.Scheme` with one shared key.

    Attributes:
        workers: processes that encrypt and decrypt; TenSEAL holds Python's lock, so that threads
            would gain nothing. 1: this process, none is started.
    """

    workers: int = 1

    def make_key(self) -> HospitalKey:
        """A new key from the operating system's randomness. Raises ConfigError: no TenSEAL."""
        seed, run_key = os.urandom(SEED_BYTES), os.urandom(RUN_KEY_BYTES)
        with closing(_Seal(seed)) as seal:
            return HospitalKey(seed, run_key, PublicContext(seal.key_id()))

    def encrypt(self, key: HospitalKey, of: Sum, hospital: str, values: Integers) -> bytes:
        """One hospital's vector, int (size,), in `Packing.blob_bytes(1)` bytes.

        Memory beside the result is bounded, whatever the size.

        Raises:
            ValueError: another size, a value of more than `Sum.bits` bits, or no member of the sum.
            ConfigError: the sum needs more bits than CKKS carries.
        """
        packing = Packing.of(of)
        if hospital not in of.members:
            raise ValueError("not a member of this sum")
        if values.shape != (of.size,) or values.dtype.kind not in "iu":
            raise ValueError("values must be integers of the sum's size")
        per_chunk = ciphertexts.AT_ONCE * packing.digits * RING
        limit = 1 << (of.bits - 1)
        chunks = [values[start : start + per_chunk] for start in range(0, of.size, per_chunk)]
        if any(int(chunk.max()) >= limit or int(chunk.min()) <= -limit for chunk in chunks):
            raise ValueError(f"a value has more than {of.bits} bits")
        blob, seeds = BytesIO(), []
        blob.write(ciphertexts.head(key.public, of, 1))
        rows = (packing.pack(chunk) for chunk in chunks)
        for c0, public_seeds in self._each(key, packing.scale, _encrypt_rows, rows):
            blob.write(c0)
            seeds.append(public_seeds)
        joined = b"".join(seeds)
        part = Part(hospital, _tag(key, of, hospital, joined), joined)
        blob.write(ciphertexts.part_bytes(part, of))
        return blob.getvalue()

    def total(self, public: bytes, of: Sum) -> RunningTotal:
        """An empty sum at the coordinator; it needs no TenSEAL."""
        return RunningTotal(public, of)

    def partial_decrypt(self, key: HospitalKey, of: Sum, total: bytes) -> Opened:
        """The sum, rounded. With one shared key the only part is the whole.

        Raises:
            WireError: see `Blob.parse`; BAD_SIGNATURE if a part was not made for this sum by a
                hospital; TOO_FEW_HOSPITALS below `Sum.least`; MALFORMED if what comes out is no sum of
                that many vectors. After MALFORMED this key should decrypt no more totals.
        """
        packing = Packing.of(of)
        blob = Blob.parse(total, key.public, of)
        for part in blob.parts:
            if not hmac.compare_digest(part.tag, _tag(key, of, part.hospital, part.seeds)):
                raise WireError(Reason.BAD_SIGNATURE)
        if len(blob.parts) < of.least:
            raise WireError(Reason.TOO_FEW_HOSPITALS)
        most = len(blob.parts) * ((1 << (of.bits - 1)) - 1)
        values, done = np.empty(of.size, np.int64), 0
        work = (
            (blob.residues(chunk), [_of_chunk(part.seeds, chunk) for part in blob.parts])
            for chunk in packing.chunks()
        )
        for numbers in self._each(key, packing.scale, _decrypt_rows, work):
            digits = packing.unpack(numbers)
            if int(digits.max()) > most or int(digits.min()) < -most:
                raise WireError(Reason.MALFORMED)
            wanted = min(of.size - done, digits.size)
            if digits[wanted:].any():
                raise WireError(Reason.MALFORMED)
            values[done : done + wanted] = digits[:wanted]
            done += wanted
        return Opened(values, tuple(part.hospital for part in blob.parts))

    def combine(self, of: Sum, parts: Sequence[Opened]) -> Opened:
        """The only part. Raises ValueError: none or more than one."""
        (part,) = parts
        return part

    def _each(
        self, key: HospitalKey, scale: float, function: Any, work: Iterable[Any]
    ) -> Iterator[Any]:
        """`function` of each piece of work, in order, here or in other processes."""
        if self.workers == 1:
            with closing(_Seal(key.seed, scale)) as seal:
                yield from (function(seal, piece) for piece in work)
            return
        # A fork would copy PyTorch's threads' locks.
        with ProcessPoolExecutor(
            self.workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=(key.seed, scale),
        ) as pool:
            waiting = []
            for piece in work:
                waiting.append(pool.submit(_in_worker, function, piece))
                if len(waiting) > 2 * self.workers:  # bounds the memory
                    yield waiting.pop(0).result()
            for future in waiting:
                yield future.result()


def _tag(key: HospitalKey, of: Sum, hospital: str, seeds: bytes) -> bytes:
    """HMAC-SHA-256 over the sum, the member and the seeds."""
    content = encoded("ckks part", key.public.key_id, of.sha256(), hospital, seeds)
    return hmac.digest(derived(key.run_key, "ckks tags"), content, hashlib.sha256)


def _of_chunk(seeds: bytes, chunk: slice) -> bytes:
    return seeds[chunk.start * SEED_BYTES : chunk.stop * SEED_BYTES]


# --- SEAL ----------------------------------------------------------------------------------------

_COEFFICIENTS = RING * 8  # bytes of a polynomial
_SEAL_HEAD = b"\x5e\xa1\x10"
_SEED_OF_BLAKE = b"\x01"


def _encrypt_rows(seal: _Seal, rows: NDArray[np.int64]) -> tuple[bytes, bytes]:
    """Numbers (ciphertexts, 4096) as packed c0 and the public seeds of c1."""
    encrypted = [seal.encrypt(row) for row in rows]
    c0 = np.stack([polynomial for polynomial, _ in encrypted])
    return ciphertexts.pack_residues(c0), b"".join(seed for _, seed in encrypted)


def _decrypt_rows(seal: _Seal, work: tuple[Residues, list[bytes]]) -> NDArray[np.int64]:
    c0, seeds_of_parts = work
    numbers = np.empty(c0.shape, np.int64)
    for place, row in enumerate(c0):
        ends = slice(place * SEED_BYTES, (place + 1) * SEED_BYTES)
        numbers[place] = seal.decrypt(row, [seeds[ends] for seeds in seeds_of_parts])
    return numbers


_worker: _Seal | None = None


def _start_worker(seed: bytes, scale: float) -> None:
    global _worker
    _worker = _Seal(seed, scale)


def _in_worker(function: Any, piece: Any) -> Any:
    return function(_worker, piece)


def _library() -> Any:
    """TenSEAL's binding of SEAL; imported at first use, as only runs with CKKS need it."""
    if not hasattr(os, "memfd_create"):
        raise ConfigError("secure_aggregation=ckks needs Linux; use secure_aggregation=masks")
    try:
        from tenseal import sealapi
    except ImportError as error:
        raise ConfigError(
            "secure_aggregation=ckks needs TenSEAL: pip install 'consilium[ckks]', "
            "or use secure_aggregation=masks"
        ) from error
    return sealapi


class _Seal:
    """SEAL with one secret key. The binding reads and writes files only: here one that is memory."""

    def __init__(self, key_seed: bytes, scale: float = 2.0**30) -> None:
        self._api = _library()
        self._context = self._make_context()
        self._key = self._api.KeyGenerator(self._make_context(key_seed)).secret_key()
        self._encoder = self._api.CKKSEncoder(self._context)
        self._evaluator = self._api.Evaluator(self._context)
        self._decryptor = self._api.Decryptor(self._context, self._key)
        self._scale = scale
        self._memory = os.memfd_create("ckks", os.MFD_CLOEXEC)
        self._path = f"/proc/self/fd/{self._memory}"
        self._prefix = b""
        self._check()

    def close(self) -> None:
        os.close(self._memory)

    def key_id(self) -> bytes:
        data = self._key.data()
        words = np.array([data.data(place) for place in range(RING)], "<u8")
        return hashlib.sha256(b"consilium ckks key\n" + words.tobytes()).digest()

    def encrypt(self, numbers: NDArray[np.int64]) -> tuple[Residues, bytes]:
        """(4096,) numbers as c0 and the 64 bytes that c1 is expanded from."""
        _, polynomials, seed = self._encrypt(numbers)
        return polynomials[0], seed

    def decrypt(self, c0: Residues, seeds: Sequence[bytes]) -> NDArray[np.int64]:
        """Numbers (4096,) of the ciphertext whose c1 is the sum of those of `seeds`.

        Raises:
            WireError: MALFORMED, one is no integer within the noise.
        """
        added = self._load_seeded(c0, seeds[0])
        for seed in seeds[1:]:
            self._evaluator.add_inplace(added, self._load_seeded(np.zeros_like(c0), seed))
        plain = self._api.Plaintext()
        self._decryptor.decrypt(added, plain)
        slots = np.array(self._encoder.decode_complex(plain), np.complex128)
        numbers = np.concatenate([slots.real, slots.imag])
        whole: NDArray[np.float64] = np.rint(numbers)
        # written so that a NaN is refused as well
        if not np.abs(numbers - whole).max() <= FURTHEST:
            raise WireError(Reason.MALFORMED)
        return whole.astype(np.int64)

    def _check(self) -> None:
        """That this SEAL expands seeds as this module expects. Raises ConfigError."""
        self._prefix, polynomials, seed = self._encrypt(np.zeros(RING, np.int64))
        loaded = self._load_seeded(polynomials[0], seed)
        if not np.array_equal(self._polynomials(self._save(loaded)), polynomials):
            raise ConfigError(
                "this TenSEAL seeds ciphertexts in another way: install tenseal==0.3.18"
            )

    def _encrypt(self, numbers: NDArray[np.int64]) -> tuple[bytes, Residues, bytes]:
        seed = os.urandom(SEED_BYTES)
        plain, encrypted = self._api.Plaintext(), self._api.Ciphertext()
        slots = numbers[: RING // 2] + 1j * numbers[RING // 2 :]
        self._encoder.encode(slots.tolist(), self._scale, plain)
        # A context encrypts once: each encryption under it would draw the same randomness.
        self._api.Encryptor(self._make_context(seed), self._key).encrypt_symmetric(plain, encrypted)
        generator = self._api.Blake2xbPRNG(_words(seed))
        public = struct.pack("<16I", *(generator.generate() for _ in range(16)))
        saved = self._save(encrypted)
        return saved[: -2 * _COEFFICIENTS - 24], self._polynomials(saved), public

    def _make_context(self, seed: bytes | None = None) -> Any:
        """A context whose randomness is the operating system's, or all expanded from `seed`."""
        api = self._api
        parameters = api.EncryptionParameters(api.SCHEME_TYPE.CKKS)
        parameters.set_poly_modulus_degree(RING)
        parameters.set_coeff_modulus([api.Modulus(MODULUS)])
        if seed is not None:
            parameters.set_random_generator(api.Blake2xbPRNGFactory(_words(seed)))
        context = api.SEALContext(parameters, False, api.SEC_LEVEL_TYPE.TC192)
        if not context.parameters_set():
            raise ConfigError("this TenSEAL refuses CKKS's parameters: install tenseal==0.3.18")
        return context

    def _load_seeded(self, c0: Residues, seed: bytes) -> Any:
        """A ciphertext in SEAL's seeded form, which SEAL expands."""
        data = _enclosed(struct.pack("<Q", RING) + c0.tobytes())
        content = _enclosed(self._prefix + data + _enclosed(_SEED_OF_BLAKE + seed))
        os.pwrite(self._memory, content, 0)
        os.ftruncate(self._memory, len(content))
        loaded = self._api.Ciphertext()
        loaded.load(self._context, self._path)
        return loaded

    def _save(self, encrypted: Any) -> bytes:
        """SEAL's serialisation without its outer head: head of the ciphertext, 24 bytes, c0, c1."""
        encrypted.save(self._path)
        size = os.fstat(self._memory).st_size
        saved = os.pread(self._memory, size, 0)
        if saved[:3] != _SEAL_HEAD or saved[5] not in (0, 2):
            raise ConfigError("this TenSEAL writes another format: install tenseal==0.3.18")
        if saved[5] == 0:
            return saved[16:]
        return zstandard.ZstdDecompressor().decompress(saved[16:], max_output_size=1 << 20)

    @staticmethod
    def _polynomials(saved: bytes) -> Residues:
        return np.frombuffer(saved[-2 * _COEFFICIENTS :], "<u8").reshape(2, RING)


def _enclosed(content: bytes) -> bytes:
    """With SEAL's head of 16 bytes: not compressed, its length."""
    return _SEAL_HEAD + b"\x04\x03\x00\x00\x00" + struct.pack("<Q", 16 + len(content)) + content


def _words(seed: bytes) -> list[int]:
    return list(struct.unpack("<8Q", seed))
