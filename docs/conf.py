"""Sphinx configuration: MyST pages, one theme, mathematics by MathJax."""

import sys
from pathlib import Path

import incrlt

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "incrlt"
author = "incrlt contributors"
copyright = "2026, incrlt contributors"
version = release = incrlt.__version__

extensions = ["myst_parser", "sphinx.ext.mathjax", "perf_plots"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath", "amsmath", "deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"incrlt {version}"
nitpicky = True
