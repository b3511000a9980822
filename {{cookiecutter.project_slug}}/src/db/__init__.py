from src.db.session import Database, open_database

__all__ = ["Database", "open_database"]
