"""Settings of the site: `make docs` builds it, with warnings as errors."""

import sys
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "tsjt_pyg"
author = "tsjt_pyg maintainers"
copyright = author
release = metadata.version("tsjt-pyg")
version = release

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "elsewhere",  # pages made of files outside docs/, and links to them
    "mathml",
    "public_names",
]
exclude_patterns = ["_build", "tutorials/*", "how_it_works/*"]  # the galleries are read from _generated
templates_path = ["_templates"]

html_theme = "furo"
html_title = f"tsjt_pyg {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b5c8a", "color-brand-content": "#0b5c8a"},
    "dark_css_variables": {"color-brand-primary": "#6cb6e0", "color-brand-content": "#6cb6e0"},
}
html_math_renderer = "mathml"  # drawn by the browser itself: the site needs no network
pygments_style = "friendly"
pygments_dark_style = "monokai"

myst_enable_extensions = ["attrs_block", "colon_fence", "dollarmath"]
myst_heading_anchors = 4
nitpicky = True  # a name of ours that has no entry is a dead link; those of others are only text here
nitpick_ignore_regex = [("py:.*", r"(?!tsjt_pyg\.).*|.*\.T")]

add_module_names = False
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
maximum_signature_line_length = 120
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Shapes", "params_style")]

copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True

sphinx_gallery_conf = {
    "examples_dirs": ["tutorials", "how_it_works"],
    "gallery_dirs": ["_generated/tutorials", "_generated/how_it_works"],
    "backreferences_dir": "_generated/backreferences",
    "doc_module": ("tsjt_pyg",),
    "filename_pattern": r"\.py$",
    "within_subsection_order": "FileNameSortKey",
    "image_scrapers": ("matplotlib",),
    "reset_modules": ("matplotlib", "gallery_reset.as_at_the_start"),
    "first_notebook_cell": (
        "# tsjt_pyg has to be installed where this notebook runs, for instance from a wheel:\n"
        f'# %pip install "tsjt_pyg-{release}-py3-none-any.whl"\n'
        "# %pip install --no-deps torch-geometric-temporal==0.56.2\n"
        "%matplotlib inline"
    ),
    "download_all_examples": False,
    "min_reported_time": 0,
    "plot_gallery": "True",
    "remove_config_comments": True,
    "show_memory": False,
    "show_signature": False,
    "write_computation_times": False,
}
