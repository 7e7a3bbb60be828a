"""Draw one round of MaTU: `python docs/figures/one_round.py` writes docs/images/one-round.svg.

The numbers are real: twelve parameters, packed and merged by the formulas of docs/method.md. Only the standard
library is needed. The picture has a background of its own and follows the reader's light or dark scheme, so that it is
readable on any page.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

TARGET = Path(__file__).parents[1] / "images" / "one-round.svg"
WIDTH, HEIGHT = 1040, 700
CELL, GAP = 17, 2
D = 12  # parameters in the picture

STYLE = """
.page { fill: #fbfbfd; stroke: #d9dce6; }
.card { fill: #ffffff; stroke: #c3c8d6; stroke-width: 1.5; }
.pale { fill: #f3f4f9; stroke: #d9dce6; stroke-width: 1.5; }
text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: #232733; }
.title { font-size: 19px; font-weight: 600; }
.step { font-size: 16px; font-weight: 600; }
.body { font-size: 14px; fill: #4a5163; }
.name { font-size: 14px; }
.badge { fill: #3f51b5; }
.number { font-size: 15px; font-weight: 700; fill: #ffffff; }
.plus { fill: #1c6fd1; }
.minus { fill: #e07b16; }
.empty { fill: none; stroke: #c3c8d6; stroke-width: 1; }
.bit { fill: #3a4152; }
.arrow { stroke: #3f51b5; stroke-width: 3; fill: none; }
.head { fill: #3f51b5; }
.link { stroke: #2c9a62; stroke-width: 2.5; fill: none; }
.related { font-size: 14px; fill: #1f7a4c; }
@media (prefers-color-scheme: dark) {
  .page { fill: #1e212b; stroke: #363b4b; }
  .card { fill: #282c39; stroke: #4b5268; }
  .pale { fill: #232733; stroke: #3d4356; }
  text { fill: #eceef5; }
  .body { fill: #b6bccd; }
  .badge, .head { fill: #8c9bff; }
  .arrow { stroke: #8c9bff; }
  .number { fill: #161925; }
  .plus { fill: #5aa5f5; }
  .minus { fill: #f5a04e; }
  .empty { stroke: #596078; }
  .bit { fill: #d5d9e6; }
  .link { stroke: #4fc98a; }
  .related { fill: #6fdca2; }
}
"""

Vector = list[float]


def sign(x: float) -> int:
    """-1, 0 or 1."""
    return (x > 0) - (x < 0)


def unify(vectors: Sequence[Vector]) -> tuple[Vector, list[list[bool]], list[tuple[float, float]]]:
    """Elect, mask and rescale: the unified vector, and a mask and two rescalers of each vector."""
    columns = list(zip(*vectors, strict=True))
    shared = [sign(sum(column)) * sum(map(abs, column)) / len(column) for column in columns]
    masks = [[x * s > 0 for x, s in zip(vector, shared, strict=True)] for vector in vectors]

    def rescaler(vector: Vector, mask: list[bool], bit: bool) -> float:
        own = sum(abs(x) for x, m in zip(vector, mask, strict=True) if m is bit)
        elected = sum(abs(s) for s, m in zip(shared, mask, strict=True) if m is bit)
        return own / elected if elected else 0.0

    both = zip(vectors, masks, strict=True)
    return shared, masks, [(rescaler(v, m, True), rescaler(v, m, False)) for v, m in both]


def rebuild(shared: Vector, mask: list[bool], rescalers: tuple[float, float]) -> Vector:
    """The vector of one task, as the server sees it."""
    kept, other = rescalers
    return [s * kept if m else -s * other for s, m in zip(shared, mask, strict=True)]


def similarity(a: Vector, b: Vector) -> float:
    """S of two tasks: 1/2 is unrelated."""
    return 0.5 * (1 + sum(sign(x) * sign(y) for x, y in zip(a, b, strict=True)) / len(a))


def example() -> tuple[dict[str, Vector], dict[str, Vector]]:
    """What the two tasks of one client learned, and what the server has of three tasks after the round."""
    rng = random.Random(89)
    common = [rng.uniform(-1, 1) for _ in range(D)]

    def near() -> Vector:
        return [0.6 * c + 0.6 * rng.uniform(-1, 1) for c in common]

    learned, elsewhere = {"scans": near(), "leaves": near()}, near()
    planes = [rng.uniform(-1, 1) for _ in range(D)]
    shared, masks, rescalers = unify(list(learned.values()))
    rebuilt = [rebuild(shared, m, r) for m, r in zip(masks, rescalers, strict=True)]
    scans = [(a + b) / 2 for a, b in zip(rebuilt[0], elsewhere, strict=True)]  # two holders with as many images
    return learned, {"scans": scans, "leaves": rebuilt[1], "planes": planes}


# --- drawing ---


def text(x: float, y: float, words: str, kind: str = "body", anchor: str = "start") -> str:
    """One line of text."""
    return f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, kind: str = "card") -> str:
    """A rectangle with round corners."""
    return f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="10"/>'


def badge(x: float, y: float, number: int) -> str:
    """The number of a step in a disc."""
    disc = f'<circle class="badge" cx="{x:g}" cy="{y:g}" r="13"/>'
    return disc + text(x, y + 5, str(number), "number", "middle")


def strip(x: float, y: float, values: Vector) -> str:
    """One cell per parameter: the colour is the sign, the strength of the colour the magnitude."""
    cells = []
    for i, value in enumerate(values):
        place = f'x="{x + i * (CELL + GAP):g}" y="{y:g}" width="{CELL}" height="{CELL}" rx="2"'
        kind = "plus" if value > 0 else "minus"
        cells.append(f'<rect class="empty" {place}/>')
        cells.append(f'<rect class="{kind}" {place} fill-opacity="{min(1.0, 0.12 + 0.88 * abs(value)):.2f}"/>')
    return "".join(cells)


def bits(x: float, y: float, mask: list[bool]) -> str:
    """One cell per parameter, filled where the bit is set."""
    cells = []
    for i, bit in enumerate(mask):
        place = f'x="{x + i * (CELL + GAP):g}" y="{y + 3:g}" width="{CELL}" height="{CELL - 6}" rx="2"'
        cells.append(f'<rect class="{"bit" if bit else "empty"}" {place}/>')
    return "".join(cells)


def arrow(x: float, start: float, end: float) -> str:
    """A vertical arrow."""
    down = 1 if end > start else -1
    tip = end - 11 * down
    head = f"{x - 9:g},{tip:g} {x + 9:g},{tip:g} {x:g},{end:g}"
    return f'<path class="arrow" d="M{x:g} {start:g} V{tip:g}"/><polygon class="head" points="{head}"/>'


def server(tasks: Mapping[str, Vector]) -> list[str]:
    """The server's box: a vector per task, and who is related."""
    rows = {"scans": 108, "leaves": 142, "planes": 176}
    parts = [
        box(30, 28, 980, 190),
        text(52, 62, "Server", "title"),
        text(142, 62, "keeps one vector for each task, and nothing about any client"),
    ]
    for name, y in rows.items():
        parts += [text(52, y + 14, name, "name"), strip(128, y, tasks[name])]
    edge = 128 + D * (CELL + GAP) + 8
    parts.append(f'<path class="link" d="M{edge} 117 C{edge + 34} 117 {edge + 34} 151 {edge} 151"/>')
    pair = similarity(tasks["scans"], tasks["leaves"])
    parts += [
        text(edge + 36, 131, "same sign in most places: related", "related"),
        text(edge + 36, 150, f"S = {pair:.2f}, where ½ means unrelated", "related"),
        badge(682, 105, 4),
        text(704, 110, "Merge", "step"),
        text(704, 133, "For each task: the mean over all"),
        text(704, 153, "clients that hold it. Then related"),
        text(704, 173, "tasks learn a little from each other."),
    ]
    return parts


def client(learned: Mapping[str, Vector]) -> list[str]:
    """One client in full: what it trained, and what it sends."""
    shared, masks, rescalers = unify(list(learned.values()))
    top, left, right = 368, 30, 372
    parts = [
        box(left, top, 708, 302),
        text(left + 22, top + 34, "Client north", "title"),
        text(left + 168, top + 34, "has images of two tasks; they never leave it"),
        badge(left + 35, top + 68, 2),
        text(left + 57, top + 73, "Train", "step"),
        text(left + 22, top + 101, "Fine-tune the model for each task."),
        text(left + 22, top + 121, "What changed is the task's vector."),
        badge(right + 13, top + 68, 3),
        text(right + 35, top + 73, "Pack", "step"),
        text(right, top + 101, "One vector for all tasks: the sign that"),
        text(right, top + 121, "the tasks agree on, the mean size."),
    ]
    for (name, vector), y in zip(learned.items(), (top + 146, top + 180), strict=True):
        parts += [text(left + 22, y + 14, name, "name"), strip(left + 78, y, vector)]
    parts += [strip(right + 60, top + 146, shared), text(right, top + 160, "vector", "name")]
    for name, mask, pair, y in zip(learned, masks, rescalers, (top + 180, top + 208), strict=True):
        numbers = f"{pair[0]:.1f} · {pair[1]:.1f}"
        parts += [text(right, y + 14, name, "name"), bits(right + 60, y, mask), text(right + 292, y + 14, numbers)]
    parts += [
        text(right, top + 254, "For each task a mask: one bit per number, set"),
        text(right, top + 274, "where its sign is the shared one. And two sizes."),
    ]
    x = left + 22
    parts += [strip(x, top + 243, [0.9]), text(x + 26, top + 257, "plus"), strip(x + 74, top + 243, [-0.9])]
    parts += [text(x + 100, top + 257, "minus; stronger = larger")]
    return parts


def others() -> list[str]:
    """The other clients, which do the same."""
    parts = []
    for name, tasks, y in (("Client south", "scans, planes", 368), ("Client west", "planes", 476)):
        parts += [box(760, y, 250, 90), text(782, y + 38, name, "title"), text(782, y + 64, tasks)]
    parts += [box(760, 584, 250, 86, "pale"), text(885, 622, "all of them do the same,", "body", "middle")]
    parts.append(text(885, 643, "at the same time", "body", "middle"))
    return parts


def between() -> list[str]:
    """The two ways between server and clients."""
    return [
        arrow(90, 218, 366),
        badge(124, 262, 1),
        text(146, 267, "Send", "step"),
        text(112, 294, "Each client gets its tasks in one vector,"),
        text(112, 314, "with masks and sizes: where to start."),
        arrow(520, 366, 220),
        text(542, 284, "One vector, and one bit per number and task:"),
        text(542, 304, "about half of what one vector per task takes."),
    ]


def picture() -> str:
    """The whole figure as SVG."""
    learned, tasks = example()
    parts = [box(1, 1, WIDTH - 2, HEIGHT - 2, "page"), *server(tasks), *between(), *client(learned), *others()]
    size = f'width="{WIDTH}" height="{HEIGHT}"'
    title = "One round: the server sends, clients train and pack, the server merges"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {size} role="img">',
            f"<title>{title}</title>",
            f"<style>{STYLE}</style>",
            *parts,
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    TARGET.write_text(picture(), encoding="utf-8")
