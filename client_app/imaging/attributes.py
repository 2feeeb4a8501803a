"""Attributes that fairness is measured by, from what headers and tables say: few, coarse, cleaned.

Whatever cannot be trusted is `unknown`; free text never passes, so an attribute cannot carry an
identifier.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date

UNKNOWN = "unknown"

_SEXES = {"m": "male", "male": "male", "f": "female", "female": "female"}
_AGE_BANDS = ((18, "0-17"), (40, "18-39"), (60, "40-59"), (80, "60-79"), (121, "80+"))
_DAYS_PER_YEAR = 365.25
_PER_YEAR = {"Y": 1.0, "M": 12.0, "W": _DAYS_PER_YEAR / 7, "D": _DAYS_PER_YEAR}
# How de-identified files spell a birth date that was taken out.
_PLACEHOLDER = date(1900, 1, 1)
# The first pattern found names the vendor; scanners write their maker's name in dozens of ways.
_VENDORS = {
    "siemens": r"siemens",
    "ge": r"\bge\b|\bgems\b|general electric",
    "philips": r"philips",
    "canon": r"canon|toshiba",
    "fujifilm": r"\bfuji",
    "agfa": r"\bagfa",
    "carestream": r"carestream|kodak",
    "konica": r"konica",
    "hologic": r"hologic|lorad",
    "samsung": r"samsung",
    "shimadzu": r"shimadzu",
    "hitachi": r"hitachi",
    "swissray": r"swissray",
    "varian": r"varian",
    "uih": r"united imaging|\buih\b",
    "mindray": r"mindray",
}


def attributes(
    *,
    sex: str = "",
    age: str = "",
    birth_date: str = "",
    study_date: str = "",
    manufacturer: str = "",
) -> Mapping[str, str]:
    """`sex`, `age_band` and `manufacturer`, each a word of a fixed list.

    Args:
        age: years (`45`), or a DICOM age string (`045Y`, `018M`).
        birth_date: `YYYYMMDD`, used with `study_date` where `age` says nothing.
    """
    return {
        "sex": _SEXES.get(sex.strip().lower(), UNKNOWN),
        "age_band": _age_band(age, birth_date, study_date),
        "manufacturer": _vendor(manufacturer),
    }


def _age_band(age: str, birth_date: str, study_date: str) -> str:
    years = _years(age)
    if years is None:
        years = _years_between(_date(birth_date), _date(study_date))
    if years is None or years < 0:
        return UNKNOWN
    return next((band for limit, band in _AGE_BANDS if years < limit), UNKNOWN)


def _years(age: str) -> float | None:
    match = re.fullmatch(r"(\d{1,3})(?:\.\d+)?\s*([DWMY]?)", age.strip().upper(), re.ASCII)
    if match is None:
        return None
    number, unit = int(match[1]), match[2] or "Y"
    # `000Y` is what de-identification leaves behind; a newborn's age is given in days or weeks.
    if number == 0 and unit == "Y":
        return None
    return number / _PER_YEAR[unit]


def _years_between(birth: date | None, study: date | None) -> float | None:
    if birth is None or study is None or birth == _PLACEHOLDER:
        return None
    had_birthday = (study.month, study.day) >= (birth.month, birth.day)
    return study.year - birth.year - (0 if had_birthday else 1)


def _date(text: str) -> date | None:
    # The old ACR-NEMA form has dots.
    match = re.fullmatch(r"(\d{4})\.?(\d\d)\.?(\d\d)", text.strip(), re.ASCII)
    if match is None:
        return None
    try:
        return date(*map(int, match.groups()))
    except ValueError:
        return None


def _vendor(manufacturer: str) -> str:
    text = manufacturer.lower().replace("_", " ")
    return next((name for name, pattern in _VENDORS.items() if re.search(pattern, text)), UNKNOWN)
