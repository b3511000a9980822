"""The hooks: what they need, what they delete and what they leave."""

import ast
import json
import sys
from pathlib import Path

import jinja2
import pytest
from alembic.script import ScriptDirectory

from tests.conftest import Bake
from tests.project import REPOSITORY, SERVICE, BakedProject, Terminal, files_under
from tests.subprocesses import run

HOOKS = sorted((REPOSITORY / "hooks").glob("*.py"))


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.stem)
def test_a_hook_needs_python_3_8_and_the_standard_library_only(hook: Path) -> None:
    """Hooks run in cookiecutter's environment, which may have no other package."""
    tree = ast.parse(hook.read_text("utf-8"), feature_version=(3, 8))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import)]
    packages = {alias.name.partition(".")[0] for node in imports for alias in node.names}
    assert packages <= sys.stdlib_module_names


def test_the_answers_reach_the_hook_unchanged() -> None:
    """Quotes, backslashes, line ends and text in any script."""
    answers = {
        "name": 'a"""b\\"\\',
        "empty": "",
        "lines": "x\n\u2028\0y",
        "script": "日本 👩\u200d🚀 {{ }} '",
    }
    source = (REPOSITORY / "hooks/pre_gen_project.py").read_text("utf-8")
    rendered = jinja2.Environment(autoescape=False).from_string(source).render(cookiecutter=answers)
    (passed,) = [
        ast.literal_eval(node.value)
        for node in ast.parse(rendered).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ANSWERS"
    ]
    assert json.loads(passed) == answers


def test_an_old_cookiecutter_is_rejected(
    template: Path, terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = tmp_path / "old/cookiecutter-2.5.0.dist-info/METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: cookiecutter\nVersion: 2.5.0\n", "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "old"))
    done = terminal.cookiecutter(template)
    assert done.returncode == 1
    assert "This template needs cookiecutter 2.6 or newer; you have 2.5.0." in done.stderr
    assert terminal.leftovers() == []


def test_only_the_project_is_left_after_generation(template: Path, terminal: Terminal) -> None:
    """The rendered copies of the hooks are deleted, and the next steps are printed."""
    done = terminal.cookiecutter(template)
    assert done.returncode == 0, done.stderr
    assert terminal.leftovers() == [terminal.work / "my-service"]
    for words in ("cd my-service", "make dev", "make test"):
        assert words in done.stdout


def test_the_next_steps_commit_the_project(template: Path, terminal: Terminal) -> None:
    printed = terminal.cookiecutter(template).stdout
    (commands,) = [line for line in printed.splitlines() if "git init" in line]
    done = terminal.run("sh", "-c", f"cd my-service && {commands}")
    assert done.returncode == 0, done.stderr
    assert terminal.git(terminal.work / "my-service", "status", "--porcelain") == ""


def test_caches_of_tools_are_not_copied_into_a_project(
    own_template: Path, terminal: Terminal, bake: Bake
) -> None:
    """A project made from a working folder equals one from a clean clone."""
    for name in (".ruff_cache", ".mypy_cache/3.13", "src/__pycache__", "src/gone/__pycache__"):
        cache = own_template / SERVICE / name
        cache.mkdir(parents=True, exist_ok=True)
        (cache / "text").write_bytes(b"{{ not a template \xff %}")
    (own_template / SERVICE / ".coverage.host.1").write_bytes(b"{{ \xff")
    done = terminal.cookiecutter(own_template)
    assert done.returncode == 0, done.stderr
    project = BakedProject(terminal.work / "my-service", {})
    assert project.files() == bake().files()
    assert not project.has_file("src/gone")


def test_a_project_with_the_name_of_a_dependency_is_rejected(
    own_template: Path, terminal: Terminal
) -> None:
    """uv cannot lock a project that depends on itself."""
    (own_template / SERVICE / "requirements.txt").write_text(
        "fastapi==0.165.0\nother==1\n", "utf-8"
    )
    done = terminal.cookiecutter(own_template, project_slug="fastapi")
    assert done.returncode == 1
    assert "project_slug cannot be 'fastapi': a dependency has this name;" in done.stderr
    assert terminal.leftovers() == []


def test_a_second_run_with_other_answers_deletes_unselected_files(
    template: Path, terminal: Terminal
) -> None:
    """The user's own files are kept, including those in the same folders."""
    terminal.cookiecutter(template)
    own = terminal.work / "my-service" / ".github" / "CODEOWNERS"
    own.touch()
    done = terminal.cookiecutter(template, "--overwrite-if-exists", ci_provider="gitlab")
    assert done.returncode == 0, done.stderr
    assert list(files_under(own.parent)) == [Path("CODEOWNERS")]
    assert (terminal.work / "my-service" / ".gitlab-ci.yml").exists()


def migrations(project: Path) -> ScriptDirectory:
    return ScriptDirectory(str(project / "alembic"))


@pytest.mark.parametrize("scheduler", ["yes", "no"])
@pytest.mark.parametrize("task_queue", ["redis", "none"])
@pytest.mark.parametrize("example", ["yes", "no"])
def test_the_remaining_migrations_form_one_chain(
    render: Bake, example: str, task_queue: str, scheduler: str
) -> None:
    """There is one base and one head, and Alembic can write the SQL of every revision."""
    project = render(example=example, task_queue=task_queue, scheduler=scheduler)
    chain = migrations(project.path)
    assert len(chain.get_bases()) == len(chain.get_heads()) == 1
    revisions = [script.revision for script in chain.walk_revisions()]
    assert len(revisions) == len(list(project.path.glob("alembic/versions/*.py")))

    sql = run("alembic", "upgrade", "head", "--sql", cwd=project.path)
    assert all(f"version_num='{revision}'" in sql for revision in revisions[:-1])


def test_a_user_migration_is_relinked_to_the_nearest_remaining_one(
    template: Path, terminal: Terminal
) -> None:
    """Another run changes nothing."""
    terminal.cookiecutter(template)
    project = terminal.work / "my-service"
    (deleted,) = migrations(project).get_heads()  # of the example
    own = project / "alembic" / "versions" / "own.py"
    own.write_text(f"revision = 'abc'\ndown_revision = '{deleted}'\n", "utf-8")

    written = []
    for _ in range(2):
        done = terminal.cookiecutter(
            template, "--overwrite-if-exists", task_queue="none", example="no"
        )
        assert done.returncode == 0, done.stderr
        written.append(own.read_text("utf-8"))
    left = migrations(project)
    assert left.get_heads() == ["abc"]
    assert len(list(left.walk_revisions())) == len(list(own.parent.glob("*.py")))
    assert deleted not in written[0]
    assert written[0] == written[1]
