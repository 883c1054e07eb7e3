"""Every script of the galleries is a tutorial, and runs as the notebook that the site offers, wherever it is.

The notebooks are made by Sphinx-Gallery's own converter with the site's settings, and run by a kernel of this very
Python, in an empty folder.
"""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sphinx_gallery")
nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

from jupyter_client.kernelspec import KernelSpecManager  # noqa: E402
from jupyter_client.manager import AsyncKernelManager  # noqa: E402
from sphinx_gallery.gen_gallery import DEFAULT_GALLERY_CONF  # noqa: E402
from sphinx_gallery.notebook import jupyter_notebook  # noqa: E402
from sphinx_gallery.py_source_parser import split_code_and_text_blocks  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
SCRIPTS = [*sorted(DOCS.glob("tutorials/*.py")), *sorted(DOCS.glob("how_it_works/*.py"))]
MOST_SECONDS = 90

every_script = pytest.mark.parametrize(
    "script", SCRIPTS, ids=[path.relative_to(DOCS).with_suffix("").as_posix() for path in SCRIPTS]
)

TINY = '''"""
A tiny tutorial
===============

At its end there is a picture.
"""

# %%
# Why it is drawn, with a link to :doc:`/optimizer`.

word = "City"

# %%
# Another cell.

{more}

# %%
# The picture.

import matplotlib.pyplot as plt

plt.plot([1, 2])
plt.show()
'''


def cells_of(script: Path) -> tuple[list[str], list[str]]:
    """Texts and code of a script."""
    _, blocks = split_code_and_text_blocks(script)
    texts, code = ([block.content for block in blocks if block.type == kind] for kind in ("text", "code"))
    return texts, [cell for cell in code if cell.strip()]


def check_form(script: Path) -> None:
    """It has what a page of the galleries needs, and nothing that a notebook has not."""
    texts, code = cells_of(script)
    title, underline, *lead = texts[0].strip().splitlines()
    assert len(underline) >= len(title), "the docstring begins with a title"
    assert set(underline) == {"="}, "the docstring begins with a title"
    assert len(" ".join(lead).split()) >= 5, "the title is followed by what one will have at the end"
    assert len(code) >= 3, f"{len(code)} cells are no tutorial"
    assert "plt." in code[-1] or "figure" in code[-1], "the last cell draws the picture"
    source = script.read_text(encoding="utf-8")
    for absent in ("__file__", "__name__"):
        assert absent not in source, f"a notebook has no {absent}"


def run_as_notebook(script: Path, tmp_path: Path) -> Any:
    """The notebook of a script as the site makes it, after it ran; its computing time is checked."""
    settings = {**DEFAULT_GALLERY_CONF, **runpy.run_path(str(DOCS / "conf.py"))["sphinx_gallery_conf"]}
    _, blocks = split_code_and_text_blocks(script)
    made = jupyter_notebook(blocks, settings, tmp_path)
    # Of this process and its children, not of the clock on the wall: others may work on this machine.
    made["cells"].append({**made["cells"][0], "source": ["import os\n", "print('seconds', sum(os.times()[:4]))"]})
    notebook = nbformat.reads(json.dumps(made), as_version=4)

    spec = tmp_path / "kernels" / "here"
    spec.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    environment = {"OMP_NUM_THREADS": "1", "IPYTHONDIR": str(tmp_path / "ipython"), "MPLBACKEND": ""}
    about = {"argv": argv, "display_name": "here", "language": "python", "env": environment}
    (spec / "kernel.json").write_text(json.dumps(about))
    manager = AsyncKernelManager(
        kernel_name="here", kernel_spec_manager=KernelSpecManager(kernel_dirs=[str(spec.parent)])
    )
    folder = tmp_path / "anywhere"
    folder.mkdir()
    client = nbclient.NotebookClient(
        notebook, km=manager, timeout=15 * MOST_SECONDS, resources={"metadata": {"path": str(folder)}}
    )
    client.execute()

    texts, _ = cells_of(script)
    for left in sorted(path.name for path in folder.iterdir()):
        assert left in "\n".join(texts), f"it leaves {left} behind, and says nothing of it"
    *_, last, timed = notebook.cells
    while last.cell_type != "code":
        last = notebook.cells[notebook.cells.index(last) - 1]
    assert any("image/png" in output.get("data", {}) for output in last.outputs), "the last cell shows no picture"
    seconds = float(timed.outputs[0]["text"].split()[1])
    assert seconds < MOST_SECONDS, f"it takes {seconds:.0f} s"
    return notebook


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[[str], Path]:
    def write(more: str) -> Path:
        script = tmp_path / "1_tiny.py"
        script.write_text(TINY.format(more=more))
        return script

    return write


@every_script
def test_a_script_is_a_tutorial(script: Path) -> None:
    check_form(script)


@pytest.mark.slow
@every_script
def test_a_script_runs_as_a_notebook_and_leaves_nothing(script: Path, tmp_path: Path) -> None:
    run_as_notebook(script, tmp_path)


def test_a_tiny_script_runs_as_a_notebook(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    script = tiny("print(word.lower())")
    notebook = run_as_notebook(script, tmp_path)
    assert [cell.outputs[0]["text"] for cell in notebook.cells if "lower" in cell.source] == ["city\n"]


def test_what_a_script_leaves_is_noticed(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"it leaves left\.txt behind"):
        run_as_notebook(tiny("open('left.txt', 'w').close()"), tmp_path)


def test_what_is_no_tutorial_is_noticed(tiny: Callable[[str], Path]) -> None:
    check_form(tiny("pass"))
    with pytest.raises(AssertionError, match="a notebook has no __file__"):
        check_form(tiny("print(__file__)"))
    script = tiny("pass")
    script.write_text(script.read_text().split("# Another cell.")[0])
    with pytest.raises(AssertionError, match="are no tutorial"):
        check_form(script)
