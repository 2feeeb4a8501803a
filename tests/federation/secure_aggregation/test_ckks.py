"""CKKS sums are exact, their noise is what the module says, and SEAL computes the same."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from federation.messages import Reason
from federation.schema import ConfigError
from federation.secure_aggregation import ciphertexts, ckks
from federation.secure_aggregation.ciphertexts import (
    FURTHEST,
    MODULUS,
    RING,
    Packing,
    deviation,
    pack_residues,
    precision,
)
from federation.secure_aggregation.ckks import Ckks
from federation.secure_aggregation.scheme import Integers, Sum, from_limbs, to_limbs
from tests.federation.secure_aggregation.ckks_sums import (
    SCHEME,
    a_key,
    a_sum,
    encrypted,
    opened,
    reason,
    summed,
    three,
    with_c0,
)

sealapi = pytest.importorskip("tenseal.sealapi", reason="the extra [ckks] is not installed")


# --- exact ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hospitals", "bits", "size"),
    [
        (3, 4, 70_000),
        (3, 16, 20_000),
        (10, 8, 30_000),
        (10, 16, 16_384),
        (10, 32, 5000),
        (100, 16, 5000),
        (100, 36, 4096),
        (2, 45, 5000),
    ],
)
@pytest.mark.parametrize("kind", ["random", "largest", "smallest", "signs"])
def test_the_sum_is_that_of_the_plain_integers(
    hospitals: int, bits: int, size: int, kind: str
) -> None:
    of, most = a_sum(hospitals, size, bits), (1 << (bits - 1)) - 1
    source = np.random.default_rng(hospitals + bits)
    signs = source.choice([-most, most], size)
    make: dict[str, Callable[[], Integers]] = {
        "random": lambda: source.integers(-most, most + 1, size),
        "largest": lambda: np.full(size, most),
        "smallest": lambda: np.full(size, -most),
        "signs": lambda: signs,  # the same at all: largest sums of either sign
    }
    vectors = [make[kind]() for _ in range(hospitals)]
    result = opened(of, summed(of, vectors))
    np.testing.assert_array_equal(result.values, np.sum(vectors, axis=0))
    assert result.hospitals == of.members


def test_hospitals_that_vanish_cost_their_own_update_alone() -> None:
    of = a_sum(5, 300)
    vectors = [np.full(300, hospital + 1) for hospital in range(3)]
    result = opened(of, summed(of, vectors))
    assert result.hospitals == of.members[:3]
    assert (result.values == 6).all()


def test_other_processes_encrypt_and_decrypt_the_same() -> None:
    of = a_sum(2, 300_000, 32)  # more than one chunk
    values = np.random.default_rng(0).integers(-(2**31) + 1, 2**31, 300_000)
    parallel, total = Ckks(workers=2), SCHEME.total(a_key().public.to_bytes(), of)
    for hospital in of.members:
        total.add(hospital, parallel.encrypt(a_key(), of, hospital, values))
    assert (opened(of, total.to_bytes()).values == 2 * values).all()
    assert (parallel.partial_decrypt(a_key(), of, total.to_bytes()).values == 2 * values).all()


@settings(max_examples=200)
@given(
    st.integers(2, 1000).flatmap(
        lambda n: st.tuples(st.just(n), st.integers(2, precision(n) - (n - 1).bit_length()))
    ),
    st.integers(1, 20_000),
    st.integers(0, 2**32),
)
def test_numbers_hold_the_largest_sums_side_by_side(
    of_and_bits: tuple[int, int], size: int, seed: int
) -> None:
    hospitals, bits = of_and_bits
    packing = Packing.of(a_sum(hospitals, size, bits))
    most = hospitals * ((1 << (bits - 1)) - 1)
    values = np.random.default_rng(seed).choice([-most, -1, 0, 1, most], size)
    numbers = packing.pack(values)
    assert numbers.shape == (packing.ciphertexts, RING)
    np.testing.assert_array_equal(packing.unpack(numbers)[:size], values)
    # a coefficient is at most √2 Δ |number|, and there is room beside it for the noise
    assert 1.5 * packing.scale * int(np.abs(numbers).max()) < MODULUS / 2


def test_widths_beyond_the_precision_are_refused() -> None:
    assert [precision(n) for n in (2, 10, 50, 100, 1000)] == [46, 45, 44, 43, 40]
    with pytest.raises(ConfigError, match="carries sums of 45 bits for 10 hospitals"):
        Packing.of(a_sum(10, 100, 42))
    assert Packing.of(a_sum(10, 100, 41)).digits == 1


def test_values_that_have_more_bits_are_refused() -> None:
    for value in (2**15, -(2**15)):
        with pytest.raises(ValueError, match="more than 16 bits"):
            encrypted(a_sum(), np.full(100, value))
    with pytest.raises(ValueError, match="size"):
        encrypted(a_sum(), np.zeros(99, np.int64))
    with pytest.raises(ValueError, match="integers"):
        encrypted(a_sum(), np.zeros(100))  # type: ignore[arg-type]


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20), st.integers(1, 100))
def test_limbs_add_to_exact_sums_wider_than_64_bits(values: list[int], hospitals: int) -> None:
    limbs = to_limbs(np.array(values, np.int64))
    assert np.abs(limbs).max() < 2**16
    assert from_limbs(limbs * hospitals) == [value * hospitals for value in values]


def test_64_bit_integers_in_limbs_come_out_exact() -> None:
    values = np.array([2**63 - 1, -(2**63), 0, -1, 12345], np.int64)
    limbs = to_limbs(values)
    of = a_sum(3, limbs.size, 17)
    result = opened(of, summed(of, [limbs] * 3))
    assert from_limbs(result.values) == [3 * int(value) for value in values]


def test_a_parameter_takes_at_most_31_bytes_and_far_fewer_of_few_bits() -> None:
    def bytes_each(bits: int) -> float:
        return Packing.of(a_sum(10, 25_000_000, bits)).blob_bytes(1) / 25_000_000

    assert bytes_each(32) < 7.53
    assert bytes_each(16) < 3.77
    assert bytes_each(8) < 2.52
    assert bytes_each(4) < 1.52


# --- the noise -----------------------------------------------------------------------------------


def _errors(
    numbers: Integers, scale: float, hospitals: int = 1, count: int = 1
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """What is off before rounding, (count, 4096): seen here alone, beneath the module's surface."""
    errors = []
    with closing(ckks._Seal(a_key().seed, scale)) as seal:
        for _ in range(count):
            added = seal._load_seeded(*seal.encrypt(numbers))
            for _ in range(hospitals - 1):
                seal._evaluator.add_inplace(added, seal._load_seeded(*seal.encrypt(numbers)))
            errors.append(_decoded(seal, added) - hospitals * numbers)
    return np.array(errors)


