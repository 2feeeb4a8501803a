"""How both commands behave: the same look, and one line instead of a traceback when input is wrong."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from federation.schema import ConfigError

log = logging.getLogger("consilium")


def options(purpose: str) -> dict[str, Any]:
    """Settings of a Typer app."""
    return {
        "help": purpose,
        "no_args_is_help": True,
        "add_completion": False,
        "rich_markup_mode": "rich",
        "pretty_exceptions_enable": False,
    }


def passphrase(file: Path | None, *, confirm: bool = False) -> str:
    """The first line of a file, or what a person types.

    Raises:
        ConfigError: the file cannot be read.
    """
    if file is None:
        return str(typer.prompt("passphrase", hide_input=True, confirmation_prompt=confirm))
    try:
        with file.open() as opened:
            return opened.readline(4096).rstrip("\r\n")
    except (OSError, UnicodeError):
        raise ConfigError(f"{file} cannot be read as text; name the passphrase's file") from None


def said(error: BaseException) -> str:
    """What an error says; where the operating system refused a file, also to whom and what to do."""
    if not isinstance(error, PermissionError) or error.filename is None:
        return str(error)
    return (
        f"user {os.geteuid()} has no leave for {error.filename}; go on as the user that owns it "
        f"(ls -ld shows whose it and the folders above it are), or give this user leave"
    )


def runs_as(name: str, app: typer.Typer) -> int:
    """Run a command; its exit code. Set CONSILIUM_TRACEBACK=1 to see where an error came from.

    Only errors that tell a person what to do are shortened to one line; anything else is a fault of
    ours and keeps its traceback.
    """
    logging.basicConfig(level=logging.WARNING, format=f"{name}: %(message)s")
    try:
        app(prog_name=name, standalone_mode=True)
    except SystemExit as ended:
        return int(ended.code or 0)
    except (ConfigError, PermissionError) as error:
        if os.environ.get("CONSILIUM_TRACEBACK"):
            raise
        Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(
            f"{name}: {said(error)}"
        )
        return 1
    except KeyboardInterrupt:
        return 130
    return 0
