"""`hospital index`: what it counts, what it shows, and what it keeps to itself."""

from __future__ import annotations

import base64
import csv
import itertools
import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import matplotlib.image
import nibabel
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff
from typer.testing import CliRunner

from client_app.cli import app
from client_app.imaging.header import Kind
from client_app.imaging.image import Image
from client_app.imaging.index import Index, MaskFile
from client_app.imaging.set_aside import Reason, SetAside
from client_app.overview import page
from client_app.overview.screen import write_rejected
from client_app.overview.tally import spacing, spacing_bins, tally
from client_app.overview.thumbnail import middle_slice, thumbnail
from client_app.private_file import printable, write_private
from federation.schema import ConfigError
from tests.client_app.imaging.samples import radiograph, volume

Affine = tuple[tuple[float, ...], ...]
runner = CliRunner()


class FakeIndex:
    """Gives what it is told, in the order of a real one."""

    def __init__(
        self,
        images: list[Image] | None = None,
        set_aside: list[SetAside] | None = None,
        masks: list[MaskFile] | None = None,
    ) -> None:
        self._images = sorted(
            images or [], key=lambda i: (i.patient, i.study, i.series, i.volume, i.files[0])
        )
        self._set_aside, self._masks = set_aside or [], masks or []
        self.files, self.read = len(self._images) + len(self._set_aside), 1

    def images(self) -> Iterator[Image]:
        return iter(self._images)

    def masks(self) -> Iterator[MaskFile]:
        return iter(self._masks)

    def set_aside(self) -> Iterator[SetAside]:
        return iter(self._set_aside)


def index(*args: Any) -> Index:
    return cast(Index, FakeIndex(*args))


def affine(*voxel: float, shear: float = 0.0) -> Affine:
    matrix = np.diag([*voxel, 1.0])
    matrix[1, 2] = shear
    return tuple(map(tuple, matrix.tolist()))


def image(number: int, **fields: Any) -> Image:
    given: dict[str, Any] = {
        "kind": Kind.PLANES,
        "patient": f"pseudonym-{number}",
        "study": f"study-{number}",
        "series": f"series-{number}",
        "files": (Path(f"/secret/Doe^John/{number}.dcm"),),
        "shape": (4, 5, 2),
        "modality": "MR",
        "planes": ((0, 0), (0, 1)),
        "affine": affine(1, 1, 3),
        "attributes": {"manufacturer": "siemens", "sex": "female", "age_band": "40-59"},
    }
    return Image(**(given | fields))


# --- counting -------------------------------------------------------------------------------------


def test_patients_studies_series_and_volumes_are_counted_apart() -> None:
    first = image(1)
    images = [
        first,
        replace(first, volume=1, volumes=2),  # the same series
        image(2, patient=first.patient, study=first.study),  # another series of that study
        image(3, patient=first.patient),  # another study
        image(4),
        image(5, kind=Kind.NIFTI, study="", series="", modality="", shape=(4, 4, 4)),
    ]
    found = tally([(Path("/secret"), index(images))])
    assert (found.patients, found.studies, found.series_count, found.images) == (3, 3, 4, 6)
    assert found.kinds == {"planes": 5, "nifti": 1}
    assert found.modalities == {"MR": 5, "not stated": 1}
    # a series of two volumes is one series
    assert found.series["manufacturer"] == {"siemens": 5}
    assert (found.files, found.read, found.not_read) == (6, 1, 5)


def test_one_patient_below_two_roots_is_one() -> None:
    found = tally([(Path("/a"), index([image(1)])), (Path("/b"), index([image(1)]))])
    assert (found.patients, found.images) == (1, 2)


