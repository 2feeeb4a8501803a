"""A peer in the middle that holds the server's key: passes TLS on and keeps what it reads."""

from __future__ import annotations

import asyncio
import ssl
import threading
from pathlib import Path

from server_app.home import Home


class Eavesdropper:
    """Listens on a port of its own and forwards to the SuperLink's; `heard` is the plain traffic."""

    def __init__(self, home: Home, port: int) -> None:
        self.heard = bytearray()
        self._home, self.port = home, port
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()
        assert self._started.wait(10)

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
        federation = self._home.federation()
        trusted = ssl.create_default_context(cafile=str(Path(self._home.ca_certificate)))
        try:
            onward_reader, onward_writer = await asyncio.open_connection(
                "127.0.0.1", federation.port, ssl=trusted
            )
        except OSError:
            writer.close()
            return
        await asyncio.gather(self._pump(reader, onward_writer), self._pump(onward_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                self.heard += data
                writer.write(data)
                await writer.drain()
        except (OSError, ssl.SSLError):
            pass
        finally:
            writer.close()
