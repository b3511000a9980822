"""The documentation site: Sphinx with MyST and Shibuya. Neither the build nor a page needs the internet."""  # noqa: INP001 - Sphinx loads it by path

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS / "extensions"))

project = "fastapi-ignite"
author = "the authors of fastapi-ignite"
project_copyright = author

extensions = ["myst_parser", "manuals", "mermaid", "repository"]
# Only the README has the repository's address.
[repository] = set(re.findall(r"\bgh:([\w./-]+)", (DOCS.parent / "README.md").read_text("utf-8")))
repository_branch = "main"

exclude_patterns = ["extensions", "static", "templates"]
templates_path = ["templates"]
nitpicky = True
smartquotes = False  # quotes stay as a terminal needs them
myst_fence_as_directive = ["mermaid"]
myst_heading_anchors = 4

html_theme = "shibuya"
html_title = project
html_static_path = ["static"]
html_css_files = ["site.css"]
html_js_files = ["copy.js"]
html_copy_source = False
html_show_sourcelink = False
html_sidebars = {"**": ["sidebars/localtoc.html"]}
html_theme_options = {
    "accent_color": "teal",
    "show_ai_links": False,
    "nav_links": [
        {"title": "Tutorial", "url": "tutorial"},
        {"title": "Manuals", "url": "service/README"},
        {"title": "GitHub", "url": f"https://github.com/{repository}"},
    ],
}


def drop_remote_fonts(app: Sphinx, exception: Exception | None) -> None:
    """Remove the theme's font for flags, which a page with a flag would load from a CDN."""
    style = Path(app.outdir, "_static/shibuya.css")
    if exception is None and style.exists():
        text = re.sub(r"@font-face\{[^}]*url\(https:[^}]*\}", "", style.read_text("utf-8"))
        style.write_text(text, "utf-8")


def setup(app: Sphinx) -> None:
    app.connect("build-finished", drop_remote_fonts)
