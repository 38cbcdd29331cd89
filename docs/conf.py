"""The documentation site: `nox -s docs` builds it in build/docs/html."""

import importlib.metadata
import re

project = "pydfm"
author = "The pydfm developers"
copyright = "The pydfm developers"
release = importlib.metadata.version("pydfm")

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
]
source_suffix = {".rst": "restructuredtext", ".md": "markdown", ".markdown": "markdown"}
exclude_patterns = ["_static", "_templates"]
templates_path = ["_templates"]
nitpicky = True

# The guides are written for any reader of Markdown: headings are anchors, as links expect.
myst_heading_anchors = 4

autosummary_generate = True
autosummary_imported_members = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # numpydoc's sections have them
default_role = "code"  # what numpydoc's docstrings mean by `name`
numpydoc_class_members_toctree = False
numpydoc_show_class_members = False  # the template lists them
# What a docstring has must be in form; a function of one line needs no sections.
numpydoc_validation_checks = {
    *("GL01", "GL02", "GL03", "GL05", "GL06", "GL07", "GL09", "GL10"),
    *("SS01", "SS02", "SS03", "SS04"),
    *("PR02", "PR05", "PR06", "PR10"),
    *("RT02", "YD01"),
}
numpydoc_validation_exclude = {r"\.set_\w+_request$"}

html_theme = "furo"
html_title = f"pydfm {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_sourcelink = False
html_copy_source = False

linkcheck_timeout = 20
linkcheck_retries = 2
linkcheck_anchors = False


def _skip(app, what, name, member, skip, options):
    """Leave out the methods that scikit-learn gives to every estimator."""
    return True if re.fullmatch(r"set_\w+_request", name) else None


def setup(app):
    """Connect what is above."""
    app.connect("autodoc-skip-member", _skip)
