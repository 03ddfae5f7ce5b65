"""How the documentation is built: ``make docs``."""

from importlib.metadata import version as version_of

project = "DeepReShape"
copyright = "its contributors, Apache-2.0"
version = release = version_of("deepreshape")
extensions = ["myst_parser"]
exclude_patterns = ["build"]
html_theme = "furo"
html_title = "DeepReShape"
myst_heading_anchors = 3
# pages are read on the code host too, where they link to files beside this folder
suppress_warnings = ["myst.xref_missing"]
