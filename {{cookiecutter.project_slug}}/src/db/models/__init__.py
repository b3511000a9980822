"""Database models. Add a module here; it needs no registration."""

import importlib
import pkgutil


def load_models() -> None:
    """Import all models, so that `Base.metadata` has every table."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
