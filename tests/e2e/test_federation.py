"""The whole journey with real processes: a run, its faults, and what must never leave a hospital."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from flwr.supercore.constant import OBJECT_PUSH_SESSION_TTL_SECONDS
from safetensors.numpy import load_file

from federation.processes import free_port, wait_until
from server_app.home import Home
from server_app.state import RunFolder
from tests.e2e.eavesdropper import Eavesdropper
from tests.e2e.federation import TINY, Real, federation, kill, processes

pytestmark = pytest.mark.e2e

CANARIES = ["CANARY^MARIA", "CANARY-ID-7731", "19310207", "CANARY-HOSPITAL", "canary_file_0451"]


@pytest.fixture(scope="module")
def wire_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, wire_port: int) -> Iterator[Real]:
    folder = tmp_path_factory.mktemp("federation")
    with federation(folder, dial={"east": wire_port}) as running:
        plant(running.sites["east"])
        yield running


@pytest.fixture(scope="module")
def eavesdropper(real: Real, wire_port: int) -> Eavesdropper:
    """Between east and the SuperLink; east connects only through it."""
    heard = Eavesdropper(real.home, wire_port)
    assert wait_until(lambda: real.online() == {"north", "east"}, seconds=90)
    return heard


def plant(site: Path) -> None:
    """Canaries in headers, in file names, and in files that make readers complain."""
    images = sorted((site / "data/images").rglob("*.dcm"))
    for image in images:
        header = pydicom.dcmread(image)
        header.PatientName, header.PatientBirthDate = CANARIES[0], CANARIES[2]
        header.InstitutionName = CANARIES[3]
        header.save_as(image)
    first = pydicom.dcmread(images[0])
    patient, first.PatientID = str(first.PatientID), CANARIES[1]
    first.save_as(images[0].with_name(f"{CANARIES[4]}.dcm"))
    images[0].unlink()
    labels = site / "data/labels.csv"
    labels.write_text(labels.read_text() + f"{CANARIES[1]},pneumonia\n")
    assert patient
    broken = images[1].with_name(f"{CANARIES[4]}_broken.dcm")
    broken.write_bytes(images[1].read_bytes()[:3000])
    wrong = pydicom.dcmread(images[2])
    del wrong.PixelData
    wrong.save_as(images[2].with_name(f"{CANARIES[4]}_no_pixels.dcm"))


def last_round(home: Home, run: str) -> int:
    path = home.runs / run / "status.json"
    return json.loads(path.read_text())["round"] if path.exists() else -1


def test_a_run_completes_and_no_identifier_leaves(real: Real, eavesdropper: Eavesdropper) -> None:
    done = real.coordinator("run", *TINY, "rounds=4", "run=whole")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = RunFolder(real.home.runs / "whole")
    assert folder.status()["state"] == "completed"
    assert (folder.path / "report.html").stat().st_size > 10_000
    rows = folder.metrics()
    assert [r["round"] for r in rows if r["kind"] == "round"] == [1, 2, 3, 4]
    for row in rows:
        assert all(h["status"] == "ok" for h in row["hospitals"].values()), row
    assert "round 4" in done.stdout

    # The ear hears plain text: the names of what a hospital answers are in it.
    heard = bytes(eavesdropper.heard)
    assert b"num_batches" in heard or b"patients" in heard
    assert len(heard) > 4 * rows[1]["hospitals"]["east"]["bytes_up"]
    written = [path for path in real.home.path.rglob("*") if path.is_file()]
    assert any(path.name == "superlink.db" for path in written)
    for canary in CANARIES:
        assert canary.encode() not in heard
        for path in written:
            assert canary.encode() not in path.read_bytes(), (canary, path)
        for path in (real.sites["east"] / "state" / "logs").iterdir():
            assert canary.encode() not in path.read_bytes(), (canary, path)
    index = b"".join(p.read_bytes() for p in (real.sites["east"] / "state").glob("*.sqlite*"))
    assert index and CANARIES[1].encode() not in index and CANARIES[0].encode() not in index


@pytest.mark.parametrize(
    "victim", [("flwr-serverapp",), ("server_app.superlink",), ("coordinator", "run=")]
)
def test_killed_and_resumed_the_weights_are_the_same(
    victim: tuple[str, ...], real: Real, eavesdropper: Eavesdropper
) -> None:
    """`kill -9` of the ServerApp, the SuperLink, or the command that follows the run."""
    name = f"broken-{victim[0].rpartition('.')[2]}"
    runs_app = victim[0] == "flwr-serverapp"
    whose = f"127.0.0.1:{real.home.federation().port}" if runs_app else str(real.home.path)
    words = (*victim, whose)
    following = real.begin("run", *TINY, "rounds=4", f"run={name}")
    assert wait_until(lambda: last_round(real.home, name) >= 1, seconds=120)
    kill(*words)
    following.wait(240)
    if RunFolder(real.home.runs / name).status()["state"] != "completed":
        assert following.returncode != 0
        wait_until(lambda: not RunFolder(real.home.runs / name).is_conducted(), seconds=120)
        assert wait_until(lambda: real.online() == {"north", "east"}, seconds=120)
        if RunFolder(real.home.runs / name).status()["state"] != "completed":
            done = real.coordinator("run", f"resume={name}")
            assert done.returncode == 0, done.stdout + done.stderr
    assert_same_model(real, name)


@pytest.mark.parametrize("victim", ["client_app.superexec", "client_app.supernode"])
def test_a_hospitals_process_that_is_killed_is_asked_again(
    victim: str, real: Real, eavesdropper: Eavesdropper
) -> None:
    """Killed in the middle of a run, it is started again, asked again, and changes no bit.

    Flower notices a dead SuperNode after a minute and lets the new one in only then.
    """
    name = victim.replace("client_app.", "broken-")
    following = real.begin("run", *TINY, "rounds=4", "participation.deadline=400", f"run={name}")
    assert wait_until(lambda: last_round(real.home, name) >= 1, seconds=120)
    kill(victim, str(real.sites["north"]))
    out, _ = following.communicate(timeout=500)
    assert following.returncode == 0, out
    assert_same_model(real, name)


def assert_same_model(real: Real, name: str) -> None:
    """Bit for bit the model of the run that was never broken."""
    whole, other = (
        load_file(real.home.runs / run / "model.safetensors") for run in ("whole", name)
    )
    assert whole.keys() == other.keys()
    for key, array in whole.items():
        assert array.tobytes() == other[key].tobytes(), key


def test_an_answer_cut_off_on_its_way_is_late(real: Real, eavesdropper: Eavesdropper) -> None:
    """The line breaks while a hospital sends; the round ends at its deadline, and it is back after.

    Flower would wait for the rest of the answer for three minutes.
    """
    few = ("rounds=1", "participation.deadline=30", "participation.least=1")
    following = real.begin("run", *TINY, *few, "run=cut-off")
    try:
        assert wait_until(lambda: (real.home.runs / "cut-off").exists(), seconds=60)
        eavesdropper.cut_at = b"/v1/fleet/push-object"
        assert eavesdropper.is_cut.wait(60), "east has sent nothing"
        assert wait_until(lambda: last_round(real.home, "cut-off") >= 1, seconds=240)
    finally:
        eavesdropper.mend()
    out, _ = following.communicate(timeout=240)
    assert following.returncode == 0, out
    rows = {row["kind"]: row for row in RunFolder(real.home.runs / "cut-off").metrics()}
    assert rows["round"]["hospitals"]["north"]["status"] == "ok"
    assert rows["round"]["hospitals"]["east"]["reason"] == "late"
    assert rows["round"]["seconds"] < OBJECT_PUSH_SESSION_TTL_SECONDS
    assert rows["evaluation"]["hospitals"]["north"]["status"] == "ok"
    assert wait_until(lambda: real.online() == {"north", "east"}, seconds=120)


def test_a_run_below_the_least_number_fails_clearly(real: Real, eavesdropper: Eavesdropper) -> None:
    """A policy that refuses: the run ends with exit code 1 and says who and why."""
    site = real.sites["north"] / "site.yaml"
    before = site.read_text()
    site.write_text(
        before.replace("least_patients: 3", "least_patients: 3\n  tasks: [hippocampus]")
    )
    try:
        done = real.coordinator("run", *TINY, "rounds=1", "run=refused")
    finally:
        site.write_text(before)
    assert done.returncode == 1
    assert "north: refused_task" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert (real.home.runs / "refused" / "report.html").exists()
    assert RunFolder(real.home.runs / "refused").status()["state"] == "failed"


def test_status_and_stop(real: Real, eavesdropper: Eavesdropper) -> None:
    following = real.begin("run", *TINY, "rounds=500", "run=endless")
    assert wait_until(lambda: last_round(real.home, "endless") >= 1, seconds=120)
    shown = real.coordinator("status").stdout
    assert "online" in shown and "endless" in shown and "running" in shown
    again = real.coordinator("run", "resume=endless")
    assert again.returncode == 1 and "still under way" in again.stderr
    stopped = real.coordinator("stop", "endless")
    assert stopped.returncode == 0 and "resume=endless" in stopped.stdout
    assert following.wait(60) == 1
    assert "stopped" in real.coordinator("status").stdout


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    with federation(tmp_path, ("only",)) as running:
        assert wait_until(lambda: running.online() == {"only"}, seconds=90)
        assert processes(str(tmp_path))
    deadline = time.monotonic() + 10
    while processes(str(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes(str(tmp_path)) == []
