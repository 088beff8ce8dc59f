"""How Sphinx builds the site: `make docs`.  What of it is drawn from the code is in `tools`."""

import dataclasses
import inspect
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]
os.environ.setdefault("GREENTRAINER_KEEP", "off")

import greentrainer  # noqa: E402
from tools.docstrings import as_rst  # noqa: E402
from tools.reference import filled  # noqa: E402

project = "GreenTrainer"
author = "The GreenTrainer contributors"
copyright = "The GreenTrainer contributors"
version = release = greentrainer.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
exclude_patterns = ["figures"]
nitpicky = False

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
suppress_warnings = ["myst.header"]  # the tables of reference pages begin below a second heading

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
toc_object_entries = False

html_theme = "furo"
html_title = f"GreenTrainer {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_search_summary = False  # it would fetch pages, which those opened from a folder may not
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#1a7f37",
        "color-brand-content": "#1a7f37",
        "color-brand-visited": "#1a7f37",
    },
    "dark_css_variables": {
        "color-brand-primary": "#5fd07a",
        "color-brand-content": "#5fd07a",
        "color-brand-visited": "#5fd07a",
    },
}
copybutton_exclude = ".linenos, .gp, .go"
linkcheck_timeout = 20
linkcheck_anchors = False


def _in_house_style(app: Any, what: str, name: str, obj: Any, options: Any, lines: Any) -> None:
    """Docstrings as they are written here, for Sphinx."""
    try:
        known = frozenset(inspect.signature(obj).parameters)
    except (TypeError, ValueError):
        known = frozenset()
    lines[:] = as_rst(lines, known)


def _left_out(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Hooks of the Trainer, and fields that the class's own docstring describes."""
    said = inspect.getdoc(obj) or ""
    hook = name.startswith("on_") or said.startswith(("As the Trainer's", "As `Trainer.log`"))
    field = not callable(getattr(obj, "fget", obj)) or name in _FIELDS
    return True if hook or field else None


_FIELDS = {
    field.name
    for kind in (greentrainer.Budget, greentrainer.CostGraph, greentrainer.Selection)
    for field in dataclasses.fields(kind)
} | {"selector"}


def _fill(app: Any, page: str, text: list[str]) -> None:
    text[0] = filled(text[0])


def setup(app: Any) -> None:
    """Tell Sphinx of the above."""
    app.connect("autodoc-process-docstring", _in_house_style)
    app.connect("autodoc-skip-member", _left_out)
    app.connect("source-read", _fill)
