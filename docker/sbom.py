"""Writes what an image is made of as CycloneDX: the packages of its Python, and those of its Debian.

Runs in a build stage that has cyclonedx-bom; the image itself has neither it nor this file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="of the image")
    parser.add_argument("out", type=Path)
    parser.add_argument("--dpkg", type=Path, required=True, help="the image's /var/lib/dpkg/status")
    parser.add_argument("--python", type=Path, help="the image's Python, with its packages")
    asked = parser.parse_args()

    bom = of_python(asked.python) if asked.python else Bom()
    bom.metadata.component = Component(name=asked.name, type=ComponentType.CONTAINER)
    bom.components.update(debian_packages(asked.dpkg.read_text()))
    bom.register_dependency(bom.metadata.component, bom.components)
    writer = make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6)
    asked.out.write_text(writer.output_as_string(indent=1) + "\n")


def of_python(interpreter: Path) -> Bom:
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("cyclonedx-py")), "environment", str(interpreter),
            "--output-reproducible", "--spec-version", "1.6", "--output-format", "JSON",
        ],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    bom: Bom = Bom.from_json(json.loads(done.stdout))
    return bom


def debian_packages(status: str) -> list[Component]:
    """The installed packages that a dpkg status file lists."""
    found = []
    for paragraph in status.split("\n\n"):
        fields = dict(
            line.split(": ", 1)
            for line in paragraph.splitlines()
            if line[:1].isalpha() and ": " in line
        )
        if not fields.get("Status", "").endswith(" installed"):
            continue
        name, version = fields["Package"], fields["Version"]
        address = PackageURL(
            "deb", "debian", name, version, {"arch": fields["Architecture"], "distro": "bookworm"}
        )
        found.append(
            Component(
                name=name,
                version=version,
                type=ComponentType.LIBRARY,
                bom_ref=str(address),
                purl=address,
            )
        )
    return found


if __name__ == "__main__":
    main()
