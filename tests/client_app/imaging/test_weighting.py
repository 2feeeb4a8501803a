"""What an MR series shows, on protocols as they are named and timed in hospitals."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_app.imaging.weighting import weighting_of


@pytest.mark.parametrize(
    ("description", "weighting"),
    [
        ("t1_mprage_sag_p2_iso", "t1"),
        ("MPRAGE", "t1"),
        ("Ax T1 FLAIR +C", "t1"),
        ("SAG FSPGR BRAVO", "t1"),
        ("ep2d_diff_3scan_trace_p2_ADC", "diffusion"),
        ("DTI ALL 20d", "diffusion"),
        ("AX T2 FLAIR", "flair"),
        ("t2_tirm_tra_dark-fluid", "flair"),
        ("t2_tse_tra", "t2"),
        ("Axial EPI-FMRI (Interleaved I to S)", "functional"),
        ("3DpCASL", "perfusion"),
        ("TOF_3D_multi-slab", "angiography"),
        ("PD_TSE", "pd"),
        ("HippoCrop", "unknown"),
        ("", "unknown"),
    ],
)
def test_names(description: str, weighting: str) -> None:
    assert weighting_of(description=description) == weighting


@pytest.mark.parametrize(
    ("said", "weighting"),
    [
        ({"sequence": ("SE",), "repetition_time": 500, "echo_time": 10}, "t1"),
        ({"sequence": ("SE", "SK"), "repetition_time": 4000, "echo_time": 100}, "t2"),
        ({"sequence": ("SE",), "repetition_time": 3000, "echo_time": 20}, "pd"),
        (
            {
                "sequence": ("SE", "IR"),
                "repetition_time": 9000,
                "echo_time": 120,
                "inversion_time": 2500,
            },
            "flair",
        ),
        (
            {
                "sequence": ("GR", "IR"),
                "repetition_time": 2300,
                "echo_time": 2.98,
                "inversion_time": 900,
            },
            "t1",
        ),
        ({"sequence": ("EP", "GR"), "repetition_time": 2000, "echo_time": 30}, "functional"),
        ({"sequence": ("EP", "SE"), "repetition_time": 6000, "echo_time": 90}, "unknown"),
        ({"image_type": ("ORIGINAL", "PRIMARY", "DIFFUSION", "NONE")}, "diffusion"),
        ({"image_type": ("DERIVED", "PRIMARY", "M", "ADC")}, "diffusion"),
        ({"sequence": ("SE",), "repetition_time": 500}, "unknown"),
    ],
)
def test_types_and_timing(said: dict[str, Any], weighting: str) -> None:
    assert weighting_of(**said) == weighting


def test_a_name_goes_before_the_timing() -> None:
    said = {"sequence": ("SE",), "repetition_time": 500.0, "echo_time": 10.0}
    assert weighting_of(description="AX T2", **said) == "t2"


@given(st.text(), st.lists(st.text()))
def test_only_words_of_the_list(description: str, types: list[str]) -> None:
    words = {"t1", "t2", "flair", "pd", "diffusion", "perfusion", "functional", "angiography"}
    assert weighting_of(description=description, image_type=types) in words | {"unknown"}
