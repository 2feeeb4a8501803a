"""The index of the layout `nifti`."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import pytest

from client_app.imaging import nifti
from client_app.imaging.index import update
from client_app.imaging.pseudonym import pseudonym
from client_app.imaging.set_aside import Reason
from federation.schema import ConfigError, Data
from tests.client_app.imaging.samples import KEY, volume


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def data(tmp_path: Path) -> Data:
    (tmp_path / "root/images").mkdir(parents=True)
    return Data(root=tmp_path / "root", layout="nifti")


def test_images_and_masks(data: Data, state: Path) -> None:
    volume(data.root / "images/1.nii.gz", (4, 5, 6, 1))
    volume(data.root / "labels/1.nii.gz", (4, 5, 6))
    (data.root / "dataset.json").write_text("{}")
    index = update(data, state=state, key=KEY)
    image, mask = index.entries
    assert (image.shape, mask.shape) == ((4, 5, 6), (4, 5, 6))
    assert image.patient == pseudonym(KEY, "1.nii.gz")
    assert mask.patient == ""
    assert index.set_aside == ()


def test_bad_files(data: Data, state: Path) -> None:
    images = data.root / "images"
    volume(images / "good.nii")
    whole = (images / "good.nii").read_bytes()
    (images / "empty.nii.gz").touch()
    (images / "text.nii.gz").write_text("not gzip, not NIfTI")
    (images / "readme.txt").write_text("hello")
    (images / "short.nii").write_bytes(whole[:-10])
    (images / "header_cut.nii.gz").write_bytes(gzip.compress(whole)[:40])
    (images / "nonsense.nii.gz").write_bytes(gzip.compress(random.Random(0).randbytes(400)))
    index = update(data, state=state, key=KEY)
    assert [entry.path.name for entry in index.entries] == ["good.nii"]
    found = {str(item.path.relative_to(data.root)): item.reason for item in index.set_aside}
    assert found == {
        "images/empty.nii.gz": Reason.EMPTY,
        "images/text.nii.gz": Reason.CORRUPT,
        "images/readme.txt": Reason.NOT_NIFTI,
        "images/short.nii": Reason.TRUNCATED,
        "images/header_cut.nii.gz": Reason.CORRUPT,
        "images/nonsense.nii.gz": Reason.CORRUPT,
    }


def test_table_of_patients(data: Data, state: Path) -> None:
    for name in ("1", "2", "3"):
        volume(data.root / f"images/{name}.nii.gz")
    table = data.root / "patients.csv"
    table.write_text("file,patient,sex,age\n1.nii.gz,ANNA,F,44\n2.nii.gz,ANNA,F,45\n")
    data = data.model_copy(update={"patients": table})
    index = update(data, state=state, key=KEY)
    assert [entry.patient for entry in index.entries] == [pseudonym(KEY, "ANNA")] * 2
    assert index.entries[0].attributes["age_band"] == "40-59"
    found = {str(item.path.relative_to(data.root)): item.reason for item in index.set_aside}
    assert found == {"images/3.nii.gz": Reason.NO_PATIENT}
    assert b"ANNA" not in (state / "index.sqlite").read_bytes()

    table.write_text("file,patient\n1.nii.gz,BERTA\n2.nii.gz,ANNA\n3.nii.gz,ANNA\n")
    again = update(data, state=state, key=KEY)
    assert again.entries[0].patient == pseudonym(KEY, "BERTA")
    assert len(again.entries) == 3

    table.write_text("file,patient\n1.nii.gz,BERTA\n1.nii.gz,ANNA\n")
    with pytest.raises(ConfigError, match="line 3") as refusal:
        update(data, state=state, key=KEY)
    assert "ANNA" not in str(refusal.value)


def test_reads_no_voxels(data: Data, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume(data.root / "images/1.nii.gz")

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("voxels were read")

    monkeypatch.setattr(nifti.nibabel.arrayproxy.ArrayProxy, "__array__", fail)
    monkeypatch.setattr(nifti.nibabel.arrayproxy.ArrayProxy, "_get_scaled", fail)
    assert len(update(data, state=state, key=KEY).entries) == 1
