"""All fixtures are in `tests/fixtures`."""

pytest_plugins = [
    "tests.fixtures.environment",  # first, since the others read the settings on import
    "tests.fixtures.notes",
    "tests.fixtures.database",
    "tests.fixtures.client",
    "tests.fixtures.commands",
    # % if cookiecutter.__oidc
    "tests.fixtures.oidc",
    # % endif
    # % if cookiecutter.__users
    "tests.fixtures.mail",
    "tests.fixtures.users",
    # % endif
]
