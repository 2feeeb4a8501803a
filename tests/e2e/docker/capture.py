"""Everything that opens a connection on a bridge of the engine, as the bridge sees it."""

from __future__ import annotations

import ipaddress
import selectors
import socket
import struct
import threading
from dataclasses import dataclass

_ALL = 0x0003  # ETH_P_ALL
_SOL_PACKET, _ADD_MEMBERSHIP, _PROMISCUOUS = 263, 1, 1  # linux/if_packet.h
_IPV4, _IPV6 = 0x0800, 0x86DD
_TCP, _UDP = 6, 17
_SYN, _ACK = 0x02, 0x10


@dataclass(frozen=True, order=True)
class Opened:
    """A TCP connection that was asked for, or a UDP packet."""

    bridge: str
    protocol: str
    source: str
    destination: str
    port: int


class Capture:
    """Listens on bridges from its making until `stop`. Needs root, as tcpdump does."""

    def __init__(self, bridges: dict[str, str]) -> None:
        """Args: bridges: interface name by what it is to be called."""
        self.packets = 0
        self._seen: set[Opened] = set()
        self._selector = selectors.DefaultSelector()
        for name, interface in bridges.items():
            ear = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL))
            ear.bind((interface, _ALL))
            joined = struct.pack("IHH8s", socket.if_nametoindex(interface), _PROMISCUOUS, 0, b"")
            ear.setsockopt(_SOL_PACKET, _ADD_MEMBERSHIP, joined)
            ear.setblocking(False)
            self._selector.register(ear, selectors.EVENT_READ, name)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def stop(self) -> set[Opened]:
        self._ended.set()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        return self._seen

    def _listen(self) -> None:
        while not self._ended.is_set():
            for key, _ in self._selector.select(timeout=0.2):
                ear = key.fileobj
                assert isinstance(ear, socket.socket)
                try:
                    frame = ear.recv(256)
                except OSError:
                    continue
                self.packets += 1
                if (opened := _opened(key.data, frame)) is not None:
                    self._seen.add(opened)


def _opened(bridge: str, frame: bytes) -> Opened | None:
    kind = int.from_bytes(frame[12:14], "big")
    packet = frame[14:]
    if kind == _IPV4 and len(packet) >= 20:
        header, protocol = (packet[0] & 0x0F) * 4, packet[9]
        source, destination = packet[12:16], packet[16:20]
    elif kind == _IPV6 and len(packet) >= 40:
        header, protocol = 40, packet[6]
        source, destination = packet[8:24], packet[24:40]
    else:
        return None
    payload = packet[header:]
    if protocol == _TCP and len(payload) >= 14:
        if payload[13] & (_SYN | _ACK) != _SYN:
            return None
        name = "tcp"
    elif protocol == _UDP and len(payload) >= 4:
        name = "udp"
    else:
        return None
    return Opened(
        bridge,
        name,
        str(ipaddress.ip_address(source)),
        str(ipaddress.ip_address(destination)),
        int.from_bytes(payload[2:4], "big"),
    )
