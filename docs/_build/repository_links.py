"""A hook of MkDocs: links to files of the repository, which the site does not have, become plain text; Sphinx's roles code.

A link to a file that does not exist is an error, as any broken link is.
"""

import re
from pathlib import Path

from mkdocs.exceptions import PluginError

_LINK = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)#\s]+)(#[^)]*)?\)")


def on_page_markdown(markdown, page, config, files):
    """Called by MkDocs for each page before it is rendered."""
    docs = Path(config["docs_dir"])
    here = (docs / page.file.src_uri).parent

    def replace(match: re.Match) -> str:
        target = (here / match[2]).resolve()
        if target.is_relative_to(docs.resolve()):
            return match[0]
        if not target.exists():
            raise PluginError(f"{page.file.src_uri}: {match[2]} does not exist")
        return match[1]

    return _LINK.sub(replace, markdown)


_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):<code>~?([^<]+)</code>")


def on_page_content(html, page, config, files):
    """Called by MkDocs for each page that is rendered: a docstring's :class:`~a.b.C` becomes `C`."""
    return _ROLE.sub(lambda match: f"<code>{match[1].rpartition('.')[2]}</code>", html)
