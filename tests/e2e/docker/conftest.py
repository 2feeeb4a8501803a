"""An engine, the images, and a demo federation that the tests of a module share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from docker.errors import DockerException

import docker
from tests.e2e.docker.capture import Capture
from tests.e2e.docker.stack import Stack, build, demo


@pytest.fixture(scope="session")
def engine() -> Iterator[docker.DockerClient]:
    if os.geteuid() != 0:
        pytest.skip("NOT ROOT: folders of another user and captures on bridges need it")
    try:
        client = docker.from_env(timeout=120)
        client.ping()
    except DockerException as error:
        pytest.skip(f"NO DOCKER ENGINE ANSWERS: nothing of the containers is tested ({error})")
    yield client
    client.close()


@pytest.fixture(scope="session")
def images(engine: docker.DockerClient) -> docker.DockerClient:
    """The engine, with the images of this checkout."""
    build(engine)
    return engine


@pytest.fixture(scope="session")
def captured() -> list[Capture]:
    """Holds the capture of the shared federation, which listens from before its first container runs."""
    return []


@pytest.fixture(scope="session")
def federation(images: docker.DockerClient, captured: list[Capture]) -> Iterator[Stack]:
    """A coordinator and three hospitals in containers, healthy. Down at the end with nothing left."""

    def listen(stack: Stack) -> None:
        mine = {"label": f"com.docker.compose.project={stack.project}"}
        captured.append(
            Capture(
                {
                    network.name.removeprefix(f"{stack.project}_"): f"br-{network.id[:12]}"
                    for network in images.networks.list(filters=mine)
                }
            )
        )

    with demo(images, before=listen) as stack:
        yield stack
