"""Mutated DICOM and NIfTI files through the readers' processes, for as long as one likes.

    python -m tests.fuzz_headers [--seconds 60] [--seed 0] [FOLDER ...]

Takes every file of pydicom's own test data and of the folders, damages it in the ways of `MUTATIONS`,
and has its header read. What comes back must be a usable record or a reason, within the bounds on
time, and without the canary that is put in place of the patient's name and identifier. A file that
breaks this is kept, and its seed printed.
"""

from __future__ import annotations

import argparse
import random
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pydicom

from client_app.imaging.readers import SECONDS, Readers
from client_app.imaging.record import Record
from client_app.imaging.set_aside import Reason
from client_app.site import Data

CANARY = b"CaNaRy7x"
KEY = bytes(range(32))
LARGEST = 300_000  # bytes of a file that is mutated
_PATIENT = (b"\x10\x00\x10\x00", b"\x10\x00\x20\x00")  # tags of name and identifier, little endian
_VRS = b"AEASATCSDADSDTFLFDISLOLTOBODOFOLOWPNSHSLSQSSSTTMUCUIULUNURUSUT"


def truncate(content: bytes, dice: random.Random) -> bytes:
    """Cut off inside the preamble, the meta information, the header or the pixels."""
    ends = (dice.randrange(1, 140), dice.randrange(1, 1500), dice.randrange(1, len(content) + 1))
    return content[: dice.choice(ends)]


def flip(content: bytes, dice: random.Random) -> bytes:
    changed = bytearray(content)
    reach = dice.choice((min(2000, len(changed)), len(changed)))
    for _ in range(dice.choice((1, 3, 20, 200))):
        changed[dice.randrange(reach)] = dice.randrange(256)
    return bytes(changed)


def wrong_vr(content: bytes, dice: random.Random) -> bytes:
    """Another value representation where one seems to stand."""
    places = [
        place
        for place in range(132, min(len(content) - 8, 4000))
        if content[place : place + 2].isalpha() and content[place : place + 2].isupper()
    ]
    changed = bytearray(content)
    for place in dice.sample(places, min(len(places), dice.choice((1, 5)))):
        start = 2 * dice.randrange(len(_VRS) // 2)
        changed[place : place + 2] = _VRS[start : start + 2]
    return bytes(changed)


def huge_length(content: bytes, dice: random.Random) -> bytes:
    """Lengths, counts and numbers that are far too large, or minus one."""
    changed = bytearray(content)
    for _ in range(dice.choice((1, 4))):
        place = dice.randrange(min(len(changed), 3000))
        value = dice.choice((0xFFFFFFFF, 0xFFFFFFFE, 0x7FFFFFFF, 0x80000000, 0x00FFFFFF))
        changed[place : place + 4] = struct.pack(dice.choice("<>") + "I", value)
    return bytes(changed)


def repeat(content: bytes, dice: random.Random) -> bytes:
    """A part twice, or many times."""
    start = dice.randrange(len(content))
    part = content[start : start + dice.choice((4, 64, 1000))]
    return content[:start] + part * dice.choice((2, 100)) + content[start:]


def other_end(content: bytes, dice: random.Random) -> bytes:
    return content[: dice.randrange(len(content))] + dice.randbytes(dice.choice((1, 100, 5000)))


MUTATIONS = (truncate, flip, wrong_vr, huge_length, repeat, other_end)


def mutate(content: bytes, dice: random.Random) -> bytes:
    for _ in range(dice.choice((1, 1, 2, 3))):
        content = dice.choice(MUTATIONS)(content, dice) or b"\0"
    return content


def with_canary(content: bytes) -> bytes:
    """The canary over the values of the patient's name and identifier, where they are long enough."""
    changed = bytearray(content)
    for tag in _PATIENT:
        place = content.find(tag)
        for vr in (b"PN", b"LO"):
            if place >= 0 and content[place + 4 : place + 6] == vr:
                (length,) = struct.unpack("<H", content[place + 6 : place + 8])
                value = (CANARY * (length // len(CANARY) + 1))[:length]
                changed[place + 8 : place + 8 + length] = value
    return bytes(changed)


def samples(folders: Sequence[Path]) -> list[bytes]:
    folders = [Path(pydicom.__file__).parent / "data", *folders]
    files = sorted(
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and 0 < path.stat().st_size <= LARGEST and path.suffix != ".py"
    )
    return [with_canary(path.read_bytes()) for path in files]


def deflate_bomb(header: bytes, gigabytes: float, *, gzip: bool = False) -> bytes:
    """A deflated stream of `header` and zeros, made quickly: one compressed block, many times."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31 if gzip else -15)
    start = packer.compress(header) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)
    return start + block * round(gigabytes * 64) + packer.flush()


def wrong(record: Record) -> str:
    """What is not as it must be with the answer on a damaged file."""
    if bool(record.reason) == bool(record.kind):
        return "neither usable nor set aside"
    if record.reason and record.reason not in set(Reason):
        return "a reason that is none"
    if CANARY[:6] in repr(record).encode():
        return "the canary is in the record"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    contents = samples(arguments.folders)
    reasons: Counter[str] = Counter()
    failures, slowest = 0, 0.0
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        with Readers(Data(root=root, layout="dicom"), KEY) as pool:
            began = last = time.monotonic()
            for path, record in pool.read(
                _files(
                    root,
                    contents,
                    arguments.seed,
                    lambda: time.monotonic() - began < arguments.seconds,
                )
            ):
                now = time.monotonic()
                slowest, last = max(slowest, now - last), now
                reasons[record.reason or record.kind] += 1
                file = root / path.decode()
                if complaint := wrong(record):
                    failures += 1
                    kept = Path(tempfile.gettempdir()) / f"fuzz-{path.decode()}"
                    kept.write_bytes(file.read_bytes())
                    print(f"seed {path.decode()}: {complaint}; kept as {kept}")  # noqa: T201
                file.unlink()
    print(f"{sum(reasons.values()):,} files, {failures} failures, longest wait {slowest:.1f} s")  # noqa: T201
    print(dict(reasons.most_common()))  # noqa: T201
    return 1 if failures or slowest > 2 * SECONDS else 0


def _files(
    root: Path, contents: Sequence[bytes], seed: int, going_on: Callable[[], bool]
) -> Iterator[bytes]:
    while going_on():
        dice = random.Random(seed)
        (root / str(seed)).write_bytes(mutate(dice.choice(contents), dice))
        yield str(seed).encode()
        seed += 1


if __name__ == "__main__":
    sys.exit(main())
