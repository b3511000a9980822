"""One module per model, found without registration."""

import importlib
import pkgutil


def load_models() -> None:
    """Import every module of this package, so that `Base.metadata` knows all tables."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
