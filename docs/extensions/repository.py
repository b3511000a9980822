"""The repository's address, links to its files, and links to the manuals of the generated service.

Links in the sources are relative, so they also work in an editor and on the repository's host.
On the site, a link to a rendered manual leads to its page, and a link to any other file leads to
the repository's host. A file, folder or heading that does not exist causes a warning, which fails
a strict build. `ORG/fastapi-ignite` in a source becomes the name of the repository.
"""  # noqa: INP001 - Sphinx loads it by name

import re
from functools import cache
from os.path import relpath
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from manuals import SERVICE, folder_of
from myst_parser.slugs import github_slugify
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.typing import ExtensionMetadata

log = logging.getLogger(__name__)

PLACEHOLDER = "ORG/fastapi-ignite"

LINK = re.compile(r"(?<!!)(\[[^\]]*\])\(([^)\s]+)\)")
FENCE = re.compile(r" *(`{3,}|~{3,})")
ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:|#|/")  # a URL, a heading of this page
HEADING = re.compile(r"#{1,6} +(.+?) *#*")


def outside_fences(text: str) -> list[bool]:
    """Return, for each line, whether it is prose and not code."""
    found, fence = [], ""
    for line in text.splitlines():
        mark = FENCE.match(line)
        found.append(not fence and not mark)
        if mark and not fence:
            fence = mark[1]
        elif mark and mark[1].startswith(fence):
            fence = ""
    return found


@cache
def anchors_of(page: Path) -> frozenset[str]:
    """Return the anchors of a Markdown file's headings, as the repository's host makes them."""
    text = page.read_text("utf-8")
    lines = zip(text.splitlines(), outside_fences(text), strict=True)
    titles = (HEADING.fullmatch(line) for line, is_prose in lines if is_prose)
    return frozenset(github_slugify(title[1].replace("`", "")) for title in titles if title)


def fault_of(file: Path, anchor: str) -> str:
    if not file.exists():
        return "the repository has no such file"
    if anchor and (file.suffix != ".md" or anchor not in anchors_of(file)):
        return f"that file has no heading #{anchor}"
    return ""


class Rewriter:
    """Rewrites the links of one source file, which is in `folder` and part of the page `docname`."""

    def __init__(self, app: Sphinx, docname: str, folder: Path) -> None:
        self.docname = docname
        self.folder = folder
        self.docs = Path(app.srcdir)
        self.root = self.docs.parent
        self.service = self.root / SERVICE
        self.manuals = folder_of(app)
        self.url = f"https://github.com/{app.config.repository}"
        self.branch = app.config.repository_branch

    def text(self, source: str) -> str:
        source = source.replace(PLACEHOLDER, urlsplit(self.url).path.strip("/"))
        lines = zip(source.splitlines(keepends=True), outside_fences(source), strict=True)
        return "".join(
            self.prose(line, number) if is_prose else line
            for number, (line, is_prose) in enumerate(lines, 1)
        )

    def prose(self, line: str, number: int) -> str:
        return LINK.sub(lambda link: self.link(link, number), line)

    def link(self, link: re.Match[str], line: int) -> str:
        target, _, anchor = link[2].partition("#")
        if not target or ELSEWHERE.match(link[2]):
            return link[0]
        file = (self.folder / unquote(target)).resolve()
        ending = f"#{anchor}" if anchor else ""
        if page := self.page(file):
            return f"{link[1]}({relpath(page, (self.docs / self.docname).parent)}{ending})"
        if file.is_relative_to(self.manuals):
            file = self.service / file.relative_to(self.manuals)
        if not file.is_relative_to(self.root):
            fault = "that is not in the repository"
        else:
            fault = fault_of(file, anchor)
        if fault:
            log.warning("%s: %s", link[2], fault, location=(self.docname, line))
            return link[0]
        kind = "tree" if file.is_dir() else "blob"
        path = quote(file.relative_to(self.root).as_posix())
        return f"{link[1]}({self.url}/{kind}/{self.branch}/{path}{ending})"

    def page(self, file: Path) -> Path | None:
        """Return the page that a link to the file leads to; MyST checks whether it exists."""
        if file.is_relative_to(self.service):
            manual = self.manuals / file.relative_to(self.service)
            return manual if manual.suffix == ".md" and manual.exists() else None
        if file.is_relative_to(self.manuals) and not file.exists():
            return None
        return file if file.is_relative_to(self.docs) and file.suffix == ".md" else None


def rewrite(app: Sphinx, docname: str, folder: Path, source: list[str]) -> None:
    text = source[0].replace("ORG/fastapi-ignite", app.config.repository)
    source[0] = Rewriter(app, docname, folder).text(text)


def rewrite_page(app: Sphinx, docname: str, source: list[str]) -> None:
    rewrite(app, docname, (Path(app.srcdir) / docname).parent, source)


def rewrite_included(app: Sphinx, path: Path, docname: str, source: list[str]) -> None:
    rewrite(app, docname, (Path(app.srcdir) / path).resolve().parent, source)


def setup(app: Sphinx) -> ExtensionMetadata:
    app.add_config_value("repository", "", "env", types=frozenset({str}))
    app.add_config_value("repository_branch", "main", "env", types=frozenset({str}))
    app.connect("source-read", rewrite_page)
    app.connect("include-read", rewrite_included)
    return {"parallel_read_safe": True}
