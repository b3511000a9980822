from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from src.cache.backends.file import FileBackend
from tests.test_cache.caching_contract import SharedCachingContract


class TestCaching(SharedCachingContract):
    @pytest.fixture
    async def backend(self, tmp_path: Path) -> AsyncGenerator[FileBackend]:
        async with FileBackend(tmp_path / "cache") as backend:
            yield backend

    @pytest.fixture
    def variables(self, tmp_path: Path) -> dict[str, str]:
        return {"CACHE_BACKEND_TYPE": "file", "CACHE_FILE_PATH": str(tmp_path / "cache")}
