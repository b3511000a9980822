import pytest

pytest.register_assert_rewrite("tests.test_cache.caching_contract", "tests.test_cache.contract")
