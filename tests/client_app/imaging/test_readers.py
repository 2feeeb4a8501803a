"""Whatever a file does to its reader, it costs that file alone, in bounded time and memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from client_app.imaging import readers
from client_app.imaging.readers import Readers, ReadersFailed
from client_app.imaging.record import Record
from client_app.imaging.set_aside import Reason
from client_app.site import Data
from tests.client_app.imaging import fake_reader
from tests.client_app.imaging.samples import KEY


@pytest.fixture
def data(tmp_path: Path) -> Data:
    (tmp_path / "root").mkdir()
    return Data(root=tmp_path / "root", layout="dicom")


def read(data: Data, names: list[str], **options: float) -> dict[str, Record]:
    pool = Readers(data, KEY, workers=2, reader=fake_reader.NAME, **options)  # type: ignore[arg-type]
    with pool:
        answers = list(pool.read(name.encode() for name in names))
        started = [reader.process for reader in pool._readers]
    assert all(process.returncode is not None for process in started)
    assert sorted(path.decode() for path, _ in answers) == sorted(names), (
        "each file is answered once"
    )
    return {path.decode(): record for path, record in answers}


def test_bad_files_cost_only_themselves(data: Data) -> None:
    good = [f"{number:03d}" for number in range(300)]
    bad = ["hang1", "crash1", "crash2", "exit1", "eat1", "hang2"]
    for name in (*good, *bad):
        fake_reader.plane(data.root / name, 1.0)
    mixed = [*good[:70], *bad[:3], *good[70:140], *bad[3:], *good[140:]]
    found = read(data, mixed, seconds=0.5)
    assert {found[name].kind for name in good} == {"planes"}
    assert {name: found[name].reason for name in bad} == {
        "hang1": Reason.TOO_SLOW,
        "hang2": Reason.TOO_SLOW,
        "crash1": Reason.CORRUPT,
        "crash2": Reason.CORRUPT,
        "exit1": Reason.CORRUPT,
        "eat1": Reason.TOO_LARGE,
    }


def test_a_reader_stopped_by_others_is_ended_by_the_service(
    data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that the system has stopped gets no alarm: the service must not wait for it."""
    monkeypatch.setattr(readers, "_GRACE", 0.2)
    for name in ("hang", *map(str, range(100))):
        fake_reader.plane(data.root / name, 1.0)
    pool = Readers(data, KEY, workers=1, seconds=0.5, reader=fake_reader.NAME)

    def stop() -> None:
        while not pool._readers or not pool._readers[0].begun:
            time.sleep(0.01)
        os.kill(pool._readers[0].process.pid, signal.SIGSTOP)

    stopper = threading.Thread(target=stop)
    stopper.start()
    with pool:
        answers = dict(pool.read([b"hang", *(str(number).encode() for number in range(100))]))
    stopper.join()
    assert answers.pop(b"hang").reason == Reason.TOO_SLOW
    assert {record.kind for record in answers.values()} == {"planes"}


def test_a_reader_killed_once_by_the_system_costs_nothing(data: Data) -> None:
    names = [f"{number:04d}".encode() for number in range(2000)]
    for name in names:
        fake_reader.plane(data.root / name.decode(), 1.0)
    with Readers(data, KEY, workers=2, reader=fake_reader.NAME) as pool:
        answers = {}
        for position, (path, record) in enumerate(pool.read(names)):
            answers[path] = record
            if position == 500:
                for reader in pool._readers:
                    reader.process.kill()
    assert len(answers) == 2000
    assert {record.kind for record in answers.values()} == {"planes"}


def test_readers_say_nothing(data: Data, capfd: pytest.CaptureFixture[str]) -> None:
    fake_reader.plane(data.root / "shout", 1.0, patient="CANARY")
    record = read(data, ["shout"])["shout"]
    assert record.kind == "planes"
    assert "CANARY" not in repr(record)
    assert capfd.readouterr() == ("", "")


def test_paths_of_any_length_and_spelling(data: Data) -> None:
    deep = "/".join(["folder" * 30] * 18)
    names = [b"new\nline", b"\xff\xfe", b"a b", *(f"{deep}/{n}".encode() for n in range(200))]
    for name in names:
        fake_reader.plane(data.root / os.fsdecode(name), 1.0)
    with Readers(data, KEY, workers=2, reader=fake_reader.NAME) as pool:
        answers = dict(pool.read(names))
    assert answers.keys() == set(names)
    assert {record.kind for record in answers.values()} == {"planes"}


def test_an_installation_that_is_broken_is_said(data: Data) -> None:
    with (
        Readers(data, KEY, workers=2, reader="no_such_module:nothing") as pool,
        pytest.raises(ReadersFailed),
    ):
        list(pool.read([b"1"]))


def test_readers_end_with_a_service_that_is_killed(data: Data) -> None:
    for name in ("hang1", "hang2"):
        fake_reader.plane(data.root / name, 1.0)
    code = f"""
        import sys
        from client_app.imaging.readers import Readers
        from client_app.site import Data
        from pathlib import Path
        pool = Readers(Data(root=Path({str(data.root)!r}), layout="dicom"), {KEY!r}, workers=1,
                       seconds=600, reader={fake_reader.NAME!r})
        answers = pool.read([b"hang1", b"hang2"])
        start = pool._start
        def started():
            start()
            print(pool._readers[0].process.pid, flush=True)
        pool._start = started
        next(answers)
    """
    service = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    )
    assert service.stdout is not None
    reader = int(service.stdout.readline())
    time.sleep(1.0)  # it may be starting, or hang in its file: both must end
    service.kill()
    service.communicate()
    _wait_until(lambda: not _lives(reader))
    assert not _lives(reader)


def _wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(300):
        if condition():
            return
        time.sleep(0.05)


def _lives(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"