def test_what_was_set_aside_is_counted_by_reason_the_most_frequent_first() -> None:
    aside = [
        SetAside(Path("/r/a"), Reason.EMPTY),
        SetAside(Path("/r/b"), Reason.TRUNCATED, "131,072 of 524,288 bytes"),
        SetAside(Path("/r/c"), Reason.TRUNCATED, "other"),
    ]
    found = tally([(Path("/r"), index([], aside))])
    assert [(r, left.count) for r, left in found.set_aside.items()] == [
        (Reason.TRUNCATED, 2),
        (Reason.EMPTY, 1),
    ]
    assert found.set_aside[Reason.TRUNCATED].example == aside[1]


def test_spacing_is_along_the_normal_also_under_a_tilted_gantry() -> None:
    tilted = image(1, affine=affine(0.5, 0.5, 3, shear=2.0))  # |third column| is 3.6
    assert spacing(tilted) == pytest.approx((0.5, 3.0))
    nifti = image(1, kind=Kind.NIFTI, affine=affine(5, 1, 1.2))  # its slices lie along x
    assert spacing(nifti) == pytest.approx((1.2, 5.0))
    projection = image(1, kind=Kind.RADIOGRAPH, affine=None, planes=(), pixel_spacing=(0.1, 0.1))
    assert spacing(projection) == (0.1, None)


def test_spacings_fall_into_bins_and_a_rounding_error_does_not_move_them() -> None:
    bins = spacing_bins()
    for size, name in ((0.05, bins[0]), (1.0, "1–1.5 mm"), (0.9999999, "1–1.5 mm"), (30, bins[-1])):
        found = tally([(Path("/"), index([image(1, affine=affine(size, size, 2))]))])
        assert found.series["in_plane"] == {name: 1}


def test_examples_are_spread_over_modality_and_manufacturer_and_stay_the_same() -> None:
    many = [image(n) for n in range(100)]
    few = [image(n, modality="CT", attributes={"manufacturer": "ge"}) for n in range(100, 103)]
    found = tally([(Path("/"), index(many + few))], examples=10)
    assert [i.modality for i in found.examples] == ["CT"] * 3 + ["MR"] * 7
    assert len({i.patient for i in found.examples}) == 10
    assert found.examples == tally([(Path("/"), index(few + many))], examples=10).examples
    one = tally([(Path("/"), index([image(1)])), (Path("/"), index([image(1)]))], examples=3)
    assert len(one.examples) == 2  # equal images do not trip the choice


# --- pictures -------------------------------------------------------------------------------------


@pytest.fixture
def head(tmp_path: Path) -> tuple[Path, np.ndarray[Any, Any]]:
    """RAS+, 3 mm slices; brighter to anterior, and a bright block on the patient's right."""
    voxels = np.zeros((10, 12, 5), dtype=np.float32)
    voxels += np.arange(12)[None, :, None]
    voxels[7:, 5:7] = 60  # x+ is right
    path = tmp_path / "head.nii.gz"
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1.0, 1.0, 3.0, 1.0])), path)
    return path, voxels


def nifti_image(path: Path) -> Image:
    file = nibabel.load(path)
    rows = tuple(map(tuple, file.affine.tolist()))
    return image(1, kind=Kind.NIFTI, files=(path,), shape=file.shape, affine=rows, planes=())


def test_an_axial_slice_has_anterior_on_top_and_the_patients_right_at_the_left(
    head: tuple[Path, np.ndarray[Any, Any]],
) -> None:
    shown, (down, across), plane = middle_slice(nifti_image(head[0]))
    assert (plane, shown.shape, down, across) == ("axial", (12, 10), 1.0, 1.0)
    assert shown[0, 5] == 11  # anterior
    assert shown[-1, 5] == 0
    assert (shown[5:7, :3] == 60).all()  # right
    assert not (shown[:, 3:] == 60).any()


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
def test_the_picture_does_not_depend_on_how_the_voxels_are_stored(
    head: tuple[Path, np.ndarray[Any, Any]], axes: tuple[int, ...], tmp_path: Path
) -> None:
    """All 48 orientations that a file can have, made with nibabel."""
    path, voxels = head
    wanted, spacing_wanted, _ = middle_slice(nifti_image(path))
    start = np.diag([1.0, 1.0, 3.0, 1.0])
    for signs in itertools.product((1, -1), repeat=3):
        turn = np.array(list(zip(axes, signs, strict=True)))
        stored = apply_orientation(voxels, turn)
        moved = start @ inv_ornt_aff(turn, voxels.shape)
        turned = tmp_path / "turned.nii"
        nibabel.save(nibabel.Nifti1Image(stored, moved), turned)
        shown, millimetres, plane = middle_slice(nifti_image(turned))
        assert plane == "axial"
        assert millimetres == pytest.approx(spacing_wanted)
        np.testing.assert_array_equal(shown, wanted)


