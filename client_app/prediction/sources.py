"""Which images a person means: folders, files, or the UID of a series that the site's index knows."""

from __future__ import annotations

import re
import secrets
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from client_app.imaging.cohort import require_selected
from client_app.imaging.image import Image
from client_app.imaging.index import update
from client_app.imaging.layouts import IMAGES, detect, is_nifti
from client_app.imaging.pseudonym import KEY_BYTES, open_key, uid_hash
from client_app.imaging.set_aside import SetAside, Unfit
from client_app.site import Data, Site
from federation.schema import ConfigError
from federation.tasks import Task

_UID = r"[0-9]+(\.[0-9]+)+"  # PS3.5, 9.1
_NIFTI = (".nii", ".nii.gz")
_MOST_SAID = 5  # reasons in one line


@dataclass(frozen=True)
class Sources:
    """Images that serve the task, and what lies beside them and does not."""

    images: tuple[Image, ...]
    set_aside: tuple[SetAside, ...]


def find_sources(wanted: Sequence[str], task: Task, site: Site | None) -> Sources:
    """The images behind some words: a folder, a file, or a SeriesInstanceUID.

    What is named is read like a hospital's disk: series are grouped into volumes and checked, and what
    is not sound is set aside with its reason.

    Raises:
        ConfigError: a word that means nothing here, or no image among them that serves the task; the
            text says why and what the task wants.
    """
    paths: list[Path] = []
    uids: list[str] = []
    for word in wanted:
        if Path(word).exists():
            paths.append(Path(word).resolve())
        elif re.fullmatch(_UID, word):
            uids.append(word)
        else:
            raise ConfigError(f"there is no file or folder {word}, and it is no SeriesInstanceUID")
    found, set_aside = _read(paths)
    if uids:
        found += _known(uids, site)
    images: list[Image] = []
    for image in {(image.files, image.planes): image for image in found}.values():
        try:
            require_selected(image, task)
            images.append(image)
        except Unfit as unfit:
            set_aside.append(SetAside(image.files[0], unfit.reason, unfit.detail))
    if not images:
        raise ConfigError(
            f"nothing here serves task {task.name}, which wants {expected(task)}; "
            f"found: {_said(set_aside)}"
        )
    return Sources(tuple(images), tuple(set_aside))


def expected(task: Task) -> str:
    """What images a task wants, in words."""
    selection = task.selection
    parts = [f"{task.spatial_dims}-D images"]
    if selection.modalities:
        parts.append(f"of modality {' or '.join(sorted(selection.modalities))}")
    parts += [
        f"with {name.replace('_', ' ')} {' or '.join(sorted(words))}"
        for name, words in selection.attributes.items()
    ]
    if selection.least_extent:
        parts.append(f"covering at least {selection.least_extent:g} mm")
    if selection.largest_spacing < float("inf"):
        parts.append(f"with voxels of at most {selection.largest_spacing:g} mm")
    return " ".join(parts)


def _read(paths: Sequence[Path]) -> tuple[list[Image], list[SetAside]]:
    """Files are shown to the index as a folder of links, so that it reads them as it reads a disk.

    The key is drawn for this once: no pseudonym of it is kept.
    """
    images: list[Image] = []
    set_aside: list[SetAside] = []
    key = secrets.token_bytes(KEY_BYTES)
    with tempfile.TemporaryDirectory(prefix="consilium-") as scratch:
        roots: list[Data] = []
        files = [path for path in paths if not path.is_dir()]
        for folder in (path for path in paths if path.is_dir()):
            layout = detect(folder)
            roots.append(Data(root=folder, layout=layout))
            if layout == "dicom":
                files += [path for path in sorted(folder.rglob("*")) if is_nifti(path.name)]
        for layout, chosen in (
            ("dicom", [path for path in files if not is_nifti(path.name)]),
            ("nifti", [path for path in files if is_nifti(path.name)]),
        ):
            if chosen:
                root = Path(scratch) / layout
                _link(chosen, root / IMAGES)
                roots.append(Data(root=root, layout=layout))
        for number, data in enumerate(roots):
            with update(data, state=Path(scratch) / f"index-{number}", key=key) as index:
                images += [
                    replace(image, files=tuple(file.resolve() for file in image.files))
                    for image in index.images()
                ]
                set_aside += [
                    replace(item, path=item.path.resolve())
                    for item in index.set_aside()
                    if not (data.layout == "dicom" and is_nifti(item.path.name))
                ]
    return images, set_aside


def _link(files: Iterable[Path], folder: Path) -> None:
    folder.mkdir(parents=True)
    for number, file in enumerate(files):
        suffix = next((end for end in reversed(_NIFTI) if file.name.lower().endswith(end)), "")
        (folder / f"{number:06}{suffix}").symlink_to(file)


def _known(uids: Sequence[str], site: Site | None) -> list[Image]:
    """Images of the site's index whose series these are."""
    if site is None:
        raise ConfigError(
            f"to find series {uids[0]} in the site's index, name the site with --site"
        )
    key = open_key(site.state)
    hashes = {uid_hash(key, "series", uid): uid for uid in uids}
    with update(site.data, state=site.state, key=key, refresh=site.data.refresh) as index:
        images = [image for image in index.images() if image.series in hashes]
    missing = set(hashes) - {image.series for image in images}
    if missing:
        uid = hashes[min(missing)]
        raise ConfigError(
            f"the site's index has no sound image of series {uid}; hospital index says why"
        )
    return images


def _said(set_aside: Sequence[SetAside]) -> str:
    counts = Counter(f"{i.reason} ({i.detail})" if i.detail else str(i.reason) for i in set_aside)
    parts = [f"{count} × {text}" for text, count in counts.most_common(_MOST_SAID)]
    if len(counts) > _MOST_SAID:
        parts.append("…")
    return ", ".join(parts) or "no image"
