"""Settings of the documentation's site, which `make docs` builds: pages in Markdown, the Python API from docstrings."""

from femtobooth import __version__

project = "femtobooth"
version = release = __version__
copyright = "the femtobooth authors, Apache-2.0"

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
nitpicky = True  # every reference has to lead somewhere
nitpick_ignore_regex = [
    ("py:.*", r"(?!femtobooth\.).*")
]  # other projects' names are not looked up: that would need a network

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
myst_links_external_new_tab = False

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
default_role = "code"

html_theme = "furo"
html_title = "femtobooth"
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
