"""A user's ordinary changes and environment do not break the service's own tests."""

from tests.conftest import Bake
from tests.project import BakedProject
from tests.subprocesses import run

TESTS = [
    "tests/test_api/test_idempotency.py",
    "tests/test_api/test_response_cache.py",
    "tests/test_api/test_service.py",
    "tests/test_cache/test_after_commit.py",
    "tests/test_cache/test_model_tags.py",
    "tests/test_cli.py",
    "tests/test_core",
    "--ignore=tests/test_core/test_patterns.py",
    "tests/test_dev/test_stack.py",
    "tests/test_models",
    "tests/test_schedulers/test_cli.py",
    "tests/test_schedulers/test_scheduler.py",
    "tests/test_tasks/test_brokers/test_redis_settings.py",
]
ENVIRONMENT = {
    "HOME": "/nonexistent",
    "TZ": "Asia/Kolkata",
    "LC_ALL": "tr_TR.UTF-8",
    "CI": "true",
    "GITHUB_ACTIONS": "true",
    "FORCE_COLOR": "1",
    "COLUMNS": "40",
    "HTTP_PROXY": "http://127.0.0.1:1",
    "PGSSLMODE": "require",
    "PROMETHEUS_MULTIPROC_DIR": "/nonexistent",
    "ENV": "production",
    "api_keys": "8f14e45fceea167a5a36dedd4bea2543",
    "CORS_ORIGINS": "https://shop.example",
    "LOG_LEVEL": "DEBUG",
}
JOB = """
    scheduler.add_job(hello, trigger="interval", seconds=1, id="hello")


async def hello() -> None:
    log.info("hello")


async def archive"""
# Models with names that tests may use too, and that each relationship looks up by name.
NAMES = ["Author", "Book", "Loan", "Note", "OrderLine", "Page", "Reader", "Shelf", "Volume"]
MODELS = "\n".join(
    [
        "from sqlalchemy import ForeignKey, MetaData",
        "from sqlalchemy.orm import Mapped, mapped_column, relationship",
        "from src.db.base import Base, UUIDMixin",
        "METADATA = MetaData()",
        *(
            f"class {name}(Base, UUIDMixin):\n"
            f"    metadata, __tablename__ = METADATA, '{name}'\n"
            f"    parent_id: Mapped[str] = mapped_column(ForeignKey('{other}.id'))\n"
            f"    parent = relationship('{other}', foreign_keys=parent_id)"
            for name, other in zip(NAMES, NAMES[1:] + NAMES[:1], strict=True)
        ),
    ]
)
IMPORT = "from fastapi import Depends"
CONFIG = "src/core/config.py"
# The file, the text to replace, and the new text.
CHANGES = [
    # A setting that production requires, and one without a default.
    (CONFIG, "    HOST: str", "    PAYMENT_KEY: str = ''\n    SHOP: str\n    HOST: str"),
    (CONFIG, "    HOST: str", "    RATINGS_URL: str = 'http://127.0.0.1:9100'\n    HOST: str"),
    (CONFIG, "if self.DEBUG:", "if not self.PAYMENT_KEY or self.DEBUG:"),
    ("tests/fixtures/environment.py", "str] = {}", "str] = {'SHOP': 'Lamps'}"),
    # Other defaults.
    (CONFIG, 'default="/api"', 'default="/shop"'),
    (CONFIG, 'HOST: str = "127.0.0.1"', 'HOST: str = "0.0.0.0"'),
    (CONFIG, "SCHEDULER_ENABLED: bool = True", "SCHEDULER_ENABLED: bool = False"),
    # A middleware, an error of every endpoint, and no page for people.
    ("main.py", IMPORT, f"from fastapi.middleware.gzip import GZipMiddleware\n{IMPORT}"),
    (
        "main.py",
        "    app.add_middleware(\n        RequestMiddleware",
        "    app.add_middleware(GZipMiddleware, minimum_size=1)\n{0}",
    ),
    ("main.py", "debug=settings.DEBUG,", "debug=settings.DEBUG, responses=openapi.problems(429),"),
    ("main.py", 'docs_url=f"{settings.API_PREFIX}/docs"', "docs_url=None"),
    # A job that runs while the tests run.
    ("src/schedulers/jobs.py", "\n\nasync def archive", JOB),
]


def change(project: BakedProject, file: str, old: str, new: str) -> None:
    text = project.read_file(file)
    assert old in text, (file, old)
    (project.path / file).write_text(text.replace(old, new.replace("{0}", old), 1), "utf-8")


def test_ordinary_changes_do_not_fail_the_tests_of_the_service(bake: Bake) -> None:
    project = bake()
    for file, old, new in CHANGES:
        change(project, file, old, new)
    (project.path / "docs/scheduler.md").unlink()
    (project.path / "src/db/models/library.py").write_text(MODELS, "utf-8")
    newest = max((project.path / "alembic/versions").glob("*.py"))
    start = newest.read_text("utf-8").partition("def downgrade")[0]
    newest.write_text(f"{start}def downgrade() -> None:\n    raise NotImplementedError\n", "utf-8")
    run("pytest", "--quiet", *TESTS, cwd=project.path, env=ENVIRONMENT)
