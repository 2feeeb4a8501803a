"""Mammograms are whole DICOM, differ between hospitals, and show the cancers that the table names."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless
from scipy.ndimage import gaussian_filter
from sklearn.metrics import roc_auc_score

from client_app.imaging.phantoms import _dicom, mammography
from client_app.imaging.phantoms.mammography import Breast, Mass

SITES = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folders = [tmp_path_factory.mktemp(f"site{site}") for site in SITES]
    for site, folder in zip(SITES, folders, strict=True):
        mammography.write_phantom(folder, patients=25, site=site, seed=0)
    return folders


def shown(folder: Path) -> list[pydicom.Dataset]:
    found = [pydicom.dcmread(path) for path in sorted(folder.rglob("*.dcm"))]
    return [dataset for dataset in found if dataset.PresentationIntentType == "FOR PRESENTATION"]


def labels(folder: Path) -> list[dict[str, str]]:
    with (folder / "labels.csv").open() as table:
        return list(csv.DictReader(table))


def test_each_patient_has_views_of_both_breasts(hospitals: list[Path]) -> None:
    for folder in hospitals:
        views: dict[str, list[tuple[str, str]]] = {}
        for dataset in shown(folder):
            views.setdefault(dataset.PatientID, []).append(
                (dataset.ImageLaterality, dataset.ViewPosition)
            )
        assert len(views) == 25
        full = sum(len(found) == 4 for found in views.values())
        assert 15 <= full < 25, "some lack a view"
        assert all(len(set(found)) == len(found) for found in views.values())


def test_codes_and_words_of_a_view_agree(hospitals: list[Path]) -> None:
    meaning = {"CC": "399162004", "MLO": "399368009"}
    for dataset in shown(hospitals[0]):
        assert dataset.ViewCodeSequence[0].CodeValue == meaning[dataset.ViewPosition]


def test_rows_name_each_breast_once(hospitals: list[Path]) -> None:
    for folder in hospitals:
        rows = labels(folder)
        breasts = [(row["patient"], row["laterality"]) for row in rows]
        assert len(set(breasts)) == len(breasts)
        # A view may be missing, not the breast from the table.
        assert {(d.PatientID, d.ImageLaterality) for d in shown(folder)} <= set(breasts)
        cancers = [row["patient"] for row in rows if row["label"] == "cancer"]
        assert 4 <= len(cancers) == len(set(cancers)) <= 20, "one breast at most"
        assert {row["label"] for row in rows} == {"no_cancer", "cancer"}
        assert {row["breast_density"] for row in rows} <= set("abcd")
    assert {row["breast_density"] for folder in hospitals for row in labels(folder)} == set("abcd")


def test_hospitals_differ(hospitals: list[Path]) -> None:
    found = [shown(folder) for folder in hospitals]
    assert len({datasets[0].Manufacturer for datasets in found}) == 4
    assert {datasets[0].BitsStored for datasets in found} == {12, 14, 16}
    inverted = [datasets[0].PhotometricInterpretation == "MONOCHROME1" for datasets in found]
    assert sum(inverted) == 1
    syntaxes = {datasets[0].file_meta.TransferSyntaxUID for datasets in found}
    assert {JPEG2000Lossless, JPEGLSLossless} < syntaxes
    assert mammography.hospital(4).compression == RLELossless
    raw = [len(list(folder.rglob("*.dcm"))) - len(shown(folder)) for folder in hospitals]
    assert raw[0] == raw[3] == 0 < min(raw[1], raw[2])


def upright(dataset: pydicom.Dataset) -> NDArray[np.float64]:
    """Brightness 0 … 1, dense tissue bright, chest wall in the first column."""
    pixels: NDArray[np.float64] = dataset.pixel_array / (2**dataset.BitsStored - 1)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        pixels = 1 - pixels
    return pixels[:, ::-1] if dataset.ImageLaterality == "R" else pixels


def test_breasts_lie_at_the_chest_wall_and_letters_in_the_far_corner(hospitals: list[Path]) -> None:
    for folder in hospitals:
        for dataset in shown(folder):
            picture = upright(dataset)
            assert picture.shape == (mammography.ROWS, mammography.COLUMNS)
            assert picture[60:100, :20].mean() > picture[120:, 110:].mean() + 0.1
            assert picture[:16, 90:].max() > 0.95, "the marker"
            assert picture[18:, :100].max() > picture[18:, 110:].max()


def test_what_is_compressed_is_what_was_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for site in (1, 3, 4):
        mammography.write_phantom(tmp_path / "packed" / str(site), patients=2, site=site, seed=5)
    packed = [d.pixel_array for d in shown(tmp_path / "packed")]
    save = _dicom.save
    monkeypatch.setattr(
        mammography, "save", lambda dataset, path, compression=None: save(dataset, path)
    )
    for site in (1, 3, 4):
        mammography.write_phantom(tmp_path / "plain" / str(site), patients=2, site=site, seed=5)
    plain = [d.pixel_array for d in shown(tmp_path / "plain")]
    assert len(plain) == len(packed) > 15
    assert all(np.array_equal(a, b) for a, b in zip(packed, plain, strict=True))


@pytest.mark.parametrize("view", ["CC", "MLO"])
def test_a_mass_is_bright_where_it_lies_in_both_views(view: mammography.View) -> None:
    mass = Mass(55, {"CC": 20, "MLO": -25}, radius=8, strength=0.4, spiculated=True)
    ill, well = (Breast(110, 80, 1, masses) for masses in ((mass,), ()))
    difference = np.mean(
        [
            mammography.render(np.random.default_rng(seed), ill, view, spacing=1.5)
            - mammography.render(np.random.default_rng(seed), well, view, spacing=1.5)
            for seed in range(10)
        ],
        axis=0,
    )
    row, column = np.unravel_index(difference.argmax(), difference.shape)
    assert column * 1.5 == pytest.approx(55, abs=4)
    lower = 8 if view == "MLO" else 0  # the breast hangs
    above = (mammography.ROWS - 1) / 2 * 1.5 - row * 1.5 - lower
    assert above == pytest.approx(mass.heights[view], abs=6)


def test_cancers_can_be_told_by_how_their_edge_scatters() -> None:
    """Around the brightest spot, spicules leave fine detail that a smooth edge does not."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[: mammography.ROWS, : mammography.COLUMNS]
    detail, truth = [], []
    for _ in range(80):
        spiculated = bool(rng.random() < 0.5)
        mass = Mass(55, {"CC": 0, "MLO": 0}, 8, 0.3, spiculated)
        picture = mammography.render(rng, Breast(110, 80, 0, (mass,)), "CC", spacing=1.5)
        near = np.hypot(rows * 1.5 - 119, columns * 1.5 - 55) < 18
        spot = np.where(near, gaussian_filter(picture, 3), 0).argmax()
        row, column = np.unravel_index(spot, picture.shape)
        away = np.hypot(rows - row, columns - column) * 1.5
        fine = picture - gaussian_filter(picture, 2)
        detail.append(fine[(away > 10) & (away < 15)].std())
        truth.append(spiculated)
    assert roc_auc_score(truth, detail) > 0.85
