"""The manuals of a generated service with all pages, rendered into `docs/service`.

Sphinx then reads them like any other page. The folder is not in git: each build makes it.
"""  # noqa: INP001 - Sphinx loads it by name

import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata

SERVICE = "{{cookiecutter.project_slug}}"
PATTERNS = ("README.md", "DEVELOPER-GUIDE.md", "docs/*.md")


def folder_of(app: Sphinx) -> Path:
    return Path(app.srcdir) / "service"


def render(app: Sphinx) -> None:
    folder = folder_of(app)
    shutil.rmtree(folder, ignore_errors=True)
    with TemporaryDirectory(prefix="manuals-") as scratch:
        config = Path(scratch, "cookiecutter.yaml")
        config.write_text(f"replay_dir: {scratch}\n", "utf-8")  # not the home folder
        command: list[str | Path] = [sys.executable, "-m", "cookiecutter", folder.parents[1]]
        command += ["--no-input", "--output-dir", f"{scratch}/out", "--config-file", config]
        command += ["deployment=kubernetes", "__oidc=yes", "__users=yes"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        [project] = Path(scratch, "out").iterdir()
        for pattern in PATTERNS:
            for manual in sorted(project.glob(pattern)):
                page = folder / manual.relative_to(project)
                page.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(manual, page)


def setup(app: Sphinx) -> ExtensionMetadata:
    app.connect("builder-inited", render)
    return {"parallel_read_safe": True}
