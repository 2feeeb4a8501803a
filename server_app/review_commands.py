"""`coordinator review …`: read the code that a run brings to the hospitals, sign it, keep signatures."""

from __future__ import annotations

import hashlib
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from federation.command_line import options
from federation.schema import ConfigError
from server_app.home import HOME_VARIABLE, Home

if TYPE_CHECKING:
    from server_app.bundle_difference import Contents, Difference

app = typer.Typer(
    **options("Code that runs bring to hospitals: read it, sign it, keep signatures.")
)
console = Console()

HomeOption = Annotated[
    Path, typer.Option("--home", envvar=HOME_VARIABLE, help="The coordinator's folder.")
]
BundleArgument = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="What `coordinator review bundle` wrote.")
]
PassphraseOption = Annotated[
    Path | None,
    typer.Option(help="File with the passphrase, as from a secret store; else it is asked for."),
]
DEFAULT_HOME = Path("coordinator")
_LARGEST = 1 << 24  # bytes of a file that may be a bundle


@app.command()
def key(
    out: Annotated[
        Path, typer.Option(help="File for the private key; the public half is in FILE.pub.")
    ],
    passphrase_file: PassphraseOption = None,
) -> None:
    """Make a reviewer's key, on the reviewer's own machine. The private half stays there, encrypted.

    Example: coordinator review key --out alice
    """
    from server_app import reviewer_key

    line = reviewer_key.create(out, _passphrase(passphrase_file, new=True), out.name)
    _print(
        f"written: {out} (keep it) and {out}.pub\n"
        "hospitals that trust this reviewer write into site.yaml, under a name of their choice:\n"
        f"policy:\n  reviewers:\n    NAME: {line}"
    )


@app.command()
def bundle(
    out: Annotated[Path, typer.Option(help="File to write.", show_default=True)] = Path(
        "consilium.fab"
    ),
) -> None:
    """Write the bundle that a run started here would bring, for reviewers.

    Example: coordinator review bundle --out consilium.fab
    """
    from server_app import bundle as bundles
    from server_app.bundle_difference import Contents
    from server_app.state import write_atomically

    content = bundles.build()
    write_atomically(out, content)
    _describe(content, Contents.of(content, str(out)))
    _print(f"written: {out}")


@app.command()
def compare(
    bundle: BundleArgument,
    other: Annotated[
        Path | None,
        typer.Argument(
            metavar="[OLD]", help="An older bundle; without it the code installed here."
        ),
    ] = None,
    diff: Annotated[bool, typer.Option("--diff", help="Print what differs, line by line.")] = False,
) -> None:
    """Say which files of a bundle differ from an older one, or from what is installed here.

    Example: coordinator review compare consilium.fab approved.fab --diff
    """
    content = _read(bundle)
    found = _difference(content, bundle, other)
    _describe(content, found.new)
    against = str(other) if other else "what is installed here"
    _print(f"compared with {against} (version {found.old.version}, code {found.old.code}):")
    for word, names in (
        ("added", found.added),
        ("removed", found.removed),
        ("changed", found.changed),
    ):
        for name in names:
            _print(f"  {word:8} {name!a}")
    if not (found.added or found.removed or found.changed):
        _print("  no difference")
    if diff:
        for line in found.lines():
            _print(line)


@app.command()
def sign(
    bundle: BundleArgument,
    key: Annotated[Path, typer.Option(help="The reviewer's private key.")],
    out: Annotated[
        Path | None, typer.Option(help="File to write; beside the bundle if not given.")
    ] = None,
    passphrase_file: PassphraseOption = None,
) -> None:
    """Sign a bundle that you have read, every byte of it. Send the file to the coordinator.

    Example: coordinator review sign consilium.fab --key alice
    """
    from federation import review
    from server_app import reviewer_key
    from server_app.bundle_difference import Contents
    from server_app.state import write_atomically

    content = _read(bundle)
    _describe(content, Contents.of(content, str(bundle)))
    private = reviewer_key.load(key, _passphrase(passphrase_file, new=False))
    signature = review.sign(content, private, int(time.time()))
    path = out or bundle.with_name(f"{bundle.stem}.{signature.key_id}{review.SUFFIX}")
    write_atomically(path, signature.content())
    _print(f"signed by {signature.key_id}\nwritten: {path}")


@app.command()
def add(
    signatures: Annotated[
        list[Path], typer.Argument(metavar="SIGNATURE…", help="Files that reviewers sent.")
    ],
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Keep reviewers' signatures. Runs that start from now on bring them to the hospitals.

    Example: coordinator review add *.signature.json
    """
    from federation import review

    place = Home(home)
    place.federation()
    for signature in [review.read(path) for path in signatures]:
        place.bundles.add(signature)
        _print(f"bundle {signature.bundle}\n  signed by {signature.key_id}")


@app.command()
def show(home: HomeOption = DEFAULT_HOME) -> None:
    """The bundle that a run would bring now, bundles of earlier runs, and who signed which.

    Example: coordinator review show
    """
    from server_app import bundle as bundles
    from server_app.bundle_difference import Contents

    place = Home(home)
    place.federation()
    content = bundles.build()
    now = hashlib.sha256(content).hexdigest()
    _print("what a run would bring now:")
    _describe(content, Contents.of(content, "the bundle"))
    _show_signatures(place, now)
    for sha256 in place.bundles.known():
        if sha256 != now:
            _print(f"bundle {sha256}")
            _show_signatures(place, sha256)


def _show_signatures(home: Home, sha256: str) -> None:
    signatures = home.bundles.signatures(sha256)
    if not signatures:
        _print("  signed by nobody")
    for one in signatures:
        at = datetime.fromtimestamp(one.signed_at, UTC).isoformat(timespec="seconds")
        _print(f"  signed by {one.key_id} at {at}\n    {one.reviewer}")


def _describe(content: bytes, contents: Contents) -> None:
    _print(
        f"bundle {hashlib.sha256(content).hexdigest()}\n"
        f"  version {contents.version}, code {contents.code}\n"
        f"  {len(contents.files)} files, {sum(map(len, contents.files.values())):,} bytes"
    )


def _difference(content: bytes, path: Path, other: Path | None) -> Difference:
    from server_app import bundle as bundles
    from server_app.bundle_difference import Contents, Difference

    if other is None:
        old = Contents.of(bundles.build(), "what is installed here")
    else:
        old = Contents.of(_read(other), str(other))
    return Difference(old=old, new=Contents.of(content, str(path)))


def _read(path: Path) -> bytes:
    from federation.roster import read_bounded

    try:
        return read_bounded(path, _LARGEST)
    except FileNotFoundError:
        raise ConfigError(
            f"there is no {path}; a bundle is made by: coordinator review bundle"
        ) from None


def _passphrase(file: Path | None, *, new: bool) -> str:
    if file is None:
        text: str = typer.prompt("passphrase", hide_input=True, confirmation_prompt=new, err=True)
        return text
    from federation.roster import read_bounded

    try:
        return read_bounded(file, 1 << 12).decode().rstrip("\r\n")
    except FileNotFoundError:
        raise ConfigError(f"there is no {file}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file} is not text") from None


def _print(text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)
