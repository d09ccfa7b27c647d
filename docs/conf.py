"""Sphinx configuration: MyST pages, one theme, formulas as MathML, nothing from the network."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

import incrlt

project = "incrlt"
author = "incrlt contributors"
copyright = "2026, incrlt contributors"
version = release = incrlt.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "mathml",
    "gallery",
    "links",
    "brief",
    "protocol_pages",
    "reproduced",
    "public_names",
    "perf_plots",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
templates_path = ["_templates"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath", "amsmath", "deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"incrlt {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
nitpicky = True
nitpick_ignore_regex = [
    # Names of other projects: their inventories would have to be fetched.
    (r"py:.*", r"(?!incrlt\.).*"),
    # Type variables and checks of fields have no page.
    (r"py:class", r"incrlt\.types\.T"),
    (
        r"py:(class|obj)",
        r"incrlt\.(data\.ahead|processes|testing\.digits|testing\.promises|training\.compute)\.[A-Z]",
    ),
    (r"py:class", r"incrlt\.(sweep\.engines|benchmarks\.large)\._\w+"),
    (r"py:class", r"incrlt\.experiment\.fields\._\w+"),
]

autosummary_generate = ["api.rst"]
autosummary_context = {
    # A package within a package has a page of its own; a module elsewhere may have its name.
    "packages": [
        f"incrlt.{path.parent.parent.name}.{path.parent.name}"
        for path in Path(incrlt.__file__).parent.glob("*/*/__init__.py")
    ]
}
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Reference", "Deviation"]
suppress_warnings = ["ref.python"]  # a short name in a signature that two modules have: either page will do
napoleon_use_ivar = True  # an attribute named in the class docstring may have a docstring of its own


def levels(app: Any, page: str, template: str, context: dict[str, Any], tree: Any) -> None:
    """Mend what axe calls critical or serious in Sphinx's pages.

    The headings of the navigation get their level, and code that may be wider than the window can be reached by key.
    """
    if "body" in context:
        context["body"] = context["body"].replace("<pre>", '<pre tabindex="0">')
    for name, text in context.items():
        if name.endswith("navigation_tree") and isinstance(text, str):
            context[name] = text.replace('role="heading">', 'role="heading" aria-level="2">')


def setup(app: Any) -> None:
    """Mend the navigation, and leave out what scikit-learn adds to estimators: its texts refer to pages of its own."""
    app.connect("html-page-context", levels, priority=900)
    app.connect("autodoc-skip-member", lambda app, what, name, *rest: name.endswith("_request") or None)
