"""Database models. Add a module here; it needs no registration.

To import one model is to import all. Relationships name models of other modules, and SQLAlchemy
looks for them as soon as any module builds a query.
"""

import importlib
import pkgutil

for _module in pkgutil.walk_packages(__path__, f"{__name__}."):
    importlib.import_module(_module.name)
