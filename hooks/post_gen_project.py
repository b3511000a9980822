"""Delete the files of features that were not selected, then print the next steps.

It is safe to run again in the same folder: ``cruft update`` does that.  Standard library only.

cookiecutter renders this file and runs it.  Copier runs it as it is, with the template's folder as
its argument, also in an existing project: then it deletes nothing.  See scripts/copier.py.
"""

import re
import shutil
import sys
from pathlib import Path

SLUG = "{{ cookiecutter.project_slug }}"
BY_COOKIECUTTER = "{{ '_output_dir' in cookiecutter }}"  # False when cruft renders

# Files are deleted unless their condition is true.  To add a feature, add a row.
FEATURES = [
    ("{{ cookiecutter.example }}", """
        alembic/versions/*_create_item.py  alembic/versions/*_create_item_*_index.py
        docs/example.md  src/**/item.py  src/**/items.py
        tests/**/test_item.py  tests/**/test_items.py"""),
    ("{{ cookiecutter.example and cookiecutter.__queue }}", """
        alembic/versions/*_create_item_import.py  src/**/item_import.py  src/**/item_imports.py
        tests/**/test_item_import.py  tests/**/test_item_imports.py"""),
    ("{{ cookiecutter.example and cookiecutter.scheduler }}", """
        src/**/stale_items.py  tests/**/test_stale_items.py"""),
    ("{{ not cookiecutter.example }}", "src/*/jobs_without_example.py"),
    ("{{ cookiecutter.cache_backend != 'none' }}", """
        docs/caching.md  src/cache  src/core/cache_type.py  src/schemas/cache.py
        src/api/response_*.py  src/api/v1/endpoints/cache.py
        src/tasks/engine/middleware/caching.py
        tests/test_cache  tests/test_api/test_cache*.py  tests/test_api/test_response_*.py"""),
    ("{{ cookiecutter.cache_backend in ['redis', 'file', 'all'] }}", """
        src/cache/engine/circuit_breaker.py
        tests/test_cache/reader.py
        tests/test_cache/test_circuit_breaker.py"""),
    ("{{ cookiecutter.cache_backend in ['redis', 'all'] }}", """
        src/cache/backends/redis*.py  tests/faults/test_cache_server.py  tests/test_cache/test_redis"""),
    ("{{ cookiecutter.cache_backend in ['file', 'all'] }}", """
        deploy/k8s/base/file-cache.yaml
        src/cache/backends/file.py  src/cache/backends/sqlite.py
        tests/test_cache/test_file*.py"""),
    ("{{ cookiecutter.__redis }}", """
        dev/valkey.py  src/core/redis_url.py
        tests/**/test_redis_settings.py"""),
    ("{{ cookiecutter.__queue }}", """
        alembic/versions/*_tasks.py  deploy/**/*worker.yaml  docs/tasks.md  src/**/task.py  src/tasks
        src/api/accepted.py  src/api/v1/endpoints/tasks.py  src/core/broker_type.py  src/worker.py
        tests/faults/test_task_queue.py  tests/fixtures/tasks.py  tests/test_tasks  tests/test_api/test_tasks.py  tests/test_cache/test_in_tasks.py"""),
    ("{{ cookiecutter.__queue_redis }}", """
        src/tasks/engine/brokers/redis.py
        tests/test_tasks/**/redis.py  tests/test_tasks/**/test_redis*.py"""),
    ("{{ cookiecutter.__queue_rabbitmq }}", """
        .devcontainer/packages  .github/packages  dev/rabbitmq.py  src/core/rabbitmq_url.py
        src/tasks/engine/brokers/rabbitmq*.py  tests/**/rabbitmq.py  tests/**/test_rabbitmq*.py"""),
    ("{{ cookiecutter.scheduler }}", """
        alembic/versions/*_create_scheduler.py  deploy/**/*scheduler.yaml  docs/scheduler.md  src/**/scheduler.py
        src/core/time_zone.py  src/schedulers  tests/faults/test_scheduler_*.py  tests/test_schedulers
        tests/test_api/test_scheduler_endpoints.py  tests/test_cache/test_scheduled.py"""),
    ("{{ cookiecutter.__queue or cookiecutter.scheduler }}", """
        src/core/context.py  src/core/failures.py  tests/test_core/test_failures.py
        src/db/batches.py  src/repositories/retention.py"""),
    ("{{ cookiecutter.__users }}", """
        alembic/versions/*_create_users.py  docs/users.md  src/**/user.py  src/api/**/users.py
        src/api/**/sessions.py  src/auth/passwords.py  src/auth/tokens.py  src/auth/users_cli.py
        src/services/login_throttle.py  src/services/session.py  tests/fixtures/users.py  tests/test_users"""),
    ("{{ cookiecutter.__users }}", """
        docs/mail.md  src/core/mail_settings.py  src/mail  tests/fixtures/mail.py  tests/test_mail
        src/api/mails.py  src/**/user_mail.py  src/**/one_time_token*.py"""),
    ("{{ cookiecutter.__users and not cookiecutter.__queue }}", """
        src/api/mails_without_queue.py  tests/test_users/test_mails_without_queue.py"""),
    ("{{ cookiecutter.__oidc }}", """
        docs/oidc.md  src/api/oidc.py  src/core/oidc_settings.py  src/oidc
        tests/fixtures/oidc.py  tests/test_auth/issuer.py  tests/test_auth/test_oidc*.py"""),
    ("{{ cookiecutter.deployment == 'kubernetes' }}", "deploy/k8s  docs/kubernetes.md"),
    ("{{ cookiecutter.ci_provider == 'github' }}", """
        .github/dependabot.yml  .github/packages  .github/python-version
        .github/workflows/ci.yml  .github/workflows/lock.yml"""),
    ("{{ cookiecutter.ci_provider == 'gitlab' }}", ".gitlab-ci.yml  renovate.json"),
    # Always deleted: tests of the template's pages and of code that a service does not change.
    # tests/test_service.py of the template runs them.
    ("", """
        tests/**/test_docs.py  tests/test_api/test_recipes.py  tests/test_tasks/test_mail.py
        tests/test_db/test_backups.py  tests/faults/test_capacity.py
        tests/test_dev/test_load.py  tests/test_dev/test_postgres.py  tests/test_dev/test_rabbitmq.py
        tests/test_dev/test_server.py  tests/test_dev/test_supervisor.py
        tests/test_dev/test_valkey.py  tests/test_models/test_import_order.py"""),
    # Caches of tools that ran in the template's folder: always deleted.
    # (``_copy_without_render`` stops Jinja from rendering their binary files.)
    ("", "**/__pycache__  .*_cache  .hypothesis  .coverage  .coverage.*"),
]  # fmt: skip

