"""Turns the formulas of a page into MathML when the site is built: no script and no font has to be loaded."""

from __future__ import annotations

import html
import re

from markdown import Markdown
from markdown.extensions import Extension
from markdown.postprocessors import Postprocessor
from math_core import LatexToMathML

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)  # by pymdownx.arithmatex
_CONVERTER = LatexToMathML()


class MathML(Extension):
    """What mkdocs.yml names: an extension of Python-Markdown, since MkDocs and Zensical both run those."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        md.postprocessors.register(_Formulas(md), "mathml", priority=0)  # behind those of Markdown itself


class _Formulas(Postprocessor):
    """A formula that cannot be read stops the build."""

    def run(self, text: str) -> str:
        return _FORMULA.sub(_mathml, text)


def _mathml(formula: re.Match[str]) -> str:
    tag, latex = formula.groups()
    mathml = _CONVERTER.convert_with_local_state(html.unescape(latex).strip(), displaystyle=tag == "div")
    return f'<{tag} class="arithmatex">{mathml}</{tag}>'
