"""The releases of the template in the history of git."""

import json
import subprocess
import tarfile
from functools import cache
from io import BytesIO
from pathlib import Path

import pytest

from tests.project import REPOSITORY, SERVICE


def git(*arguments: str) -> bytes:
    return subprocess.run(
        ["git", *arguments], cwd=REPOSITORY, check=True, capture_output=True
    ).stdout


@cache
def releases() -> dict[str, str]:
    """Return the commit of each release before this one, such as `0.4.0`, the newest first."""
    now = (REPOSITORY / "cookiecutter.json").read_text("utf-8")
    found = {}
    for commit in git("log", "--format=%H", "--", "cookiecutter.json").decode().split():
        version = json.loads(git("show", f"{commit}:cookiecutter.json")).get("_version", "")
        if version and "dev" not in version and version != json.loads(now)["_version"]:
            found[version] = commit  # later the oldest commit that has this version
    if not found:
        pytest.skip("the git history has no release: fetch all of it", allow_module_level=True)
    return found


def extract_service(release: str, folder: Path) -> Path:
    """Write the service of a release, with all features, into a folder."""
    with tarfile.open(fileobj=BytesIO(git("archive", releases()[release], SERVICE))) as archive:
        archive.extractall(folder, filter="data")
    return folder / SERVICE
