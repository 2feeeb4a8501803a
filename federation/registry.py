"""Things chosen by name: one file each in a package, found by the file's name.

A file offers `Options` (a `federation.schema.Closed` with its own keys) and a function that builds
the thing. Adding one is adding that file and its YAML; nothing is registered anywhere.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import Any

from federation.schema import Closed, Component, ConfigError, nearest, parse


def names(package: ModuleType) -> list[str]:
    """The names that can be chosen in a package."""
    return sorted(
        module.name
        for module in pkgutil.iter_modules(package.__path__)
        if not module.name.startswith("_")
    )


def find(package: ModuleType, component: Component) -> tuple[ModuleType, Any]:
    """The component's module and its checked options.

    Raises:
        ConfigError: no such file in the package, or options its `Options` refuses.
    """
    kind = package.__name__.rpartition(".")[2]
    known = names(package)
    if component.name not in known:
        raise ConfigError(f"{kind}: there is no {component.name!r}{nearest(component.name, known)}")
    module = importlib.import_module(f"{package.__name__}.{component.name}")
    options: type[Closed] = module.Options
    return module, parse(options, component.options, where=f"{kind}/{component.name}")
