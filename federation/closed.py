"""What closed schemas are made of: a key that is not known is refused, with the nearest known one."""

from __future__ import annotations

import types
import typing
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class ConfigError(ValueError):
    """A configuration that cannot be used; the text says what, where, and what to do."""


class Closed(BaseModel):
    """A frozen mapping that refuses keys it does not know and NaN or infinite numbers."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=()
    )


class Component(BaseModel):
    """Something chosen by name (a task, a model, a strategy) with options of its own.

    The options are closed too: the component's own file declares them, see `federation.registry`.
    """

    model_config = ConfigDict(
        extra="allow", frozen=True, allow_inf_nan=False, protected_namespaces=()
    )

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,40}$")

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


Schema = typing.TypeVar("Schema", bound=BaseModel)


def parse(schema: type[Schema], content: object, *, where: str = "") -> Schema:
    """Check `content` against `schema`.

    Args:
        where: what to put before a key in an error, such as a file's name.

    Raises:
        ConfigError: names the first wrong key, what is wrong with it, and the nearest known key or
            the allowed range.
    """
    try:
        return schema.model_validate(content)
    except ValidationError as failure:
        errors = failure.errors(include_url=False)
        # a key that is misspelt is also missing: say the first
        first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
        raise ConfigError((f"{where}: " if where else "") + _say(schema, dict(first))) from None


def _say(schema: type[BaseModel], error: dict[str, Any]) -> str:
    path = [str(part) for part in error["loc"]]
    key = ".".join(path)
    if error["type"] == "extra_forbidden":
        known = list(_model_at(schema, path[:-1]).model_fields)
        return f"unknown key {key!r}{nearest(path[-1], known)}"
    if error["type"] == "missing":
        return f"{key} is missing"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"]) if not key else f"{key}: {error['ctx']['error']}"
    message = str(error["msg"])
    return f"{key} is {error['input']!r}: {message[0].lower()}{message[1:]}"


def _model_at(schema: type[BaseModel], path: list[str]) -> type[BaseModel]:
    """The model class at a path of keys in `schema`."""
    for key in path:
        if key not in schema.model_fields:  # an index into a list
            continue
        annotation = schema.model_fields[key].annotation
        options = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
        for option in options:
            if isinstance(option, type) and issubclass(option, BaseModel):
                schema = option
    return schema


def _is_union(annotation: object) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def nearest(word: str, known: typing.Iterable[str]) -> str:
    """`, did you mean 'x'?` for the known word most like `word`, or the list of all of them."""
    candidates = sorted(known)
    close = get_close_matches(word, candidates, n=1, cutoff=0.6)
    return f", did you mean {close[0]!r}?" if close else f"; known: {', '.join(candidates)}"
