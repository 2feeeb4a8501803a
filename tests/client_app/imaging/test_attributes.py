from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_app.imaging.attributes import attributes


@pytest.mark.parametrize(
    ("age", "band"),
    [
        ("045Y", "40-59"),
        ("017Y", "0-17"),
        ("018Y", "18-39"),
        ("039Y", "18-39"),
        ("040Y", "40-59"),
        ("079Y", "60-79"),
        ("080Y", "80+"),
        ("120Y", "80+"),
        ("121Y", "unknown"),
        ("018M", "0-17"),
        ("230M", "18-39"),
        ("003D", "0-17"),
        ("000D", "0-17"),
        ("006W", "0-17"),
        ("45", "40-59"),
        ("45.5", "40-59"),
        ("000Y", "unknown"),
        ("-5", "unknown"),
        ("²5Y", "unknown"),
        ("old", "unknown"),
        ("", "unknown"),
    ],
)
def test_age_bands(age: str, band: str) -> None:
    assert attributes(age=age)["age_band"] == band


@pytest.mark.parametrize(
    ("birth", "study", "band"),
    [
        ("20000615", "20180614", "0-17"),
        ("20000615", "20180615", "18-39"),
        ("2000.06.15", "20180615", "18-39"),
        ("20000615", "", "unknown"),
        ("20200101", "20190101", "unknown"),
        ("20001345", "20180615", "unknown"),
        ("19000101", "20040101", "unknown"),
    ],
)
def test_age_from_dates(birth: str, study: str, band: str) -> None:
    assert attributes(birth_date=birth, study_date=study)["age_band"] == band


def test_stated_age_goes_before_dates() -> None:
    found = attributes(age="030Y", birth_date="19400101", study_date="20200101")
    assert found["age_band"] == "18-39"
    found = attributes(age="000Y", birth_date="19400101", study_date="20200101")
    assert found["age_band"] == "80+"


@pytest.mark.parametrize(
    ("said", "vendor"),
    [
        ("SIEMENS", "siemens"),
        ("Siemens Healthineers", "siemens"),
        ("GE MEDICAL SYSTEMS", "ge"),
        ("GE_Healthcare", "ge"),
        ("Agfa-Gevaert AG", "agfa"),
        ("Philips Medical Systems", "philips"),
        ("TOSHIBA_MEC", "canon"),
        ("FUJIFILM Corporation", "fujifilm"),
        ("Dr. Georg Imager", "unknown"),
        ("", "unknown"),
    ],
)
def test_vendors(said: str, vendor: str) -> None:
    assert attributes(manufacturer=said)["manufacturer"] == vendor


@given(st.text(), st.text(), st.text(), st.text(), st.text())
def test_only_words_of_the_lists_pass(a: str, b: str, c: str, d: str, e: str) -> None:
    found = attributes(sex=a, age=b, birth_date=c, study_date=d, manufacturer=e)
    assert found["sex"] in {"female", "male", "unknown"}
    assert found["age_band"] in {"0-17", "18-39", "40-59", "60-79", "80+", "unknown"}
    assert found["manufacturer"].isalpha()
    assert len(found["manufacturer"]) < 12
