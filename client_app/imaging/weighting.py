"""What an MR series shows: its weighting, from its name, its type and its timing."""

from __future__ import annotations

import re
from collections.abc import Iterable

from client_app.imaging.attributes import UNKNOWN, spaced

# What series are called, and what ImageType says. Words that name a purpose stand before words that
# name a contrast; a fluid-attenuated T2 is `flair`, a fluid-attenuated T1 is `t1`.
_SERIES = {
    "diffusion": r"\b(dwi|dti|diff\w*|adc|e?trace\w*|ivim|noddi)\b",
    "perfusion": r"\b(perf\w*|dsc|dce|p?c?asl|3dp?casl|\w*pcasl)\b",
    "functional": r"\b(bold|fmri\w*|rs ?fmri|resting|rest state|task)\b",
    "angiography": r"\b(tof|mra|mrv|angio\w*|mip)\b",
    "t1": r"\b(mprage|mp ?rage|mp2rage|bravo|i?r? ?fspgr|spgr|t1\w*|tfl3d|3d tfe)\b",
    "flair": r"\b(flair\w*|\w*flair|darkfluid|dark fluid)\b",
    "t2": r"\b(t2\w*|ciss|fiesta|haste)\b",
    "pd": r"\b(pd|pdw|proton density)\b",
}
_CONTRASTS = {  # of AcquisitionContrast, PS3.3 C.8.13.3.2, and of ImageType
    "DIFFUSION": "diffusion",
    "ADC": "diffusion",
    "TRACEW": "diffusion",
    "PERFUSION": "perfusion",
    "ASL": "perfusion",
    "FMRI": "functional",
    "TIME_OF_FLIGHT": "angiography",
    "PHASE_CONTRAST": "angiography",
    "FLUID_ATTENUATED": "flair",
    "T1": "t1",
    "T2": "t2",
    "T2_STAR": "t2",
    "PROTON_DENSITY": "pd",
}


def weighting_of(
    *,
    description: str = "",
    image_type: Iterable[str] = (),
    sequence: Iterable[str] = (),
    repetition_time: float | None = None,
    echo_time: float | None = None,
    inversion_time: float | None = None,
) -> str:
    """What an MR series shows, or `unknown`. The first of three that says anything is believed:

    1. its name, which people choose by what they want to see (`_SERIES`);
    2. values of ImageType and AcquisitionContrast that name a contrast (`_CONTRASTS`);
    3. the timing. Echo-planar gradient echo, TE 20 to 60 ms, TR from 1 s: functional. Fluid is nulled
       at TI from 1.6 s with TR from 4 s and TE from 70 ms: flair. Spin echo: TR to 1 s and TE to 30 ms
       t1, TR from 1.5 s and TE from 70 ms t2, TR from 1.5 s and TE to 40 ms pd. Gradient echo with an
       inversion of 0.3 to 1.3 s, or TR to 50 ms and TE to 8 ms: t1 (Bernstein, King and Zhou,
       Handbook of MRI Pulse Sequences, 2004, chapters 14 to 17).

    Args:
        sequence: ScanningSequence and SequenceVariant.
        repetition_time, echo_time, inversion_time: ms.
    """
    text = spaced(description)
    for word, pattern in _SERIES.items():
        if re.search(pattern, text):
            return word
    for name in image_type:
        if (word := _CONTRASTS.get(name.upper(), "")) and not (
            word in ("t1", "t2") and not sequence
        ):
            return word
    return _by_timing(set(sequence), repetition_time, echo_time, inversion_time)


def _by_timing(sequence: set[str], tr: float | None, te: float | None, ti: float | None) -> str:
    if tr is None or te is None:
        return UNKNOWN
    spin = "SE" in sequence
    if "EP" in sequence:
        return "functional" if not spin and 20 <= te <= 60 and tr >= 1000 else UNKNOWN
    if ti is not None and ti >= 1600 and tr >= 4000 and te >= 70:
        return "flair"
    if spin and tr <= 1000 and te <= 30:
        return "t1"
    if spin and tr >= 1500 and not ti:
        return "t2" if te >= 70 else "pd" if te <= 40 else UNKNOWN
    if "GR" in sequence and ((ti and 300 <= ti <= 1300) or tr <= 50) and te <= 8:
        return "t1"
    return UNKNOWN
