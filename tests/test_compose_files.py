"""What every service of every Compose file has to have, read as Compose would read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
FILES = {
    path.relative_to(ROOT).as_posix(): path
    for path in (
        ROOT / "docker-compose.yml",
        ROOT / "docker/hospital/docker-compose.yml",
        ROOT / "docker/demo/docker-compose.yml",
    )
}
ALL = [
    (file, name, service)
    for file, path in FILES.items()
    for name, service in yaml.safe_load(path.read_text())["services"].items()
]


@pytest.mark.parametrize(
    ("file", "name", "service"), ALL, ids=[f"{file}:{name}" for file, name, _ in ALL]
)
def test_each_service_is_held(file: str, name: str, service: dict[str, Any]) -> None:
    assert service["read_only"] is True and service["init"] is True
    assert service["cap_drop"] == ["ALL"] and "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"max-size", "max-file"} == service["logging"]["options"].keys()
    assert service["mem_limit"] and service["cpus"] and service["pids_limit"]
    for forbidden in ("privileged", "network_mode", "pid", "ipc", "user", "devices"):
        if (forbidden, service.get(forbidden)) != ("network_mode", "none"):
            assert forbidden not in service, forbidden
    once = name in ("provision", "coordinator", "hospital") or name.endswith("-prepare")
    assert service["restart"] == ("no" if once else "unless-stopped")
    assert ("ports" in service) == (name == "proxy")
    for mount in service.get("volumes", []):
        target = mount["target"] if isinstance(mount, dict) else mount.rpartition("/images")[1]
        if target == "/images" and not name.endswith("-prepare"):
            assert str(mount).endswith(":ro"), mount


@pytest.mark.parametrize("file", FILES)
def test_what_need_not_go_out_is_on_networks_that_end(file: str) -> None:
    content = yaml.safe_load(FILES[file].read_text())
    ends = {n for n, network in content["networks"].items() if (network or {}).get("internal")}
    inside = [
        name
        for name in content["services"]
        if name.startswith(("superlink", "superexec")) or name.endswith("-superexec")
    ]
    assert inside
    for name in inside:
        networks = content["services"][name]["networks"]
        assert len(networks) == 1 and set(networks) <= ends, name
