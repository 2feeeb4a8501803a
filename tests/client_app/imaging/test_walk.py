from __future__ import annotations

import os
import socket
import subprocess
import tracemalloc
from pathlib import Path

import pytest

from client_app.imaging.set_aside import Reason
from client_app.imaging.walk import Found, walk


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def write(path: Path, content: bytes = b"x") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def found(root: Path, *tops: str, without: Path | None = None) -> dict[str, Found]:
    files = list(walk(root, tops or ("",), without=without))
    by_path = {os.fsdecode(file.path): file for file in files}
    assert len(by_path) == len(files), "no file is found twice"
    return by_path


def test_same_files_as_os_walk(root: Path) -> None:
    for name in ("a/b/c/1", "a/2", "b/3", "4", "a/b/.hidden/5"):
        write(root / name)
    (root / "empty folder").mkdir()
    expected = {
        str((Path(folder) / name).relative_to(root))
        for folder, _, names in os.walk(root)
        for name in names
    }
    assert found(root).keys() == expected
    status = (root / "a/2").stat()
    stamp = status.st_size, status.st_mtime_ns, status.st_ctime_ns
    assert found(root)["a/2"] == Found(b"a/2", *stamp)
    assert found(root, "a").keys() == {name for name in expected if name.startswith("a/")}


def test_folders_are_taken_in_order(root: Path) -> None:
    for name in ("b/2", "a/1", "c/3", "a/z/9", "b/y/8"):
        write(root / name)
    assert [file.path for file in walk(root, [""])] == [b"a/1", b"a/z/9", b"b/2", b"b/y/8", b"c/3"]


def test_links_are_followed_once_and_after_real_folders(root: Path, tmp_path: Path) -> None:
    write(root / "z/real/1")
    write(tmp_path / "elsewhere/2")
    (root / "a").symlink_to(root / "z/real")
    (root / "away").symlink_to(tmp_path / "elsewhere")
    (root / "twice").symlink_to(tmp_path / "elsewhere")
    (root / "z/loop").symlink_to(root)
    (root / "z/real/self").symlink_to("self")
    (root / "dangling").symlink_to(root / "nowhere")
    (root / "file").symlink_to(root / "z/real/1")
    files = found(root)
    assert files.keys() == {"z/real/1", "away/2", "z/real/self", "dangling", "file"}
    assert files["dangling"][-2:] == (Reason.UNREADABLE, "ENOENT")
    assert files["z/real/self"][-2:] == (Reason.UNREADABLE, "ELOOP")
    assert files["file"].reason == ""


def test_what_is_no_file_is_not_opened(root: Path) -> None:
    os.mkfifo(root / "pipe")
    write(root / "empty", b"")
    (root / "device").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "socket"))
        files = found(root)
    assert {name: file.reason for name, file in files.items()} == {
        "pipe": Reason.NOT_A_FILE,
        "device": Reason.NOT_A_FILE,
        "socket": Reason.NOT_A_FILE,
        "empty": Reason.EMPTY,
    }


def test_names_that_are_no_text(root: Path) -> None:
    name = b"\xff\xfe\n\x1b[31m \xe9"
    write(Path(os.fsdecode(os.fsencode(root) + b"/" + name + b"/" + name)))
    (file,) = walk(root, [""])
    assert file.path == name + b"/" + name


def test_own_state_is_passed_over(root: Path) -> None:
    write(root / "state/index.sqlite")
    write(root / "1")
    (root / "link").symlink_to(root / "state")
    assert found(root, without=root / "state").keys() == {"1"}
    assert found(root, without=root / "not there").keys() == {"1", "state/index.sqlite"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_folder_that_may_not_be_listed_is_said(root: Path) -> None:
    write(root / "closed/1")
    write(root / "open/2")
    (root / "closed").chmod(0)
    try:
        files = found(root)
    finally:
        (root / "closed").chmod(0o700)
    assert files.keys() == {"closed", "open/2"}
    assert files["closed"][-2:] == (Reason.UNREADABLE, "EACCES")


def test_disk_that_fails_in_the_middle_stops_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a/1", "bad/2", "c/3"):
        write(root / name)
    scandir = os.scandir

    def fail(path: bytes) -> object:
        if path.endswith(b"bad"):
            raise OSError(5, "Input/output error", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", fail)
    files = found(root)
    assert files.keys() == {"a/1", "bad", "c/3"}
    assert files["bad"][-2:] == (Reason.UNREADABLE, "EIO")


def test_very_deep_folders(root: Path) -> None:
    """Deeper than Python recurses, and then deeper than a path may be long."""
    folder = root
    for _ in range(1300):
        folder = folder / "d"
        folder.mkdir()
    write(folder / "1")
    descriptor = os.open(folder, os.O_RDONLY)
    for _ in range(8):
        os.mkdir("x" * 250, dir_fd=descriptor)
        below = os.open("x" * 250, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(descriptor)
    try:
        files = list(walk(root, [""]))
    finally:
        subprocess.run(["rm", "-rf", root / "d"], check=True)  # pytest would recurse into it
    assert [file.detail for file in files] == ["", "ENAMETOOLONG"]


def test_a_large_folder_takes_no_memory(root: Path) -> None:
    write(root / "00000")
    for number in range(1, 20_000):
        os.link(root / "00000", root / f"{number:05d}")
    walker = walk(root, [""])
    next(walker)
    tracemalloc.start()
    try:
        count = sum(1 for _ in walker)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 19_999
    assert peak < 200_000, "ten bytes a file"