def test_thumbnails_keep_proportions_in_millimetres(tmp_path: Path) -> None:
    path = tmp_path / "wide.nii"
    voxels = np.random.default_rng(0).normal(size=(20, 20, 3)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([4.0, 2.0, 9.0, 1.0])), path)
    picture = thumbnail(nifti_image(path))
    assert (picture.width, picture.height) == (112, 56)
    content = base64.b64decode(picture.uri.removeprefix("data:image/png;base64,"))
    png = tmp_path / "shown.png"
    png.write_bytes(content)
    assert matplotlib.image.imread(png).shape[:2] == (56, 112)


def test_an_image_that_cannot_be_read_shows_its_reason_and_quotes_nothing(tmp_path: Path) -> None:
    gone = thumbnail(nifti_image_of(tmp_path / "Doe^John.nii"))
    assert gone.uri == ""
    assert gone.failure
    assert "Doe" not in gone.failure


def nifti_image_of(path: Path) -> Image:
    return image(1, kind=Kind.NIFTI, files=(path,), shape=(4, 4, 4), planes=())


# --- the page -------------------------------------------------------------------------------------


def test_the_page_names_nobody_and_no_file(head: tuple[Path, np.ndarray[Any, Any]]) -> None:
    aside = [SetAside(Path("/secret/Doe^John/x.dcm"), Reason.EMPTY, "0 bytes")]
    images = [nifti_image(head[0]), image(2), image(3, note="gantry tilted by 12 degrees")]
    found = tally([(Path("/secret"), index(images, aside))], examples=5)
    text = page.render(found)
    for name in ("Doe", "secret", "pseudonym-", "study-", "series-1", ".dcm", "nii", str(head[0])):
        assert name not in text
    assert "For this hospital's eyes only" in text
    assert "shows images of patients" in text
    assert text.count("<figure>") == 3
    assert text.count("data:image/png") == 1  # the other two have no pixels: their reason is shown
    assert Reason.EMPTY.remedy in text.replace("&#39;", "'")
    assert "gantry tilted by 12 degrees" in text


