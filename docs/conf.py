"""Configuration of Sphinx."""

import cvxlayers

project = "cvxlayers"
author = "The cvxlayers authors"
project_copyright = "2026, The cvxlayers authors"
version = release = cvxlayers.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
default_role = "code"

html_theme = "furo"
html_title = f"cvxlayers {version}"

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say the types, with their shapes
napoleon_google_docstring = False
napoleon_use_rtype = False

# References within the package must resolve; those to other projects are not looked up, so that
# the documentation builds without a network.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!cvxlayers\b).*")]
