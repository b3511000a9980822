from src.db import lazy_loading  # noqa: F401 - registers a listener
from src.db.session import Database, DatabaseUnavailableError, open_database

# isort: split
from src.db import models  # noqa: F401 - after the sessions, which a model may import

__all__ = ["Database", "DatabaseUnavailableError", "open_database"]
