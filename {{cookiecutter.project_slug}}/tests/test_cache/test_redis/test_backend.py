from tests.test_cache.contract import BackendContract


class TestRedisBackend(BackendContract):
    pass