REVISION = re.compile(r"""^revision\b.*= ["'](\w+)""", re.MULTILINE)
DOWN_REVISION = re.compile(r"""^(down_revision\b.*= )["']?(\w+)["']?""", re.MULTILINE)

TAKEN = "project_slug cannot be %r: a dependency has this name; use another one."
NEXT_STEPS = """
%s is ready. Next steps:

  cd %s
  git init && git add --all && git commit -m "Start"
  make dev     start the service and the servers that it needs
  make test    run the tests

Updates of the template need the commit."""


def drop(path):
    """Delete a file or folder if it exists, and the parent folders that become empty."""
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()
    for parent in path.parents:
        if parent == Path() or not parent.is_dir() or any(parent.iterdir()):
            return
        parent.rmdir()


def from_template(template, pattern):
    """Return the project's files and folders that the template has too; others are the user's."""
    paths = [path.relative_to(template) for path in template.glob(pattern)]
    return sorted((path for path in paths if path.exists()), reverse=True)


def drop_empty_folders(template):
    """Copier creates the folders of the files that it leaves out."""
    for path in from_template(template, "**/*"):  # a folder is after its content
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def migrations(folder):
    """Yield the path, source, revision and down revision of each migration."""
    for path in folder.glob("alembic/versions/*.py"):
        source = path.read_bytes().decode("utf-8")
        revision, down = REVISION.search(source), DOWN_REVISION.search(source)
        if revision and down:  # a merge has several down revisions: skip it
            yield path, source, revision.group(1), down.group(2)


def relink_migrations(before, template):
    """Point each migration that followed a deleted one to its nearest remaining ancestor."""
    found = list(migrations(Path()))
    remaining = {revision for _, _, revision, _ in found}
    for path, source, _, down in found:
        nearest = down
        while nearest in before and nearest not in remaining:
            nearest = before[nearest]
        if nearest != down and (template / path).exists():
            name = nearest if nearest == "None" else '"%s"' % nearest
            path.write_bytes(DOWN_REVISION.sub(r"\g<1>" + name, source).encode("utf-8"))


def sort_pins(template):
    """Restore uv's order: in the template, the pins of each feature are at the end."""
    for path in from_template(template, "requirements*.txt"):
        text = path.read_bytes()
        comments = re.findall(rb"^#.*\n", text, re.MULTILINE)
        # The indented lines after a pin are its hashes.
        pins = re.findall(rb"^[^#\s].*\n(?:[ \t].*\n)*", text, re.MULTILINE)
        pins.sort(key=lambda pin: pin.partition(b"==")[0])
        path.write_bytes(b"".join(comments + pins))


def is_named_like_a_dependency():
    """uv cannot lock a project that has the name of one of its dependencies."""
    pin = re.compile(r"^%s==" % re.escape(SLUG), re.MULTILINE)
    return any(pin.search(path.read_text("utf-8")) for path in Path().glob("requirements*.txt"))


def drop_unselected():
    for condition, paths in FEATURES:
        if condition in {"", "False"}:
            for pattern in paths.split():
                for path in list(Path().glob(pattern)):
                    drop(path)


def main():
    template = Path(*sys.argv[1:])  # the project itself, except with Copier
    before = {revision: down for _, _, revision, down in migrations(template)}
    if template == Path():
        drop_unselected()
    else:
        drop_empty_folders(template)
    relink_migrations(before, template)
    sort_pins(template)
    for path in from_template(template, "src/*/*_without_*.py"):
        path.replace(path.with_name(path.name.partition("_without_")[0] + ".py"))
    if is_named_like_a_dependency():
        return TAKEN % SLUG
    if BY_COOKIECUTTER == "True":
        print(NEXT_STEPS % (SLUG, SLUG))
    return None


if __name__ == "__main__":
    error = main()
    if not sys.argv[1:]:
        Path(__file__).unlink()  # cookiecutter leaves this rendered copy in the temporary folder
    sys.exit(error)
