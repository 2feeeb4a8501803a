from __future__ import annotations

import logging
import warnings
from pathlib import Path

import pytest

from client_app.imaging.set_aside import Reason, SetAside, silenced


def test_path_stays_out_of_what_is_printed() -> None:
    item = SetAside(Path("Canary/1.dcm"), Reason.TRUNCATED, "1 of 2 bytes")
    assert "Canary" not in f"{item!r} {item}"


# Modules log under names of their own, below their package's.
@pytest.mark.parametrize("name", ["pydicom", "pydicom.pixels.decoders.base", "highdicom.base"])
def test_silence_ends_where_it_began(name: str, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger(name)
    with silenced():
        logger.warning("canary")
        warnings.warn("canary", stacklevel=1)
    assert caplog.text == ""
    logger.warning("heard again")
    assert "heard again" in caplog.text