def test_the_page_loads_nothing_and_escapes_what_comes_from_files() -> None:
    odd = image(1, attributes={"manufacturer": "<script>alert(1)</script>"}, note="<b>")
    text = page.render(tally([(Path("/"), index([odd]))]))
    assert "<script" not in text
    assert "<b>" not in text
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)""", text)
    assert "default-src 'none'" in text


def test_an_empty_index_has_a_page() -> None:
    assert "no image here" in page.render(tally([(Path("/"), index())]))


def test_many_words_of_one_attribute_are_folded() -> None:
    counts = {f"model {n:02}": 100 - n for n in range(30)} | {"unknown": 500}
    (chart,) = page.charts({"model": counts})
    assert len(chart.bars) == page.MOST_BARS
    assert chart.bars[-1].word == "20 others"
    assert sum(bar.count for bar in chart.bars) == sum(counts.values())


# --- files and terminals --------------------------------------------------------------------------


def test_private_files_are_whole_mode_0600_and_replace_only_where_told(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_private(path, b"one")
    write_private(path, b"two")
    with pytest.raises(ConfigError, match="is there already"):
        write_private(path, b"three", replace=False)
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_nothing_that_a_terminal_obeys_is_shown() -> None:
    assert printable("a\x1b[31mb\nc\u202ed") == "a\\x1b[31mb\\nc\\u202ed"
    assert printable(os.fsdecode(b"caf\xe9")) == "caf\\udce9"
    assert printable("Größe 3 µm") == "Größe 3 µm"


def test_rejected_files_are_rows_that_no_spreadsheet_runs(tmp_path: Path) -> None:
    items = [
        SetAside(Path("=cmd()"), Reason.EMPTY),
        SetAside(Path("/r/a,b\nc"), Reason.TRUNCATED, "1 of 2 bytes"),
    ]
    assert write_rejected(tmp_path / "r.csv", items) == 2
    rows = list(csv.DictReader((tmp_path / "r.csv").open(newline="")))
    assert [row["path"] for row in rows] == ["'=cmd()", "/r/a,b\\nc"]
    assert rows[1]["reason"] == "truncated"
    assert rows[1]["remedy"] == Reason.TRUNCATED.remedy


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    root = tmp_path / "archive"
    for number in range(3):
        radiograph(root / f"Doe^{number}" / "a.dcm", f"CANARY-{number}", edge=16)
    (root / "notes.txt").write_text("no image")
    (root / "empty.dcm").touch()
    (root / os.fsdecode(b"[bold] \x1b[2Jcaf\xe9")).write_bytes(b"no image")
    return root


def invoke(*arguments: object) -> str:
    result = runner.invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_command_says_what_there_is_and_reads_nothing_twice(
    archive: Path, tmp_path: Path
) -> None:
    state, report, rejected = tmp_path / "state", tmp_path / "o.html", tmp_path / "r.csv"
    said = invoke("index", archive, "--state", state, "--report", report, "--rejected", rejected)
    assert "6 files: 5 read now, 1 needed no reading" in said  # an empty file is not read
    assert "3 images of 3 patients" in said
    assert "empty.dcm" in said
    assert "\x1b" not in said
    assert stat.S_IMODE((state / "pseudonym.key").stat().st_mode) == 0o600
    for written in (report, rejected):
        assert stat.S_IMODE(written.stat().st_mode) == 0o600
    text = report.read_text()
    assert text.count("data:image/png") == 3
    for canary in ("CANARY", "Canary", "Doe", str(archive)):
        assert canary not in text
    assert len(list(csv.DictReader(rejected.open(newline="")))) == 3

    again = json.loads(invoke("index", archive, "--state", state, "--json"))
    assert (again["files"], again["read"], again["not_read"]) == (6, 0, 6)
    assert sum(again["set_aside"].values()) == 3
    assert again["set_aside"]["empty"] == 1
    assert "archive" not in json.dumps(again)


def test_each_folder_has_an_index_of_its_own(archive: Path, tmp_path: Path) -> None:
    volume(tmp_path / "nifti" / "images" / "a.nii", (8, 8, 8))
    said = json.loads(
        invoke("index", archive, tmp_path / "nifti", "--state", tmp_path / "state", "--json")
    )
    assert said["images_by_kind"] == {"radiograph": 3, "nifti": 1}
    assert len(list((tmp_path / "state" / "roots").iterdir())) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nowhere"], "there is no folder"),
        (["archive", "--report", "archive/o.html"], "would lie among the images"),
        (["archive", "--rejected", "."], "is a folder"),
        ([], "there is no site configuration"),
    ],
)
def test_wrong_input_is_answered_in_one_line(
    archive: Path, options: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(archive.parent)
    with pytest.raises(ConfigError, match=message):
        runner.invoke(app, ["index", *options], catch_exceptions=False)


def test_a_lost_key_is_noticed(archive: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "index.sqlite").touch()
    with pytest.raises(ConfigError, match="restore the key from a backup"):
        runner.invoke(app, ["index", str(archive), "--state", str(state)], catch_exceptions=False)
