"""Finds the actors of the service."""

from importlib import import_module
from pkgutil import walk_packages

import src.tasks

_WITHOUT_ACTORS = {"cli", "engine"}


def load_actors() -> None:
    """Import the modules of `src.tasks`, so that a worker knows the actors in all of them."""
    for module in walk_packages(src.tasks.__path__, "src.tasks."):
        if module.name.split(".")[2] not in _WITHOUT_ACTORS:
            import_module(module.name)
