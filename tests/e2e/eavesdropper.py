"""A peer in the middle that holds the server's key: passes TLS on, keeps what it reads, cuts it off."""

from __future__ import annotations

import asyncio
import ssl
import threading
from pathlib import Path

from server_app.home import Home


class Eavesdropper:
    """Listens on a port of its own and forwards to the SuperLink's; `heard` is the plain traffic.

    Attributes:
        cut_at: with the next such word from a hospital the line is cut; `is_cut` from then on.
    """

    def __init__(self, home: Home, port: int) -> None:
        self.heard = bytearray()
        self.cut_at: bytes | None = None
        self.is_cut = threading.Event()
        self._home, self.port = home, port
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()
        assert self._started.wait(10)

    def mend(self) -> None:
        """Pass on again what comes."""
        self.cut_at = None
        self.is_cut.clear()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._home.server_certificate, self._home.server_key)
        self._loop.run_until_complete(
            asyncio.start_server(self._pass_on, "127.0.0.1", self.port, ssl=context)
        )
        self._started.set()
        self._loop.run_forever()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_cut.is_set():
            writer.close()
            return
        federation = self._home.federation()
        trusted = ssl.create_default_context(cafile=str(Path(self._home.ca_certificate)))
        try:
            onward_reader, onward_writer = await asyncio.open_connection(
                "127.0.0.1", federation.port, ssl=trusted
            )
        except OSError:
            writer.close()
            return
        await asyncio.gather(
            self._pump(reader, onward_writer, said=True), self._pump(onward_reader, writer)
        )

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, said: bool = False
    ) -> None:
        try:
            while data := await reader.read(65536):
                self.heard += data
                if said and self.cut_at is not None and self.cut_at in data:
                    self.is_cut.set()
                if self.is_cut.is_set():
                    return
                writer.write(data)
                await writer.drain()
        except (OSError, ssl.SSLError):
            pass
        finally:
            writer.close()
