"""Draws a fence of `mermaid` when the site is built, once for each color scheme.

The repository's host draws the same fence in a browser, with a script from the internet.
"""  # noqa: INP001 - Sphinx loads it by name

from base64 import b64encode

import mermaidx
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

THEMES = {"light": "neutral", "dark": "dark"}


class Mermaid(SphinxDirective):
    has_content = True

    def run(self) -> list[nodes.Node]:
        source = "\n".join(self.content)
        images = []
        for scheme, theme in THEMES.items():
            drawn = b64encode(mermaidx.render(source, theme=theme).svg().encode()).decode()
            images.append(
                f'<img class="mermaid {scheme}" alt="Diagram" src="data:image/svg+xml;base64,{drawn}">'
            )
        return [nodes.raw("", f"<p>{''.join(images)}</p>", format="html")]


def setup(app: Sphinx) -> ExtensionMetadata:
    app.add_directive("mermaid", Mermaid)
    return {"parallel_read_safe": True}
