from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_app.imaging.pseudonym import load_key, normalised, pseudonym
from federation.schema import ConfigError
from tests.client_app.imaging.samples import KEY, OTHER_KEY

identifiers = st.text(min_size=1).filter(lambda text: normalised(text))


@given(identifiers, st.integers(0, 5), st.integers(0, 5), st.integers(0, 5))
def test_padding_changes_nothing(identifier: str, before: int, after: int, nuls: int) -> None:
    padded = " " * before + identifier + " " * after + "\0" * nuls
    assert pseudonym(KEY, padded) == pseudonym(KEY, identifier)


@given(identifiers, identifiers)
def test_one_pseudonym_one_patient(one: str, other: str) -> None:
    same = pseudonym(KEY, one) == pseudonym(KEY, other)
    assert same == (normalised(one) == normalised(other))


@given(identifiers)
def test_is_hexadecimal_and_depends_on_the_key(identifier: str) -> None:
    result = pseudonym(KEY, identifier)
    assert len(result) == 32
    assert int(result, 16) >= 0
    assert result != pseudonym(OTHER_KEY, identifier)


def test_is_the_hmac_it_says() -> None:
    """Written down once: another value would give every patient a new place in the splits."""
    import hashlib
    import hmac

    expected = hmac.new(KEY, b"patient\0ABC 1", hashlib.sha256).hexdigest()[:32]
    assert pseudonym(KEY, " ABC 1 \0") == expected


def test_case_is_kept() -> None:
    assert pseudonym(KEY, "abc") != pseudonym(KEY, "ABC")


@pytest.mark.parametrize("identifier", ["", " ", "\0", "  \0 \0"])
def test_nobody_has_no_pseudonym(identifier: str) -> None:
    with pytest.raises(ValueError, match="empty"):
        pseudonym(KEY, identifier)


def test_key_is_private_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "state" / "pseudonym.key"
    key = load_key(path)
    assert len(key) == 32
    assert load_key(path) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path], "no draft is left behind"
    assert load_key(tmp_path / "other.key") != key


def test_all_who_make_a_key_at_once_get_the_same(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(lambda _: load_key(tmp_path / "key"), range(32)))
    assert len(keys) == 1


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_key_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    key = load_key(path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match="0600") as refusal:
        load_key(path)
    assert key.hex() not in str(refusal.value)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_key_of_wrong_length_is_refused_and_kept(tmp_path: Path, length: int) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"k" * length)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="32 bytes"):
        load_key(path)
    assert path.read_bytes() == b"k" * length
