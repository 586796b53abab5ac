"""Sphinx configuration."""

import math
import sys
import warnings
from pathlib import Path

import pyro_regimes

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "pyro_regimes"
author = "The pyro_regimes developers"
copyright = author
release = version = pyro_regimes.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx_gallery.gen_gallery",
    "mathml",
]
exclude_patterns = ["_build", "gallery"]

# All scripts of gallery/ are run at every build; an exception or a warning in one ends it.
warnings.filterwarnings("error", module=r"(pyro_regimes|__main__)\b")
sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "auto_gallery",
    "backreferences_dir": "auto_gallery/backreferences",
    "filename_pattern": r"\.py$",
    "within_subsection_order": "FileNameSortKey",
    "run_stale_examples": True,
    "abort_on_example_error": True,
    "reset_modules": ("matplotlib", "gallery_state.reset"),
    "reference_url": {"pyro_regimes": None},
    "download_all_examples": False,
    "show_signature": False,
    "write_computation_times": False,
    "min_reported_time": math.inf,
}

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# Types join the :param: fields, which say shapes and meaning.
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_type_aliases = {"npt.ArrayLike": "ArrayLike"}

# Every reference to a name of this package must resolve. Other packages are not linked, nor are
# the types of fields that are not part of the public interface.
nitpicky = True
nitpick_ignore_regex = [
    ("py:class", r"pyro_regimes\.infer\.charts\.Chart"),
    (
        "py:class",
        r"pyro_regimes\.estimator\.(walk\.Walk|windows\.Refit|candidates\.Family"
        r"|residual_tests\.SeriesTest)",
    ),
    ("py:class", r"(?!pyro_regimes\.).*"),
    ("py:.*", r"(numpy|pyro|scipy|sklearn|torch)\..*"),
]

html_theme = "furo"
html_title = f"pyro_regimes {version}"
html_math_renderer = "mathml"
html_static_path = ["_static"]


def _drop_placeholders(app, what, name, obj, options, lines):
    """Leave out the text that Python makes up for the fields of a NamedTuple."""
    if lines and lines[0].startswith("Alias for field number"):
        lines.clear()


def setup(app):
    app.connect("autodoc-process-docstring", _drop_placeholders)
