"""Sphinx: how the pages that docs/build.py prepares become a site."""

from configparser import ConfigParser
from pathlib import Path

ini = ConfigParser(delimiters=["="])
ini.read(Path(__file__).resolve().parent.parent / "settings.ini", encoding="utf-8")
settings = ini["DEFAULT"]

project = html_title = settings["title"]
author = settings["author"]
copyright = settings["copyright"]
release = settings["version"]

extensions = ["myst_nb", "sphinx_design", "sphinx_copybutton"]
myst_enable_extensions = ["colon_fence", "deflist"]  # no dollarmath: a price is no formula
myst_heading_anchors = 3

nb_execution_mode = "off"  # docs/build.py has executed them
nb_merge_streams = True
nb_output_stderr = "remove"  # progress bars and log lines
nb_ipywidgets_js = {}  # they would come from another site
nb_code_prompt_show, nb_code_prompt_hide = "Imports", "Imports"

suppress_warnings = [
    "ref.python"
]  # types of one name in two modules: a link to either would be a guess
add_module_names = False  # in the reference, below the heading of the module

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["extra.css"]
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
pygments_style, pygments_dark_style = "friendly", "github-dark"
copybutton_exclude = ".linenos, .gp, .go"
