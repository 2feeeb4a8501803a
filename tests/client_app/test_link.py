"""The line between a hospital's two containers: both come to the same files, whoever is first."""

from __future__ import annotations

import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from client_app.link import HOST, Link, open_link
from federation.schema import ConfigError


def content(link: Link) -> tuple[bytes, ...]:
    return tuple(file.read_bytes() for file in (link.secret, link.certificate, link.key))


def test_both_sides_come_to_the_same_files(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        links = list(pool.map(lambda _: content(open_link(tmp_path)), range(8)))
    assert len(set(links)) == 1
    assert not list(tmp_path.glob(".draft-*"))
    assert len(links[0][0]) == 64
    for file in (tmp_path / "link").iterdir():
        assert file.stat().st_mode & 0o077 == 0, file


def test_two_starts_have_different_secrets(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    one, other = open_link(tmp_path / "one"), open_link(tmp_path / "other")
    assert not set(content(one)) & set(content(other))


def test_a_draft_of_a_killed_start_is_no_link(tmp_path: Path) -> None:
    (tmp_path / ".draft-killed").mkdir()
    (tmp_path / ".draft-killed" / "superexec.secret").write_text("half")
    assert len(open_link(tmp_path).secret.read_text()) == 64


def test_the_certificate_holds_for_its_name_and_for_itself_alone(tmp_path: Path) -> None:
    link = open_link(tmp_path)
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(link.certificate, link.key)
    (tmp_path / "other").mkdir()
    stranger = open_link(tmp_path / "other")

    def dial(authority: Path, name: str) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:

            def serve() -> None:
                try:
                    served.wrap_socket(theirs, server_side=True).close()
                except OSError:
                    theirs.close()

            thread = threading.Thread(target=serve)
            thread.start()
            try:
                context = ssl.create_default_context(cafile=str(authority))
                context.wrap_socket(ours, server_hostname=name).close()
            finally:
                ours.close()
                thread.join()

    dial(link.certificate, HOST)
    with pytest.raises(ssl.SSLCertVerificationError):
        dial(link.certificate, "supernode")
    with pytest.raises(ssl.SSLCertVerificationError):
        dial(stranger.certificate, HOST)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone cannot be used .*--link"):
        open_link(tmp_path / "gone")
