"""Draws the sequence diagrams of the documentation from their text: `python docs/images/sequences.py`.

NAME.txt becomes NAME.svg. The first line of the text is the title, the second one the participants, separated by `|`;
each line after that is a step:

    A -> B: text      A message from A to B.
    A: text           What A does.
    begin A: text     A exists from here on; others exist from the top.
    end A: text       A exists up to here.

A picture follows the colour scheme of the reader's system.
"""

from __future__ import annotations

import re
import textwrap
from html import escape
from pathlib import Path

HERE = Path(__file__).parent
STEP = re.compile(r"(?:(?P<verb>begin|end) )?(?P<from>.+?)(?: -> (?P<to>.+?))?: (?P<text>.+)")
COLUMN, ROW, LINE, TOP = 184, 26, 17, 76
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f; text-anchor: middle }
.title { font-size: 16px; font-weight: 600 }
.name { font-weight: 600 }
.paper { fill: #ffffff }
.head { fill: #ddf4ff; stroke: #0969da }
.life { stroke: #8c959f; stroke-dasharray: 4 4 }
.message { stroke: #0969da; stroke-width: 1.5 }
.point { fill: #0969da }
.end { stroke: #cf222e; stroke-width: 2 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .paper { fill: #0d1117 }
  .head { fill: #10243e; stroke: #4493f8 }
  .life { stroke: #6e7681 }
  .message { stroke: #4493f8 }
  .point { fill: #4493f8 }
  .end { stroke: #ff7b72 }
}
"""


def draw(text: str) -> str:
    """The SVG of a diagram.

    Raises:
        ValueError: A line is no step, or names a participant that is not in the second line.
    """
    title, names, *steps = text.strip().splitlines()
    participants = [each.strip() for each in names.split("|")]
    centre = {name: COLUMN * index + COLUMN // 2 for index, name in enumerate(participants)}
    begins, ends, shapes, y = dict.fromkeys(participants, TOP), dict[str, int](), list[str](), TOP + 20

    def write(x: float, lines: list[str]) -> None:
        nonlocal y
        for line in lines:
            y += LINE
            width = 7 * len(line)
            shapes.append(
                f'<rect class="paper" x="{x - width / 2}" y="{y - 13}" width="{width}" height="{LINE}"/>'
            )
            shapes.append(f'<text x="{x}" y="{y}">{escape(line)}</text>')

    for step in steps:
        found = STEP.fullmatch(step.strip())
        if found is None or not {found["from"], found["to"] or found["from"]} <= centre.keys():
            raise ValueError(f"not a step between {', '.join(participants)}: {step!r}")
        x = centre[found["from"]]
        if found["to"]:
            to = centre[found["to"]]
            write((x + to) / 2, textwrap.wrap(found["text"], max(24, abs(to - x) // 8)))
            y += 7
            tip = to - 8 if to > x else to + 8
            shapes.append(f'<path class="message" d="M{x} {y}H{tip}"/>')
            shapes.append(f'<path class="point" d="M{to} {y}L{tip} {y - 4}V{y + 4}Z"/>')
        else:
            if found["verb"] == "begin":
                begins[found["from"]] = y + 6
                y += 30
            write(x, textwrap.wrap(found["text"], 24))
            if found["verb"] == "end":
                y += 14
                ends[found["from"]] = y
                shapes.append(f'<path class="end" d="M{x - 7} {y - 7}l14 14m0 -14l-14 14"/>')
        y += ROW - LINE + 4
    height, width = y + 16, COLUMN * len(participants)
    frame = [f'<rect class="paper" width="{width}" height="{height}" rx="6"/>']
    frame.append(f'<text class="title" x="{width / 2}" y="28">{escape(title)}</text>')
    for name, x in centre.items():
        top = begins[name]
        frame.append(f'<path class="life" d="M{x} {top}V{ends.get(name, height - 8)}"/>')
        frame.append(f'<rect class="head" x="{x - 76}" y="{top - 14}" width="152" height="28" rx="4"/>')
        frame.append(f'<text class="name" x="{x}" y="{top + 5}">{escape(name)}</text>')
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
            f"<title>{escape(title)}</title>\n<style>{STYLE}</style>",
            *frame,
            *shapes,
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    for path in HERE.glob("*.txt"):
        path.with_suffix(".svg").write_text(draw(path.read_text()))
