"""Prose says one thing in one way: the words of the field, British spelling, and no variants of either.

Pages, docstrings and comments are read; code, links, quotations and other people's titles are not.
"""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

VARIANTS = {
    r"spatiotemporal|spatial-temporal": "spatio-temporal",
    r"few shot|fewshot": "few-shot",
    r"time ?steps?|time-steps?": "step",
    r"(?:look|fore)-?ahead (?:window|length)|lookback": "history, horizon",
    r"datasets?": "data set",
    r"road graphs?": "road network",
    r"PyG Temporal|Pyg-Temporal|pyg-temporal": "PyG-Temporal",
    r"Pytorch|Py Torch": "PyTorch",
    r"Networkx": "networkx",
    r"Numpy": "NumPy",
    r"Open Street Maps?|Openstreetmap": "OpenStreetMap",
    r"Github": "GitHub",
    r"fine tun\w*": "fine-tune",
    r"colors?|colored|coloring": "colour",
    r"neighbors?|neighboring|neighborhoods?": "neighbour",
    r"behaviors?": "behaviour",
    r"centered|centering|centers?": "centre",
    r"kilometers?|meters?": "metre",
    r"gr[ae]y-?scale|gray": "grey",
    r"modeling|labeled|labeling": "two l's",
    r"license": "licence (the noun)",
    r"\w*(?:normal|initial|summar|organ|real|parametr|general|special|regular|minim|maxim|visual|random|standard)"
    r"iz(?:e|es|ed|er|ing|ation)": "-ise",
    r"analyz\w+": "analyse",
    r"catalogs?": "catalogue",
    r"dataloaders?": "loader",
    r"check points?": "checkpoint",
    r"hyper-parameters?": "hyperparameter",
    r"pre-trained": "pretrained",
}
"""What is not said (a pattern of whole words), and what is said instead."""


def prose_of_page(text: str) -> str:
    """A page of Markdown without code, comments, links' targets and citations of titles."""
    text = re.sub(r"^(```+).*?^\1$|<!--.*?-->", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"``[^`]+``|`[^`]+`", "", text)
    return re.sub(r"\]\([^)]*\)|https?://\S+|\*\*?\S*[./]\S*\*\*?|\"[^\"\n]+\"", "", text)


def prose_of_code(source: str) -> str:
    """Docstrings (also of attributes) and comments, without what is code in them."""
    found = [
        node.value.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            found.append(re.sub(r"# (?:type: ignore|noqa|ruff|fmt).*", "", token.string))
    text = "\n".join(found)
    text = re.sub(r"^\s*(?:>>>|\.\.\.) .*$|^\s*\w+(?:, \w+)*: ", "", text, flags=re.MULTILINE)
    text = re.sub(r":\w+:`[^`]*`|``[^`]+``|`[^`]+`|\"[^\"\n]+\"|https?://\S+|\w+[._]\w[\w.]*", "", text)
    return text


FILES = {
    path.relative_to(ROOT).as_posix(): prose_of_page(path.read_text(encoding="utf-8"))
    for path in sorted(ROOT.glob("*.md"))
    + sorted((ROOT / "docs").rglob("*.md"))
    + sorted((ROOT / "datasets").glob("*.md"))
    if not {"_build", "_generated"} & set(path.parts)
} | {
    path.relative_to(ROOT).as_posix(): prose_of_code(path.read_text(encoding="utf-8"))
    for folder in ("tsjt_pyg", "benchmarks", "datasets", "docs")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if not {"_build", "_generated"} & set(path.parts)
}


@pytest.mark.parametrize("file", FILES)
def test_prose_says_one_thing_in_one_way(file: str) -> None:
    found = [
        f"{match[0]!r}, say {instead!r}"
        for variant, instead in VARIANTS.items()
        for match in re.finditer(rf"(?<![\w-])(?:{variant})(?![\w-])", FILES[file])
    ]
    assert not found, found
