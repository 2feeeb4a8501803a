from __future__ import annotations

from pathlib import Path

import pytest

from client_app.imaging.table import read_table
from federation.schema import ConfigError


def rows(path: Path, content: bytes) -> list[dict[str, str]]:
    path.write_bytes(content)
    table = read_table(path, where="data.labels", columns=("patient", "label"), optional=("sex",))
    return [row for _, row in table]


@pytest.mark.parametrize(
    "content",
    [
        b"patient,label\nM\xc3\xbcller,1\n",
        b"\xef\xbb\xbfPatient;Label\r\nM\xc3\xbcller;1\r\n\r\n",
        b" patient\tlabel \nM\xfcller\t 1",
        b'label,"patient"\n1,"M\xc3\xbcller"\n',
    ],
)
def test_as_hospitals_export_it(tmp_path: Path, content: bytes) -> None:
    assert rows(tmp_path / "t.csv", content) == [{"patient": "Müller", "label": "1", "sex": ""}]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"CANARY-1,1\nCANARY-2,0\n",
        b"patient,CANARY\nx,1\n",
        b"patient,patient,label\nCANARY,x,1\n",
        b"patient,label\nCANARY,1,2\n",
        b"patient,label\nCANARY\n",
        b'patient,label\n"CANARY,1\n',
    ],
)
def test_refusals_quote_nothing(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ConfigError, match=r"data\.labels") as refusal:
        rows(tmp_path / "t.csv", content)
    assert "CANARY" not in str(refusal.value)


def test_absent_table(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        list(read_table(tmp_path / "CANARY.csv", where="data.labels", columns=("patient",)))
