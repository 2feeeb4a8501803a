from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import sqlite3
import sys
import time
from pathlib import Path

import pytest

from client_app.imaging import index as index_module
from client_app.imaging import readers, series, survey
from client_app.imaging.header import Kind
from client_app.imaging.image import Image
from client_app.imaging.index import Index, MaskFile, update
from client_app.imaging.pseudonym import keyed_hash, pseudonym
from client_app.imaging.set_aside import Reason, SetAside
from client_app.site import Data
from federation.schema import ConfigError
from tests.client_app.imaging import fake_reader
from tests.client_app.imaging.fake_reader import plane
from tests.client_app.imaging.samples import KEY, OTHER_KEY, volume

Contents = tuple[list[Image], list[MaskFile], list[SetAside]]


@pytest.fixture
def data(tmp_path: Path) -> Data:
    (tmp_path / "root").mkdir()
    return Data(root=tmp_path / "root", layout="dicom")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Headers from `fake_reader`; the pool of processes is the real one."""
    monkeypatch.setattr(readers, "READER", fake_reader.NAME)


def contents(index: Index) -> Contents:
    return list(index.images()), list(index.masks()), list(index.set_aside())


def look(data: Data, state: Path, **options: float) -> Contents:
    with update(data, state=state, key=KEY, workers=2, **options) as index:  # type: ignore[arg-type]
        return contents(index)


def names(images: list[Image], data: Data) -> list[list[str]]:
    return [[str(file.relative_to(data.root)) for file in image.files] for image in images]


def reasons(items: list[SetAside], data: Data) -> dict[str, Reason]:
    found = {str(item.path.relative_to(data.root)): item.reason for item in items}
    assert len(found) == len(items)
    return found


def tag(purpose: str, uid: str) -> str:
    return keyed_hash(KEY, purpose, uid)[:16].hex()


def scan(data: Data, name: str = "s", *, slices: int = 3, **said: str) -> None:
    """A series whose files are not in the order of their planes."""
    for number in range(slices):
        plane(data.root / f"{name}/{number}", -number % slices, series=name, **said)  # type: ignore[arg-type]


@pytest.mark.usefixtures("fake")
def test_what_an_image_tells(data: Data, state: Path) -> None:
    scan(data, "ct", sex="female", view="unknown")
    plane(data.root / "xray", 0.0, kind="radiograph", patient=" P1 ", series="X", sex="female")
    plane(data.root / "seg", 0.0, kind="segmentation", series="ct")
    (volume, xray), (mask,), aside = look(data, state)
    if volume.kind is Kind.RADIOGRAPH:
        volume, xray = xray, volume
    assert aside == []
    assert volume.patient == xray.patient == mask.patient == pseudonym(KEY, "P1")
    assert volume.series == tag("series", "ct")
    assert volume.study == tag("study", "P1" and "study of P1")
    assert volume.frame_of_reference == xray.frame_of_reference == tag("frame", "1.2.3")
    assert names([volume, xray], data) == [["ct/0", "ct/2", "ct/1"], ["xray"]]
    assert volume.planes == ((0, 0), (1, 0), (2, 0))
    assert volume.shape[-1] == 3
    assert volume.affine is not None
    assert (volume.volume, volume.volumes, volume.modality) == (0, 1, "CT")
    assert volume.attributes == {"sex": "female", "view": "unknown"}
    assert (xray.kind, xray.shape, xray.affine) == (Kind.RADIOGRAPH, (4, 5), None)
    assert mask.file == data.root / "seg"
    assert volume.series in mask.references
    assert mask.structures == ("tumour",)


@pytest.mark.usefixtures("fake")
def test_second_look_reads_only_what_changed(
    data: Data, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        scan(data, name)
    (data.root / "notes.txt").write_text("no header")
    first = look(data, state)
    with monkeypatch.context() as patch:
        patch.setattr(readers, "READER", "nothing:at_all")  # a reader would fail
        with update(data, state=state, key=KEY) as index:
            assert (index.read, index.files) == (0, 10)
            assert contents(index) == first

    grouped: list[int] = []
    monkeypatch.setattr(survey, "volumes", _counted(survey.volumes, grouped))
    plane(data.root / "b/1", 2.0, series="b", patient="P2")
    (data.root / "c/0").unlink()
    plane(data.root / "d/0", 0.0, series="d")
    plane(data.root / "d/1", 1.0, series="d")
    with update(data, state=state, key=KEY) as index:
        assert (index.read, index.files) == (3, 11)
        images, _, aside = contents(index)
    assert grouped == [2, 2, 3]
    assert sorted(names(images, data)) == [["a/0", "a/2", "a/1"], ["c/2", "c/1"], ["d/0", "d/1"]]
    assert [(item.reason, item.detail) for item in aside] == [
        (Reason.PATIENT_CONFLICT, "the files of its series name 2 patients, 3 files"),
        (Reason.CORRUPT, "JSONDecodeError"),
    ]


def _counted(function: object, calls: list[int]) -> object:
    assert callable(function)

    def counted(members: list[object]) -> object:
        calls.append(len(members))
        calls.sort()
        return function(members)

    return counted


@pytest.mark.usefixtures("fake")
def test_a_file_replaced_under_its_old_time_and_size_is_read(data: Data, state: Path) -> None:
    for place in (0.0, 1.0):
        plane(data.root / f"{place}", place, patient="P1")
    before = look(data, state)[0][0].patient
    for place in (0.0, 1.0):
        file = data.root / f"{place}"
        status = file.stat()
        plane(file, place, patient="P2")
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert (file.stat().st_size, file.stat().st_mtime_ns) == (
            status.st_size,
            status.st_mtime_ns,
        )
    assert look(data, state)[0][0].patient == pseudonym(KEY, "P2") != before


@pytest.mark.usefixtures("fake")
def test_files_that_change_while_they_are_read_are_read_again(
    data: Data, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane(data.root / "1", 0.0, kind="radiograph", patient="P1")

    class Late(readers.Readers):
        def read(self, paths: object) -> object:  # type: ignore[override]
            wanted = list(paths)  # type: ignore[call-overload]
            found = list(super().read(wanted))
            plane(data.root / "1", 0.0, kind="radiograph", patient="P22")
            return iter(found)

    with monkeypatch.context() as patch:
        patch.setattr(survey, "Readers", Late)
        assert look(data, state)[0][0].patient == pseudonym(KEY, "P1")
    assert look(data, state)[0][0].patient == pseudonym(KEY, "P22")


@pytest.mark.usefixtures("fake")
def test_copies_are_used_once_wherever_they_lie(data: Data, state: Path) -> None:
    for kind, slices in (("radiograph", 1), ("segmentation", 1), ("planes", 2)):
        for place in ("a", "b", "c"):
            for z in range(slices):
                plane(
                    data.root / f"{place}/{kind}{z}",
                    z,
                    kind=kind,
                    series=kind,
                    instance=f"{kind}{z}",
                )
    images, masks, aside = look(data, state)
    assert sorted(names(images, data)) == [["a/planes0", "a/planes1"], ["a/radiograph0"]]
    assert [mask.file for mask in masks] == [data.root / "a/segmentation0"]
    assert set(reasons(aside, data).values()) == {Reason.DUPLICATE}
    assert len(aside) == 2 * 4
    shutil.rmtree(data.root / "a")
    images, masks, aside = look(data, state)
    assert sorted(names(images, data)) == [["b/planes0", "b/planes1"], ["b/radiograph0"]]
    assert [mask.file for mask in masks] == [data.root / "b/segmentation0"]
    assert len(aside) == 4


@pytest.mark.usefixtures("fake")
def test_planes_without_a_series_are_not_put_together(data: Data, state: Path) -> None:
    for z in (0.0, 1.0):
        plane(data.root / str(z), z, series="")
    images, _, aside = look(data, state)
    assert {image.series for image in images} != {""}
    assert all(len(image.files) == 1 for image in images)
    assert len(images) + len(aside) == 2


@pytest.mark.usefixtures("fake")
def test_images_come_in_order(data: Data, state: Path) -> None:
    for number in range(40):
        patient, name = f"P{number % 7}", f"{number % 11}-{number % 7}"
        plane(data.root / f"{number}", 0.0, kind="radiograph", patient=patient, series=name)
        for z in (0.0, 1.0):
            plane(data.root / f"v{number}/{z}", z, patient=patient, series=f"v{number}")
    images, _, _ = look(data, state)
    order = [
        (image.patient, image.study, image.series, image.volume, os.fsencode(image.files[0]))
        for image in images
    ]
    assert len(order) == 80
    assert order == sorted(order)
    assert {image.kind for image in images[:8]} == {Kind.RADIOGRAPH, Kind.PLANES}, "they are mixed"


@pytest.mark.usefixtures("fake")
def test_words_that_files_of_a_volume_contradict_are_unknown(data: Data, state: Path) -> None:
    plane(data.root / "1", 0.0, sex="female", age_band="40-59")
    plane(data.root / "2", 1.0, sex="male", age_band="40-59")
    (image,), _, _ = look(data, state)
    assert image.attributes == {"sex": "unknown", "age_band": "40-59"}


def _series(monkeypatch: pytest.MonkeyPatch, group: object) -> None:
    monkeypatch.setattr(series, "group", group)


@pytest.mark.usefixtures("fake")
def test_planes_that_make_no_volume_have_their_reason(
    data: Data, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan(data, slices=4)

    def group(headers: list[object]) -> tuple[list[object], list[object]]:
        planes = ((1, 0), (0, 0))
        return [], [series.Rejected(planes, Reason.SLICES_MISSING, "a gap of 3 slices")]

    _series(monkeypatch, group)
    images, _, aside = look(data, state)
    assert images == []
    assert [(item.path.name, item.reason, item.detail) for item in aside] == [
        ("1", Reason.SLICES_MISSING, "a gap of 3 slices, 2 files"),
        ("2", Reason.NO_GEOMETRY, "it has no plane that could be placed, 2 files"),
    ]


@pytest.mark.usefixtures("fake")
def test_grouping_that_fails_costs_its_series_alone(
    data: Data, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan(data, "bad", slices=3)
    scan(data, "good", slices=2)
    sound = series.group

    def group(headers: list[object]) -> object:
        if len(headers) == 3:
            raise ValueError("CANARY")
        return sound(headers)  # type: ignore[arg-type]

    _series(monkeypatch, group)
    images, _, aside = look(data, state)
    assert len(images) == 1
    assert [(item.reason, item.detail) for item in aside] == [
        (Reason.CORRUPT, "ValueError, 3 files")
    ]


@pytest.mark.usefixtures("fake")
def test_a_series_too_large_to_hold_is_not_held(
    data: Data, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "LARGEST", 4)
    scan(data, "large", slices=5)
    scan(data, "good", slices=4)
    images, _, aside = look(data, state)
    assert len(images) == 1
    assert [item.reason for item in aside] == [Reason.TOO_LARGE]


@pytest.mark.usefixtures("fake")
def test_references_by_image_lead_to_its_series(data: Data, state: Path) -> None:
    scan(data, "ct")
    with update(data, state=state, key=KEY) as index:
        known = tag("instance", str(data.root / "ct/1"))
        assert index.series_of_instance(known) == tag("series", "ct")
        assert index.series_of_instance(tag("instance", "never seen")) is None
        assert index.series_of_instance("") is None


@pytest.mark.usefixtures("fake")
def test_progress_counts_files_that_are_read(data: Data, state: Path) -> None:
    scan(data, slices=600)
    told: list[tuple[int, int]] = []
    for _ in range(2):
        update(data, state=state, key=KEY, progress=lambda *now: told.append(now)).close()
        assert told[-1] == (600, 600)
        assert [done for done, _ in told] == sorted(done for done, _ in told)
        assert len(told) == 3


@pytest.mark.usefixtures("fake")
def test_trusts_the_last_look_for_a_while(
    data: Data, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane(data.root / "1", 0.0, kind="radiograph")
    look(data, state)
    plane(data.root / "2", 0.0, kind="radiograph")
    with monkeypatch.context() as patch:
        patch.setattr(survey, "walk", None)  # calling it would fail
        assert len(look(data, state, refresh=600)[0]) == 1
    clock = time.time
    with monkeypatch.context() as patch:
        patch.setattr(index_module.time, "time", lambda: clock() - 3600)
        assert len(look(data, state, refresh=600)[0]) == 2, "the last look lies in the future"
    plane(data.root / "3", 0.0, kind="radiograph")
    with monkeypatch.context() as patch:
        patch.setattr(index_module.time, "time", lambda: clock() + 3600)
        assert len(look(data, state, refresh=600)[0]) == 3


@pytest.mark.usefixtures("fake")
def test_a_look_that_was_cut_short_is_not_trusted(
    data: Data, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan(data)
    look(data, state)
    (data.root / "s/1").unlink()

    def fail(_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(survey, "_group_stale", fail)
        look(data, state)
    images, _, _ = look(data, state, refresh=600)
    assert names(images, data) == [["s/0", "s/2"]]


@pytest.mark.usefixtures("fake")
def test_a_handle_shows_one_moment(data: Data, state: Path) -> None:
    scan(data, "a")
    with update(data, state=state, key=KEY) as index:
        before = contents(index)
        scan(data, "b")
        assert len(look(data, state)[0]) == 2
        assert contents(index) == before


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("change", ["key", "root", "version"])
def test_of_another_origin_everything_is_read_again(
    data: Data, state: Path, tmp_path: Path, change: str
) -> None:
    plane(data.root / "1", 0.0, kind="radiograph")
    look(data, state)
    key = KEY
    if change == "key":
        key = OTHER_KEY
    elif change == "root":
        shutil.copytree(data.root, tmp_path / "other", copy_function=shutil.copy2)
        data = data.model_copy(update={"root": tmp_path / "other"})
    else:
        with sqlite3.connect(state / "index.sqlite") as database:
            database.execute("PRAGMA user_version = 99")
        database.close()
    with update(data, state=state, key=key) as index:
        assert (index.read, index.files) == (1, 1)
        assert [image.patient for image in index.images()] == [pseudonym(key, "P1")]


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
def test_damaged_index_is_made_anew(data: Data, state: Path, suffix: str) -> None:
    scan(data)
    first = look(data, state)
    (state / f"index.sqlite{suffix}").write_bytes(b"damaged " * 1000)
    assert look(data, state) == first


@pytest.mark.usefixtures("fake")
def test_damage_inside_is_found_when_it_is_met(data: Data, state: Path) -> None:
    """Pages that an update does not touch: the reader of the index meets them first."""
    scan(data, slices=400)
    first = look(data, state)
    content = bytearray((state / "index.sqlite").read_bytes())
    page = int.from_bytes(content[16:18], "big")
    for start in range(page, len(content), page):
        if content[start] in (2, 5, 10, 13):  # leave the tree's shape, spoil what it says
            content[start + 1 : start + 8] = b"\xff" * 7
    (state / "index.sqlite").write_bytes(content)
    for _ in range(3):
        try:
            found = look(data, state, refresh=600)
        except ConfigError as error:
            assert "damaged" in str(error)
        else:
            break
    assert found == first


@pytest.mark.usefixtures("fake")
def test_index_is_for_its_owner_alone(data: Data, state: Path) -> None:
    scan(data)
    with update(data, state=state, key=KEY):
        assert state.stat().st_mode & 0o77 == 0
        kept = {file.name: file.stat().st_mode & 0o77 for file in state.iterdir()}
    assert kept.pop("index.sqlite") == 0
    assert set(kept.values()) <= {0}
    assert not {"index.walk"} & kept.keys()


@pytest.mark.usefixtures("fake")
def test_state_below_the_root_is_not_indexed(data: Data) -> None:
    scan(data)
    for _ in range(2):
        images, masks, aside = look(data, data.root / "state")
        assert (len(images), masks, aside) == (1, [], [])


@pytest.mark.usefixtures("fake")
def test_file_that_may_not_be_read_is_tried_each_time(data: Data, state: Path) -> None:
    (data.root / "later").symlink_to(data.root.parent / "later")
    _, _, (item,) = look(data, state)
    assert (item.reason, item.detail) == (Reason.UNREADABLE, "ENOENT")
    plane(data.root.parent / "later", 0.0, kind="radiograph")
    assert len(look(data, state)[0]) == 1


@pytest.mark.usefixtures("fake")
def test_file_that_may_not_be_opened_is_tried_each_time(
    data: Data, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane(data.root / "1", 0.0, kind="radiograph")
    with monkeypatch.context() as patch:
        patch.setattr(readers, "READER", fake_reader.REFUSING)
        _, _, (item,) = look(data, state)
        assert (item.reason, item.detail) == (Reason.UNREADABLE, "EACCES")
    assert len(look(data, state)[0]) == 1


def test_root_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.root"):
        update(Data(root=tmp_path / "gone", layout="dicom"), state=tmp_path / "state", key=KEY)


# Layouts of NIfTI, by their real reader


def test_nifti_images_and_masks(tmp_path: Path, state: Path) -> None:
    data = Data(root=tmp_path / "root", layout="nifti")
    volume(data.root / "images/1.nii.gz", (4, 5, 6, 1))
    volume(data.root / "labels/1.nii.gz", (4, 5, 6))
    volume(data.root / "images/short.nii")
    whole = (data.root / "images/short.nii").read_bytes()
    (data.root / "images/short.nii").write_bytes(whole[:-10])
    (data.root / "images/readme.txt").write_text("hello")
    (data.root / "dataset.txt").write_text("not walked")
    (image,), (mask,), aside = look(data, state)
    assert (image.kind, image.shape, image.files) == (
        Kind.NIFTI,
        (4, 5, 6),
        (data.root / "images/1.nii.gz",),
    )
    assert image.affine is not None
    assert image.patient == pseudonym(KEY, "1.nii.gz")
    assert (mask.patient, mask.references, mask.shape) == ("", ("images/1.nii.gz",), (4, 5, 6))
    assert mask.affine == image.affine
    assert reasons(aside, data) == {
        "images/short.nii": Reason.TRUNCATED,
        "images/readme.txt": Reason.NOT_NIFTI,
    }


def test_table_of_patients_is_part_of_the_origin(tmp_path: Path, state: Path) -> None:
    data = Data(root=tmp_path / "root", layout="nifti", patients=tmp_path / "patients.csv")
    for name in ("1", "2"):
        volume(data.root / f"images/{name}.nii.gz")
    assert data.patients is not None
    data.patients.write_text("file,patient,sex\n1.nii.gz,ANNA,F\n2.nii.gz,ANNA,F\n")
    images, _, _ = look(data, state)
    assert {image.patient for image in images} == {pseudonym(KEY, "ANNA")}
    assert images[0].attributes["sex"] == "female"
    assert b"ANNA" not in (state / "index.sqlite").read_bytes()
    data.patients.write_text("file,patient\n1.nii.gz,ANNA\n2.nii.gz,BERTA\n")
    images, _, _ = look(data, state)
    assert {image.patient for image in images} == {pseudonym(KEY, "ANNA"), pseudonym(KEY, "BERTA")}


def test_bids_files_depend_on_their_neighbours(tmp_path: Path, state: Path) -> None:
    data = Data(root=tmp_path / "root", layout="bids")
    volume(data.root / "sub-1/anat/sub-1_T1w.nii.gz")
    volume(data.root / "derivatives/x/sub-1/anat/sub-1_desc-a_mask.nii.gz")
    sidecar = data.root / "sub-1/anat/sub-1_T1w.json"
    sidecar.write_text(json.dumps({"Manufacturer": "Siemens"}))
    (image,), (mask,), _ = look(data, state)
    assert image.attributes["manufacturer"] == "siemens"
    assert mask.references == ("sub-1/anat/sub-1_T1w.nii.gz",)
    sidecar.write_text(json.dumps({"Manufacturer": "Philips"}))
    (image,), _, _ = look(data, state)
    assert image.attributes["manufacturer"] == "philips"
    image.files[0].unlink()
    images, masks, aside = look(data, state)
    assert (images, masks) == ([], [])
    assert Reason.IMAGE_MISSING in {item.reason for item in aside}


# Killed, and two at once


def _tree(data: Data) -> None:
    for name in range(40):
        scan(data, f"series{name:02d}", slices=6, patient=f"P{name % 9}")
        plane(data.root / f"x{name}", 0.0, kind="radiograph", patient=f"P{name % 9}")


def _update_for_ever(data: Data, state: Path) -> None:
    sys.stderr = None  # type: ignore[assignment]
    readers.READER = fake_reader.NAME
    rounds = 0
    while True:
        rounds += 1
        for path in data.root.glob("*/*" if rounds % 2 else "x*"):
            os.utime(path)
        (data.root / "series00/0").unlink(missing_ok=True)
        update(data, state=state, key=KEY, workers=2).close()
        plane(data.root / "series00/0", 0.0, series="series00", patient="P0")


@pytest.mark.usefixtures("fake")
def test_killed_at_any_moment_it_ends_the_same(data: Data, state: Path, tmp_path: Path) -> None:
    _tree(data)
    expected = look(data, state)
    for moment in (0.1, 0.4, 0.7, 0.9, 1.1, 1.4, 1.7, 2.0, 2.3, 2.7):
        process = multiprocessing.get_context("fork").Process(
            target=_update_for_ever, args=(data, state)
        )
        process.start()
        time.sleep(moment)
        assert process.pid is not None
        assert process.is_alive()
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        plane(data.root / "series00/0", 0.0, series="series00", patient="P0")
        assert look(data, state) == expected
    assert look(data, tmp_path / "in one go") == expected


def _update_some_times(data: Data, state: Path) -> None:
    readers.READER = fake_reader.NAME
    for _ in range(3):
        for path in data.root.glob("x*"):
            os.utime(path)
        update(data, state=state, key=KEY, workers=1).close()


@pytest.mark.usefixtures("fake")
def test_several_processes_at_once(data: Data, state: Path) -> None:
    _tree(data)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_update_some_times, args=(data, state)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    images, _, aside = look(data, state)
    assert (len(images), aside) == (80, [])
    with sqlite3.connect(state / "index.sqlite") as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()
