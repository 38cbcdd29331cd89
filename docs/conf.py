"""The documentation site: `nox -s docs` builds it in build/docs/html."""

import re
from importlib.metadata import version

project = "pydfm"
author = "The pydfm developers"
copyright = "The pydfm developers"
release = version("pydfm")

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
]
# Pages of single names, which autosummary writes anew, and what is read by others.
exclude_patterns = ["_templates"]
templates_path = ["_templates"]
nitpicky = True

# The guides are written for any reader of Markdown: headings are anchors, as links expect.
myst_heading_anchors = 4
# Snippets that show whole new files have no lexer's warnings to give.
suppress_warnings = ["misc.highlighting_failure"]

autosummary_generate = True
autosummary_imported_members = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # numpydoc's sections have them
autodoc_preserve_defaults = True
default_role = "code"  # what numpydoc's docstrings mean by `name`
numpydoc_class_members_toctree = False
numpydoc_show_class_members = False  # the template lists them
numpydoc_validation_checks = {
    *("GL01", "GL02", "GL03", "GL05", "GL06", "GL07", "GL08", "GL09", "GL10"),
    *("SS01", "SS02", "SS03", "SS04", "SS06"),
    *("PR01", "PR02", "PR03", "PR05", "PR06", "PR07", "PR10"),
    *("RT01", "RT02", "RT03", "RT04", "YD01"),
}

html_theme = "furo"
html_title = f"pydfm {release}"
html_static_path: list[str] = []
html_show_sphinx = False

linkcheck_timeout = 20
linkcheck_retries = 2
linkcheck_anchors = False


def _read_changelog(app, path, parent, content):  # noqa: ANN001
    """Make links of CHANGELOG.md, which lies above this folder, those of this folder."""
    content[0] = content[0].replace("](docs/", "](")


def setup(app):  # noqa: ANN001
    """Connect what is above."""
    app.connect("include-read", _read_changelog)
