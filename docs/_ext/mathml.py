"""Formulas as MathML, which browsers draw without a script, and so without a network."""

import re
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)


BLANK_LINE = re.compile(r"\n\s*\n")


def mathml(formula: str, as_block: bool) -> str:
    """Docutils knows ``\\Bigl(``, but not ``\\Big(``, and aligns at ``&`` where it is told to."""
    formula = re.sub(r"\\([Bb])ig(?= ?\()", r"\\\1igl", formula)
    formula = re.sub(r"\\([Bb])ig(?= ?\))", r"\\\1igr", formula)
    if "&" in formula:
        lines = BLANK_LINE.sub(r" \\\\ ", formula.strip())
        formula = rf"\begin{{aligned}}{lines}\end{{aligned}}"
    return str(tex2mathml(formula, as_block=as_block))


def draw(self: Any, node: nodes.math | nodes.math_block, as_block: bool) -> None:
    try:
        self.body.append(mathml(node.astext(), as_block))
    except (AttributeError, SyntaxError, ValueError) as error:
        logger.warning("no formula that docutils can draw: %s (%s)", node.astext(), error, location=node)


def visit_math(self: Any, node: nodes.math) -> None:
    draw(self, node, as_block=False)
    raise nodes.SkipNode


def visit_displaymath(self: Any, node: nodes.math_block) -> None:
    self.body.append(self.starttag(node, "div", CLASS="math"))
    draw(self, node, as_block=True)
    self.body.append("</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_displaymath, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
