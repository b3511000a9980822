"""All fixtures are in `tests/fixtures`, a file for each kind."""

pytest_plugins = [
    "tests.fixtures.environment",  # first: the others read the settings when imported
    "tests.fixtures.notes",
    "tests.fixtures.database",
    "tests.fixtures.client",
    "tests.fixtures.commands",
]
