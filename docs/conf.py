"""The documentation site: Sphinx with MyST and furo.  Nothing here asks the network."""  # noqa: INP001 - Sphinx loads it by path

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS / "extensions"))

project = "fastapi-ignite"
author = "the authors of fastapi-ignite"
project_copyright = author

extensions = ["myst_parser", "repository"]
# Where the repository is: links to its files that are no pages lead there.
repository_url = "https://github.com/org/fastapi-ignite"
repository_branch = "main"

exclude_patterns = ["extensions", "static"]
nitpicky = True
smartquotes = False  # what is shown is typed
myst_heading_anchors = 4

html_theme = "furo"
html_title = project
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "source_repository": repository_url,
    "source_branch": repository_branch,
    "source_directory": "docs/",
}
