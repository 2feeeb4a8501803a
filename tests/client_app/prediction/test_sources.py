"""Which images are meant, and what is refused with a word on what is wanted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client_app.imaging.set_aside import Reason
from client_app.prediction.sources import find_sources
from federation.schema import ConfigError
from federation.tasks import Selection
from tests.client_app.prediction.phantom import (
    classification_task,
    segmentation_task,
    write_series,
)


def test_a_folder_is_read_as_the_index_reads_it(tmp_path: Path) -> None:
    series = write_series(tmp_path / "in" / "series")
    (tmp_path / "in" / "notes.txt").write_text("no image")
    found = find_sources([str(tmp_path / "in")], segmentation_task(), None)
    (image,) = found.images
    assert image.files == series.image.files
    assert image.shape == series.image.shape
    np.testing.assert_allclose(np.asarray(image.affine), series.affine, atol=1e-4)
    assert [item.reason for item in found.set_aside] == [Reason.NOT_DICOM]


def test_files_of_a_series_make_one_volume(tmp_path: Path) -> None:
    series = write_series(tmp_path / "series", angles=(20, -35, 50))
    files = [str(file) for file in reversed(series.image.files)]
    (image,) = find_sources(files, segmentation_task(), None).images
    assert image.files == series.image.files


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (
            Selection(modalities=frozenset({"MR"})),
            "modality MR; found: 1 × not_for_task .modality CT",
        ),
        (Selection(largest_spacing=2.0), "voxels of at most 2 mm; found: 1 × not_for_task"),
        (Selection(least_extent=500.0), "covering at least 500 mm"),
    ],
)
def test_an_image_of_the_wrong_kind_is_refused_with_what_is_wanted(
    tmp_path: Path, selection: Selection, message: str
) -> None:
    write_series(tmp_path / "series")
    with pytest.raises(ConfigError, match=message):
        find_sources([str(tmp_path / "series")], segmentation_task(selection=selection), None)


def test_a_volume_is_no_radiograph(tmp_path: Path) -> None:
    write_series(tmp_path / "series")
    with pytest.raises(ConfigError, match="wants 2-D images; found: 1 × wrong_dimensions"):
        find_sources([str(tmp_path / "series")], classification_task(), None)


def test_a_damaged_series_is_refused_with_its_reason(tmp_path: Path) -> None:
    series = write_series(tmp_path / "series")
    series.image.files[7].unlink()
    with pytest.raises(ConfigError, match=r"slices_missing|spacing_varies"):
        find_sources([str(series.folder)], segmentation_task(), None)


def test_words_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no file or folder"):
        find_sources([str(tmp_path / "nowhere")], segmentation_task(), None)
    with pytest.raises(ConfigError, match="with --site"):
        find_sources(["1.2.840.1"], segmentation_task(), None)


def test_a_series_that_the_site_knows_is_found_by_its_uid(tmp_path: Path, site: Any) -> None:
    series = write_series(tmp_path / "archive" / "one")
    write_series(tmp_path / "archive" / "two")
    data = site.data.model_copy(update={"root": tmp_path / "archive", "labels": None})
    site = site.model_copy(update={"data": data})
    uid = str(series.datasets[0].SeriesInstanceUID)
    (image,) = find_sources([uid], segmentation_task(), site).images
    assert image.files == series.image.files
    with pytest.raises(ConfigError, match=r"no sound image of series 1\.2\.3"):
        find_sources(["1.2.3"], segmentation_task(), site)
