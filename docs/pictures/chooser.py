"""Draws the five questions that lead to a method. Plain text and boxes, so that it can be read on a phone."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path

HERE = Path(__file__).parent

WIDTH = 400  # in units of the drawing, near the width of a phone
QUESTION, LEAF = (10, 208), (262, 128)  # where a box starts, and how wide it is
LINE, PAD, GAP = 18, 11, 34  # the height of a line, the space above and below the lines of a box, that between boxes
MIDDLE = QUESTION[0] + QUESTION[1] / 2


@dataclass(frozen=True)
class Step:
    """A question. One answer leads to a leaf at its side, the other one to the next question below."""

    question: tuple[str, ...]
    aside: str
    leaf: tuple[str, ...]

    @property
    def height(self) -> int:
        return LINE * max(len(self.question), len(self.leaf)) + 2 * PAD

    @property
    def down(self) -> str:
        return "yes" if self.aside == "no" else "no"


STEPS = (
    Step(("Is the plain sum tuned?", "(learning rate, weights,", "regularization)"), "no", ("Tune it first",)),
    Step(
        ("Are the losses residuals", "of an equation?", "(physics-informed)"),
        "yes",
        ("The recipe", '`at="parameters"`', "or swept weights"),
    ),
    Step(
        ("Do gradients differ in length", "by orders of magnitude?", "(`conflict_report`)"),
        "yes",
        ("`ConstantWeights`", "`GradientNorms`", "Then look again"),
    ),
    Step(
        ("Do they conflict more than", "two halves of a batch do?", "(`conflict_report`)"),
        "no",
        ("Keep the plain", "sum: `[]`"),
    ),
    Step(("Must no loss get worse,", "to first order?"), "yes", ("`UPGrad`", '`at="parameters"`')),
)
LAST = ("`GradDrop`", '`at="activations"`')
AFTER = ("Then compare it with the plain sum,", "each at its own learning rate.")

STYLE = """
text { font: 13.5px system-ui, "Segoe UI", "DejaVu Sans", sans-serif; fill: #1a1a1a; text-anchor: middle; }
.code { font: 12px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.answer { font-weight: bold; }
.question rect { fill: #e6f0fa; stroke: #2b5c8a; stroke-width: 1.5; }
.leaf rect { fill: #fdf3d8; stroke: #8a6100; stroke-width: 1.5; }
path { fill: none; stroke: #444444; stroke-width: 1.5; marker-end: url(#tip); }
"""
TIP = (
    '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<polygon points="0,0 8,4 0,8" fill="#444444"/></marker>'
)


def picture() -> str:
    """The whole SVG."""
    parts = []
    top = 10
    for step in STEPS:
        middle = top + step.height / 2
        parts += [
            box("question", QUESTION, top, step.height, step.question),
            box("leaf", LEAF, middle - len(step.leaf) * LINE / 2 - PAD, len(step.leaf) * LINE + 2 * PAD, step.leaf),
            arrow(sum(QUESTION), middle, LEAF[0], middle),
            answer(step.aside, (sum(QUESTION) + LEAF[0]) / 2 - 2, middle - 6),
            arrow(MIDDLE, top + step.height, MIDDLE, top + step.height + GAP),
            answer(step.down, MIDDLE + 18, top + step.height + GAP / 2 + 4),
        ]
        top += step.height + GAP
    height = len(LAST) * LINE + 2 * PAD
    parts.append(box("leaf", QUESTION, top, height, LAST))
    top += height + 8
    parts += [line(text, WIDTH / 2, top + LINE * (i + 0.75)) for i, text in enumerate(AFTER)]
    top += len(AFTER) * LINE + 8
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top:g}" width="{WIDTH * 1.15:g}"'
        f' height="{top * 1.15:g}" role="img">\n<title>Which method? Five questions.</title>\n<style>{STYLE}</style>\n'
        f'<defs>{TIP}</defs>\n<rect width="100%" height="100%" fill="#ffffff"/>\n{body}\n</svg>\n'
    )


def box(kind: str, place: tuple[int, int], top: float, height: float, lines: tuple[str, ...]) -> str:
    (left, width), first = place, top + height / 2 - len(lines) * LINE / 2
    rounded = 12 if kind == "question" else 2
    rect = f'<rect x="{left}" y="{top:g}" width="{width}" height="{height:g}" rx="{rounded}"/>'
    texts = "".join(line(text, left + width / 2, first + LINE * (i + 0.75)) for i, text in enumerate(lines))
    return f'<g class="{kind}">{rect}{texts}</g>'


def line(text: str, x: float, y: float) -> str:
    """One line of text; what stands between backticks is code."""
    parts = [escape(part, quote=False) for part in text.split("`")]
    inner = "".join(f'<tspan class="code">{part}</tspan>' if i % 2 else part for i, part in enumerate(parts))
    return f'<text x="{x:g}" y="{y:g}">{inner}</text>'


def answer(text: str, x: float, y: float) -> str:
    return f'<text class="answer" x="{x:g}" y="{y:g}">{text}</text>'


def arrow(x: float, y: float, to_x: float, to_y: float) -> str:
    return f'<path d="M {x:g} {y:g} L {to_x:g} {to_y:g}"/>'


def main(folder: Path = HERE) -> None:
    (folder / "chooser.svg").write_text(picture(), encoding="utf-8")


if __name__ == "__main__":
    main()
