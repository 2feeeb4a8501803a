"""`hospital check` says what is ready and what is not, whatever lies on the disk."""

from __future__ import annotations

import io
import os
import re
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from client_app.checks import run_checks
from client_app.site import Site
from server_app.home import Federation, Home
from tests.provisioned import provisioned as provision


@pytest.fixture
def provisioned(site: Site, phantom_folder: Path, tmp_path: Path) -> Site:
    """A site with a kit (of a coordinator that is not up) and its own copy of the images."""
    home = Home(tmp_path / "coordinator")
    content = Federation(name="a", host="127.0.0.1", port=1, hospitals=["north"])
    provision(content, home, {"north": site.state})
    images = tmp_path / "images"
    shutil.copytree(phantom_folder / "images", images)
    data = site.data.model_copy(update={"root": images})
    return site.model_copy(update={"kit": home.kit("north"), "data": data})


def check(site: Site, task: str | None = "chest_xray") -> tuple[bool, str]:
    output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    good = run_checks(site, task, 0.25, Console(file=output, width=200))
    output.flush()
    return good, output.buffer.getvalue().decode()  # type: ignore[attr-defined]


def test_each_thing_has_a_line(provisioned: Site) -> None:
    good, said = check(provisioned)
    assert not good  # nobody listens on that port
    assert "✗ coordinator reached over TLS: 127.0.0.1:1 does not answer" in said
    assert "✓ kit and roster: north in federation a" in said
    assert "✓ device: cpu" in said
    assert "0 files or images set aside" in said
    assert "such as" not in said, "no table of nothing"


def test_patients_are_counted_by_label_and_by_group(provisioned: Site) -> None:
    _, said = check(provisioned)
    counts = {
        " ".join(words[:-4]): [int(word) for word in words[-4:]]
        for line in said.splitlines()
        if len(words := line.split()) > 4 and all(word.isdigit() for word in words[-4:])
    }
    everybody = counts["all"]
    assert everybody[0] + everybody[2] == 16
    assert min(everybody) > 0
    for name in ("label", "sex", "age_band", "manufacturer"):
        parts = [numbers for group, numbers in counts.items() if group.startswith(f"{name}: ")]
        total = [sum(column) for column in zip(*parts, strict=True)]
        assert total[1::2] == everybody[1::2], f"each image has one {name}"
        assert name != "label" or total == everybody, "and each patient one label"
    assert "label: pneumonia" in counts


def test_names_that_no_terminal_likes_stop_nothing(provisioned: Site) -> None:
    for name in (b"[bold] [red]_[", b"caf\xe9.dcm", b"new\nline.dcm"):
        (provisioned.data.root / os.fsdecode(name)).write_bytes(b"no image")
    odd = provisioned.data.root / "[" / "bold]"  # shown as [/bold], a closing tag of nothing
    odd.parent.mkdir()
    odd.write_bytes(b"no image")
    _, said = check(provisioned)
    assert re.search(r"^ +4 +not_dicom ", said, re.MULTILINE)
    assert "nothing to mend" in said


def test_a_task_that_policy_forbids_is_said(provisioned: Site) -> None:
    policy = provisioned.policy.model_copy(update={"tasks": ["hippocampus"]})
    _, said = check(provisioned.model_copy(update={"policy": policy}))
    assert "✗ patients for chest_xray: policy.tasks does not allow it" in said


def test_a_lost_key_is_noticed(provisioned: Site) -> None:
    check(provisioned)
    (provisioned.state / "pseudonym.key").unlink()
    _, said = check(provisioned)
    assert "restore the key from a backup" in said
    assert not (provisioned.state / "pseudonym.key").exists()
