"""Attributes that fairness is measured by and tasks select by, from what headers and tables say.

Few, coarse, cleaned: each value is a word of a fixed list, whatever cannot be trusted is `unknown`.
Free text never passes, so an attribute cannot carry an identifier.

    sex             female, male
    age_band        0-17, 18-39, 40-59, 60-79, 80+                    (years)
    manufacturer    the makers of `_VENDORS`
    model           the scanners of `_MODELS`
    field_strength  0.5t, 1t, 1.5t, 3t, 7t
    kvp             0-39, 40-69, 70-89, 90-109, 110-129, 130+         (peak kilovolts)
    view            cc, mlo, ml, lm, other; pa, ap, lateral
    laterality      left, right
    breast_density  a, b, c, d                                        (BI-RADS, 5th edition)
    intent          presentation, processing
    weighting       t1, t2, flair, pd, diffusion, perfusion, functional, angiography
    contrast        yes, no
    body_part       brain, head, neck, chest, breast, heart, abdomen, pelvis, spine, limb, body
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
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


# Scanners by what they call themselves, lower case, `_` and `-` as spaces; the first pattern found wins.
_MODELS = {
    # Siemens MR
    "magnetom-espree": r"espree",
    "magnetom-trio": r"trio",
    "magnetom-verio": r"verio",
    "magnetom-skyra": r"skyra",
    "magnetom-prisma": r"prisma",
    "magnetom-vida": r"vida",
    "magnetom-lumina": r"lumina",
    "magnetom-aera": r"aera",
    "magnetom-avanto": r"avanto",
    "magnetom-sola": r"\bsola",
    "magnetom-altea": r"altea",
    "magnetom-symphony": r"symphony",
    "magnetom-sonata": r"sonata",
    "magnetom-allegra": r"allegra",
    "magnetom-terra": r"terra",
    "magnetom-free": r"free\.?(max|star)",
    "biograph": r"biograph",
    # GE MR and CT
    "signa-premier": r"premier",
    "signa-architect": r"architect",
    "signa-artist": r"artist",
    "signa-pioneer": r"pioneer",
    "signa-voyager": r"voyager",
    "discovery-mr750": r"mr ?750",
    "discovery-mr450": r"mr ?450",
    "optima-mr360": r"mr ?360",
    "optima-mr450": r"optima mr",
    "signa-hdx": r"signa hd|hdxt",
    "signa-excite": r"excite",
    "signa": r"signa",
    "revolution-ct": r"revolution",
    "discovery-ct750": r"ct ?750",
    "lightspeed": r"lightspeed",
    "brightspeed": r"brightspeed",
    "optima-ct": r"optima ct|optima ?\d{3}",
    # Philips
    "ingenia-elition": r"elition",
    "ingenia-ambition": r"ambition",
    "ingenia": r"ingenia",
    "achieva": r"achieva",
    "intera": r"intera",
    "gyroscan": r"gyroscan",
    "panorama": r"panorama",
    "brilliance": r"brilliance",
    "ingenuity": r"ingenuity",
    "iqon": r"iqon",
    "ict": r"\bict\b",
    "gemini": r"gemini",
    "microdose": r"microdose",
    # Siemens CT and X-ray
    "somatom-force": r"\bforce\b",
    "somatom-definition": r"definition",
    "somatom-drive": r"\bdrive\b",
    "somatom-sensation": r"sensation",
    "somatom-emotion": r"emotion",
    "somatom-go": r"\bgo\.(now|up|all|top)",
    "naeotom": r"naeotom",
    "mammomat": r"mammomat",
    "ysio": r"ysio",
    "fluorospot": r"fluorospot",
    # Canon
    "vantage-galan": r"galan",
    "vantage-titan": r"titan",
    "vantage-orian": r"orian",
    "aquilion": r"aquilion",
    # Mammography and radiography of others
    "senographe": r"senograph",
    "pristina": r"pristina",
    "selenia": r"selenia|lorad",
    "3dimensions": r"3dimensions",
    "amulet": r"amulet",
    "planmed-clarity": r"clarity",
    "digitaldiagnost": r"digital ?diagnost",
    "drx": r"\bdrx",
    "definium": r"definium",
    "fdr": r"\bfdr",
    "dx-d": r"\bdx d\b",
}
_FIELD_STRENGTHS = {  # tesla
    "0.5t": (0.45, 0.6),
    "1t": (0.9, 1.1),
    "1.5t": (1.4, 1.6),
    "3t": (2.8, 3.1),
    "7t": (6.8, 7.1),
}
_GAUSS = 10_000
_KVP_BANDS = (
    (40, "0-39"),
    (70, "40-69"),
    (90, "70-89"),
    (110, "90-109"),
    (130, "110-129"),
    (400, "130+"),
)
# Of ViewPosition (PS3.3 C.8.7.1 and C.8.11.7), of tables, and of codes (CID 4014 and 4010; SCT, SRT).
_VIEWS = {
    **dict.fromkeys(("cc", "craniocaudal"), "cc"),
    **dict.fromkeys(("mlo", "mediolateraloblique"), "mlo"),
    **dict.fromkeys(("ml", "mediolateral"), "ml"),
    **dict.fromkeys(("lm", "lateromedial"), "lm"),
    **dict.fromkeys(
        ("lmo", "xccl", "xccm", "xcc", "fb", "sio", "iso", "at", "cv", "other", "exaggeratedcc"),
        "other",
    ),
    **dict.fromkeys(("pa", "posteroanterior"), "pa"),
    **dict.fromkeys(("ap", "anteroposterior"), "ap"),
    **dict.fromkeys(("lateral", "lat", "ll", "rl", "leftlateral", "rightlateral"), "lateral"),
}
_VIEW_CODES = {
    **dict.fromkeys(("399162004", "R-10242"), "cc"),
    **dict.fromkeys(("399368009", "R-10226"), "mlo"),
    **dict.fromkeys(("399260004", "R-10224"), "ml"),
    **dict.fromkeys(("399352003", "R-10228"), "lm"),
    **dict.fromkeys(
        ("399099002", "R-10230", "399196006", "399192008", "399101009", "441555000", "399188001"),
        "other",
    ),
    **dict.fromkeys(("272479007", "R-10214"), "pa"),
    **dict.fromkeys(("399348003", "R-10206"), "ap"),
    **dict.fromkeys(("399067008", "399173006", "399198007", "R-10236", "R-10232"), "lateral"),
}
_LATERALITIES = {"l": "left", "left": "left", "r": "right", "right": "right"}
_DENSITY = re.compile(
    r"(?:(?:acr|bi ?rads|category|density|type|class)\W*)*([a-d]|[1-4])", re.ASCII
)
_DENSITIES = {
    "almost entirely fatty": "a",
    "fatty": "a",
    "scattered areas of fibroglandular density": "b",
    "scattered fibroglandular densities": "b",
    "scattered": "b",
    "heterogeneously dense": "c",
    "extremely dense": "d",
}
_INTENTS = {
    "for presentation": "presentation",
    "presentation": "presentation",
    "for processing": "processing",
    "processing": "processing",
}
_WEIGHTINGS = frozenset(
    {"t1", "t2", "flair", "pd", "diffusion", "perfusion", "functional", "angiography"}
)
_YES_NO = {"yes": "yes", "y": "yes", "true": "yes", "1": "yes"} | {
    "no": "no",
    "n": "no",
    "false": "no",
    "0": "no",
}
# BodyPartExamined (PS3.16 annex L) and what is written instead.
_BODY_PARTS = {
    "brain": r"brain|hippocamp|pituitar",
    "breast": r"breast|mamma",
    "heart": r"heart|cardiac|coronar",
    "chest": r"chest|thora|lung|\bribs?\b",
    "abdomen": r"abdom|liver|kidney|pancrea|spleen",
    "pelvis": r"pelvi|prostat|rectum|bladder|uter",
    "spine": r"spine|lumbar|\b[ctl]spine",
    "neck": r"neck|larynx|thyroid",
    "limb": r"knee|leg|foot|ankle|hand|wrist|elbow|shoulder|arm|hip|femur|tibia|extremit|finger",
    "body": r"whole ?body",
    "head": r"head|skull|orbit|\bjaw|\bear|sinus",
}


def attributes(
    *,
    sex: str = "",
    age: str = "",
    birth_date: str = "",
    study_date: str = "",
    manufacturer: str = "",
    **others: str,
) -> Mapping[str, str]:
    """`sex`, `age_band`, `manufacturer` and those of `others`, each a word of its list.

    What is not asked about is not answered: a CT has no `weighting`, not an unknown one.

    Args:
        sex: of DICOM or of a table (`F`, `female`).
        age: years (`45`), or a DICOM age string (`045Y`, `018M`).
        birth_date: `YYYYMMDD`, used with `study_date` where `age` says nothing.
        others: `model`, `field_strength` (tesla or gauss), `kvp`, `view`, `laterality`,
            `breast_density`, `intent`, `weighting` (see `weighting`), `contrast`, `body_part`; as the
            header or a table says it. Words of the lists stay as they are.

    Raises:
        TypeError: there is no such attribute.
    """
    found = {
        "sex": _SEXES.get(_plain(sex), UNKNOWN),
        "age_band": _age_band(age, birth_date, study_date),
        "manufacturer": _first(_VENDORS, manufacturer),
    }
    for name, text in others.items():
        if name not in _CLEANERS:
            raise TypeError(f"there is no attribute {name}")
        found[name] = _CLEANERS[name](text)
    return found


def view_of_code(code: str) -> str:
    """The view that a code value of ViewCodeSequence means; empty if it means none of ours."""
    return _VIEW_CODES.get(code, "")


def _plain(text: str) -> str:
    return text.strip().lower()


def spaced(text: str) -> str:
    return re.sub(r"[_\-^*+/]+", " ", text.lower())


def _first(patterns: Mapping[str, str], text: str) -> str:
    text = spaced(text)
    return next((name for name, pattern in patterns.items() if re.search(pattern, text)), UNKNOWN)


def _word(words: Mapping[str, str]) -> Callable[[str], str]:
    return lambda text: words.get(_plain(text), UNKNOWN)


def _model(text: str) -> str:
    return text if text in _MODELS else _first(_MODELS, text)


def _field_strength(text: str) -> str:
    tesla = _number(_plain(text).removesuffix("t"))
    if tesla is not None and tesla > 100:  # older files say gauss
        tesla /= _GAUSS
    if tesla is None:
        return UNKNOWN
    fits = (word for word, (low, high) in _FIELD_STRENGTHS.items() if low <= tesla <= high)
    return next(fits, UNKNOWN)


def _kvp(text: str) -> str:
    if text in {band for _, band in _KVP_BANDS}:
        return text
    value = _number(text)
    if value is None or value <= 0:
        return UNKNOWN
    return next((band for limit, band in _KVP_BANDS if value < limit), UNKNOWN)


def _view(text: str) -> str:
    return _VIEWS.get(re.sub(r"[\W_]+", "", text.lower()), UNKNOWN)


def _breast_density(text: str) -> str:
    text = re.sub(r"[_\-]+", " ", _plain(text)).replace(".0", "")
    if text in _DENSITIES:
        return _DENSITIES[text]
    match = _DENSITY.fullmatch(text)
    return UNKNOWN if match is None else match[1].translate(str.maketrans("1234", "abcd"))


def _weighting(text: str) -> str:
    return _plain(text) if _plain(text) in _WEIGHTINGS else UNKNOWN


def _body_part(text: str) -> str:
    return text if text in _BODY_PARTS else _first(_BODY_PARTS, text)


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\s*\d{1,6}(\.\d{0,9})?\s*", text, re.ASCII) else None


_CLEANERS: Mapping[str, Callable[[str], str]] = {
    "model": _model,
    "field_strength": _field_strength,
    "kvp": _kvp,
    "view": _view,
    "laterality": _word(_LATERALITIES),
    "breast_density": _breast_density,
    "intent": _word(_INTENTS),
    "weighting": _weighting,
    "contrast": _word(_YES_NO),
    "body_part": _body_part,
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