def _decoded(seal: ckks._Seal, added: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    plain = sealapi.Plaintext()
    seal._decryptor.decrypt(added, plain)
    slots = np.array(seal._encoder.decode_complex(plain))
    return np.concatenate([slots.real, slots.imag])


def test_the_noise_has_the_stated_deviation_and_is_fresh_in_each_ciphertext() -> None:
    numbers = np.random.default_rng(0).integers(-(2**20), 2**20, RING)
    scale = 2.0**24
    errors = _errors(numbers, scale, count=30) * scale
    assert errors.std() == pytest.approx(math.sqrt(2048 * (21 / 2 + 1 / 12)), rel=0.02)
    assert kstest(errors.ravel() / errors.std(), "norm").pvalue > 1e-6
    correlations = np.corrcoef(errors) - np.eye(len(errors))
    # rounding numbers to coefficients is the same each time: 1 part of the variance in 127
    assert np.abs(correlations).max() < 0.1
    of_20 = _errors(numbers, scale, hospitals=20, count=10) * scale
    assert of_20.std() == pytest.approx(math.sqrt(2048 * (20 * 21 / 2 + 20**2 / 12)), rel=0.03)


@pytest.mark.parametrize("hospitals", [2, 10, 50, 300])
@pytest.mark.parametrize("kind", ["largest", "signs"])
def test_the_worst_numbers_stay_within_the_stated_error(hospitals: int, kind: str) -> None:
    """At the narrowest scale, numbers at their limit, and all hospitals with the same ones."""
    bits = precision(hospitals) - (hospitals - 1).bit_length()
    most = (1 << (bits - 1)) - 1
    signs = np.random.default_rng(0).choice([-most, most], RING)
    numbers = np.full(RING, most) if kind == "largest" else signs
    errors = _errors(numbers, Packing.of(a_sum(hospitals, RING, bits)).scale, hospitals)
    assert errors.std() < 1.05 * deviation(precision(hospitals), hospitals)
    assert np.abs(errors).max() < 0.8 * FURTHEST


def test_nothing_leaves_but_integers() -> None:
    of, _, total = three()
    result = opened(of, total)
    assert result.values.dtype == np.int64
    assert set(vars(result)) == {"values", "hospitals"}


def test_a_total_shifted_towards_a_rounding_edge_is_refused() -> None:
    of, _, total = three()
    everywhere = [0.4] * (RING // 2)
    assert reason(opened, of, _shifted(total, of, everywhere)) == Reason.MALFORMED


def test_a_shifted_total_that_no_three_vectors_add_to_is_refused() -> None:
    of, _, total = three()
    within = _shifted(total, of, [7.0])  # a coordinator can do that: values are not authenticated
    np.testing.assert_array_equal(opened(of, within).values[:2], [3 * -50 + 7, 3 * -49])
    in_the_padding = _shifted(total, of, [0.0] * 200 + [1.0])
    assert reason(opened, of, in_the_padding) == Reason.MALFORMED
    most = 3 * (2**15 - 1)
    assert opened(of, _shifted(total, of, [most + 150.0])).values[0] == most
    assert reason(opened, of, _shifted(total, of, [most + 151.0])) == Reason.MALFORMED


def _shifted(total: bytes, of: Sum, numbers: list[float]) -> bytes:
    """A total with plain numbers added in the first slots: SEAL encodes them without a key."""
    scale, plain = Packing.of(of).scale, sealapi.Plaintext()
    with closing(ckks._Seal(bytes(64), scale)) as seal:
        seal._encoder.encode(numbers, scale, plain)
    shift = np.array([plain.data(place) for place in range(RING)], np.uint64)
    return with_c0(total, of, lambda c0: (c0 + shift) % MODULUS)


# --- SEAL as an independent computation ----------------------------------------------------------


def test_the_prime_and_the_security_are_what_the_docstring_says() -> None:
    assert MODULUS.bit_length() == 60 and MODULUS % (2 * RING) == 1
    assert all(pow(base, MODULUS - 1, MODULUS) == 1 for base in (2, 3, 5, 7, 11))
    assert sealapi.CoeffModulus.Create(RING, [60])[0].value() == MODULUS
    # SEAL's tables are those of the Homomorphic Encryption Standard
    levels = sealapi.SEC_LEVEL_TYPE
    largest = [sealapi.CoeffModulus.MaxBitCount(RING, at) for at in (levels.TC128, levels.TC192)]
    assert largest == [109, 75]


def test_the_coordinators_sum_is_the_one_that_seal_computes() -> None:
    with closing(ckks._Seal(a_key().seed)) as seal:
        numbers = np.arange(RING)
        pairs = [seal.encrypt(numbers) for _ in range(3)]
        added = seal._load_seeded(*pairs[0])
        for pair in pairs[1:]:
            seal._evaluator.add_inplace(added, seal._load_seeded(*pair))
        by_seal = seal._polynomials(seal._save(added))
    rows = np.zeros(RING, np.uint64)
    for c0, _ in pairs:
        rows += c0
        np.minimum(rows, rows - np.uint64(MODULUS), out=rows)
    np.testing.assert_array_equal(rows, by_seal[0])


def test_tenseal_itself_decrypts_with_the_secret_key_and_refuses_without() -> None:
    of = a_sum(2, RING, 20)
    values = np.random.default_rng(0).integers(-(2**19) + 1, 2**19, RING)
    parsed = ciphertexts.Blob.parse(summed(of, [values, values]), a_key().public, of)
    with closing(ckks._Seal(a_key().seed, Packing.of(of).scale)) as seal:
        added = seal._load_seeded(parsed.residues(slice(0, 1))[0], parsed.parts[0].seeds)
        zero = np.zeros(RING, np.uint64)
        seal._evaluator.add_inplace(added, seal._load_seeded(zero, parsed.parts[1].seeds))
        numbers = np.rint(_decoded(seal, added)).astype(np.int64)
        with pytest.raises(ValueError, match="secret key is not valid"):
            sealapi.Decryptor(seal._context, sealapi.SecretKey())
    assert Packing.of(of).digits == 2
    low = (numbers + (1 << 20)) % (1 << 21) - (1 << 20)
    np.testing.assert_array_equal(low, 2 * values)


def test_residues_are_packed_as_one_long_number() -> None:
    residues = np.random.default_rng(0).integers(0, MODULUS, (3, RING), np.uint64)
    packed = pack_residues(residues)
    number = sum(int(word) << (60 * place) for place, word in enumerate(residues.ravel()))
    assert packed == number.to_bytes(3 * RING * 15 // 2, "little")


# --- the library ---------------------------------------------------------------------------------


def test_importing_and_adding_need_no_tenseal_and_its_absence_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['tenseal'] = None\n"
        "from federation.secure_aggregation import ciphertexts, ckks, scheme, sealing\n"
        "from federation.schema import ConfigError\n"
        "of = scheme.Sum('r', 1, 'u', ('a', 'b'), 2, '', 10, 16)\n"
        "ckks.Ckks().total(ciphertexts.PublicContext(bytes(32)).to_bytes(), of)\n"
        "try: ckks.Ckks().make_key()\n"
        "except ConfigError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'consilium[ckks]'" in done.stdout


def test_a_seal_that_expands_seeds_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ckks._Seal, "_load_seeded", _load_another)
    with pytest.raises(ConfigError, match=r"tenseal==0\.3\.18"):
        ckks._Seal(bytes(64))


_load_seeded = ckks._Seal._load_seeded


def _load_another(seal: ckks._Seal, c0: ciphertexts.Residues, seed: bytes) -> Any:
    return _load_seeded(seal, c0, bytes(64))
