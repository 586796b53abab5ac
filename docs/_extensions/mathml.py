"""Render formulas as MathML, which browsers display without scripts, so that pages work offline.

math-core converts the formulas. One that it cannot parse gives a warning with its location.
"""

from docutils import nodes
from math_core import LatexError, LatexToMathML
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

logger = logging.getLogger(__name__)
converter = LatexToMathML()


def mathml(node, latex, display):
    try:
        return converter.convert_with_local_state(latex.strip(), displaystyle=display)
    except LatexError as error:
        logger.warning("cannot convert a formula: %s", error, location=node)
        return latex


def visit_inline(translator, node):
    start = translator.starttag(node, "span", "", CLASS="math notranslate nohighlight")
    translator.body.append(f"{start}{mathml(node, node.astext(), False)}</span>")
    raise nodes.SkipNode


def visit_block(translator, node):
    translator.body.append(translator.starttag(node, "div", CLASS="math notranslate nohighlight"))
    if node["number"]:
        number = get_node_equation_number(translator, node)
        translator.body.append(f'<span class="eqno">({number})')
        translator.add_permalink_ref(node, "Link to this equation")
        translator.body.append("</span>")
    # A blank line separates equations, as in Sphinx's other renderers; \\ separates lines of one.
    for equation in filter(str.strip, node.astext().split("\n\n")):
        if r"\\" in equation and r"\begin" not in equation:
            equation = rf"\begin{{aligned}}{equation}\end{{aligned}}"
        translator.body.append(mathml(node, equation, True))
    translator.body.append("</div>\n")
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    app.add_css_file("mathml.css")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
