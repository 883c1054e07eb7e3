"""What a user sees in Jupyter: HTML of results, and a progress bar that is a widget or, without ipywidgets, text."""

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

SETUP = """
from tsjt_pyg.datasets import load_city
from tsjt_pyg.evaluation import compare
from tsjt_pyg.training import ModelConfig, fit, progress_bar
rich, city = (load_city(f"demo/{name}").select("speed") for name in ("gridport", "riverton"))
visible, _ = city.few_shot(days=3)
settings = ModelConfig(hidden_channels=4, profile=False)
"""
TRAIN = """
with progress_bar("training") as progress:
    result = fit(settings.build(), visible, [rich], "tsjt_paper", steps=3, evaluations=1, progress=progress)
"""
COMPARE = """
with progress_bar("comparing") as progress:
    table = compare(
        city.between(0, 3 * city.steps_per_day), [rich], ["target_only"], visible_days=2, seeds=1, steps=2,
        model=settings, naive=["last value"], verbose=False, progress=progress,
    )
"""
FAIL = """
try:
    with progress_bar("training") as progress:
        fit(settings.build(), visible, [], progress=progress)
except ValueError as error:
    print(error)
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Runs cells in a kernel of this Python, and gives the outputs of each."""
    spec = {"argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], "language": "python"}
    kernel = tmp_path / "kernels" / "here" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    kernel.write_text(json.dumps({**spec, "display_name": "here"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def cells(*sources: str) -> list[list[Any]]:
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
        where = {"metadata": {"path": str(tmp_path)}}
        done = NotebookClient(notebook, timeout=120, kernel_name="here", resources=where).execute()
        return [cell.outputs for cell in done.cells]

    yield cells
    assert {path.name for path in tmp_path.iterdir()} <= {"kernels", "ipython"}


def texts(outputs: list[Any]) -> str:
    return "".join(output.get("text", "") for output in outputs)


def test_results_are_html_and_the_bar_is_a_widget(run: Any) -> None:
    shown = ["city", "table", "result", "result.stats", "city.describe()"]
    setup, trained, compared, *results, failed = run(SETUP, TRAIN, COMPARE, *shown, FAIL)
    assert setup == []
    for outputs, name in ((trained, "training"), (compared, "comparing")):
        (bar,) = [output for output in outputs if output.output_type == "display_data"]
        assert "application/vnd.jupyter.widget-view+json" in bar.data
        assert len(outputs) == 1, texts(outputs)
        assert name in bar.data["text/plain"]
    for outputs, word in zip(results, ("<svg", "target_only", "best step", "conflict_rate", "missing"), strict=True):
        (output,) = outputs
        assert word in output.data["text/html"]
    assert "learns from source cities, found none" in texts(failed)


def test_without_ipywidgets_the_bar_is_text(run: Any) -> None:
    absent = "import sys; sys.modules['ipywidgets'] = None"
    _, outputs = run(absent + SETUP, TRAIN)  # PyG, which imports tqdm too, warns in the first
    assert {output.output_type for output in outputs} == {"stream"}
    text = texts(outputs)
    assert re.search(r"training: 100%.* 3/3 ", text)
    assert text.strip().count("\n") == 0


@pytest.mark.skipif(os.name != "posix", reason="the error stream of IPython on a terminal")
def test_ipython_without_a_kernel_is_no_notebook(capfd: pytest.CaptureFixture[str]) -> None:
    from IPython.core.interactiveshell import InteractiveShell

    from tsjt_pyg.training import progress_bar

    InteractiveShell.instance()
    try:
        with progress_bar("training") as progress:
            progress(1, 1)
    finally:
        InteractiveShell.clear_instance()
    assert capfd.readouterr() == ("", "")
