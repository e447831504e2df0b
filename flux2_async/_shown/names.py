"""Packages whose names are imported when they are first used."""

import sys
from collections.abc import Callable
from importlib import import_module


def lazily(package: str, **modules: str) -> Callable[[str], object]:
    """Give what such a package has for `__getattr__`.

    Args:
        package: Its name.
        **modules: The modules below it, each with the names that it has, between blanks.
    """
    names = vars(sys.modules[package])
    homes = {name: module for module, given in modules.items() for name in given.split()}
    # For `help`, and whoever else looks what there is.
    names["__dir__"] = lambda: sorted({*names, *homes})

    def give(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = names[name] = getattr(import_module(f"{package}.{homes[name]}"), name)
        return value

    return give
