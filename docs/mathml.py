"""Turns the formulas of a page into MathML when the site is built: no script and no font has to be loaded."""

from __future__ import annotations

import html
import re
from typing import Any

from math_core import LatexToMathML

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)  # by pymdownx.arithmatex
_CONVERTER = LatexToMathML()


def on_page_content(content: str, /, **_: Any) -> str:
    """The hook that MkDocs calls with a page's HTML. A formula that cannot be read stops the build."""
    return _FORMULA.sub(_mathml, content)


def _mathml(formula: re.Match[str]) -> str:
    tag, latex = formula.groups()
    mathml = _CONVERTER.convert_with_local_state(html.unescape(latex).strip(), displaystyle=tag == "div")
    return f'<{tag} class="arithmatex">{mathml}</{tag}>'
