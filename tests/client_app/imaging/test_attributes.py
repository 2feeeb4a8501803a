from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.sr._snomed_dict import mapping
from pydicom.sr.codedict import codes

from client_app.imaging import attributes as module
from client_app.imaging.attributes import attributes, view_of_code


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


@pytest.mark.parametrize(
    ("name", "said", "word"),
    [
        ("model", "TrioTim", "magnetom-trio"),
        ("model", "MAGNETOM_Prisma_fit", "magnetom-prisma"),
        ("model", "DISCOVERY MR750", "discovery-mr750"),
        ("model", "LightSpeed VCT", "lightspeed"),
        ("model", "Aquilion ONE", "aquilion"),
        ("model", "Station of Dr. Smith", "unknown"),
        ("field_strength", "3", "3t"),
        ("field_strength", "2.8936", "3t"),
        ("field_strength", "1.5T", "1.5t"),
        ("field_strength", "15000", "1.5t"),
        ("field_strength", "2", "unknown"),
        ("field_strength", "nan", "unknown"),
        ("kvp", "28", "0-39"),
        ("kvp", "120", "110-129"),
        ("kvp", "120.0", "110-129"),
        ("kvp", "110-129", "110-129"),
        ("kvp", "150000", "unknown"),
        ("kvp", "0", "unknown"),
        ("view", "MLO", "mlo"),
        ("view", "medio-lateral oblique", "mlo"),
        ("view", "XCCL", "other"),
        ("view", "LL", "lateral"),
        ("view", "ML", "ml"),
        ("view", "whatever", "unknown"),
        ("laterality", "L", "left"),
        ("laterality", "right", "right"),
        ("laterality", "B", "unknown"),
        ("breast_density", "BI-RADS C", "c"),
        ("breast_density", "ACR 2", "b"),
        ("breast_density", "Density D", "d"),
        ("breast_density", "2.0", "b"),
        ("breast_density", "heterogeneously dense", "c"),
        ("breast_density", "5", "unknown"),
        ("intent", "FOR PROCESSING", "processing"),
        ("weighting", "T1", "t1"),
        ("weighting", "my t1", "unknown"),
        ("contrast", "yes", "yes"),
        ("body_part", "CSPINE", "spine"),
        ("body_part", "HIP", "limb"),
        ("body_part", "Hippocampus", "brain"),
        ("body_part", "", "unknown"),
    ],
)
def test_words(name: str, said: str, word: str) -> None:
    assert attributes(**{name: said})[name] == word


@pytest.mark.parametrize("nothing", ["", " ", "***", "n/a", "O", "000Y", "REMOVED", "None", "-1"])
def test_what_de_identification_leaves_is_unknown(nothing: str) -> None:
    names = ("sex", "age", "manufacturer", *OTHERS)
    found = attributes(**dict.fromkeys(names, nothing))
    assert set(found.values()) == {"unknown"}


def test_only_what_is_asked_is_answered() -> None:
    assert set(attributes()) == {"sex", "age_band", "manufacturer"}
    assert set(attributes(view="CC")) == {"sex", "age_band", "manufacturer", "view"}
    with pytest.raises(TypeError, match="no attribute colour"):
        attributes(colour="red")


def test_words_of_the_lists_stay_as_they_are() -> None:
    """So that what a header gave can be given in a table."""
    for name, words in OTHERS.items():
        for word in words:
            assert attributes(**{name: word})[name] == word


OTHERS = {
    "model": frozenset(module._MODELS),
    "field_strength": frozenset({"0.5t", "1t", "1.5t", "3t", "7t"}),
    "kvp": frozenset({"0-39", "40-69", "70-89", "90-109", "110-129", "130+"}),
    "view": frozenset({"cc", "mlo", "ml", "lm", "other", "pa", "ap", "lateral"}),
    "laterality": frozenset({"left", "right"}),
    "breast_density": frozenset("abcd"),
    "intent": frozenset({"presentation", "processing"}),
    "weighting": frozenset(
        {"t1", "t2", "flair", "pd", "diffusion", "perfusion", "functional", "angiography"}
    ),
    "contrast": frozenset({"yes", "no"}),
    "body_part": frozenset(
        {"brain", "head", "neck", "chest", "breast", "heart"}
        | {"abdomen", "pelvis", "spine", "limb", "body"}
    ),
}


@pytest.mark.parametrize("name", OTHERS)
@given(st.text())
def test_only_words_of_each_list_pass(name: str, text: str) -> None:
    assert attributes(**{name: text})[name] in OTHERS[name] | {"unknown"}


@given(st.text(), st.text(), st.text(), st.text(), st.text())
def test_only_words_of_the_lists_pass(a: str, b: str, c: str, d: str, e: str) -> None:
    found = attributes(sex=a, age=b, birth_date=c, study_date=d, manufacturer=e)
    assert found["sex"] in {"female", "male", "unknown"}
    assert found["age_band"] in {"0-17", "18-39", "40-59", "60-79", "80+", "unknown"}
    assert found["manufacturer"].isalpha()
    assert len(found["manufacturer"]) < 12


def test_codes_of_views_are_those_of_the_standard() -> None:
    """CID 4014 and 4010 as pydicom has them, and the codes of SRT that they replaced."""
    wanted = {
        "cc": codes.cid4014.CranioCaudal,
        "mlo": codes.cid4014.MedioLateralObliqueProjection,
        "ml": codes.cid4014.MedioLateralProjection,
        "lm": codes.cid4014.LateroMedial,
        "other": codes.cid4014.CaudoCranial,
        "pa": codes.cid4010.PosteroAnterior,
        "ap": codes.cid4010.AnteroPosterior,
        "lateral": codes.cid4010.LateralProjection,
    }
    for word, code in wanted.items():
        assert view_of_code(code.value) == word
        assert view_of_code(mapping["SCT"][code.value]) in (word, "")
    assert view_of_code("R-10242") == "cc"
    assert view_of_code("Smith") == ""
