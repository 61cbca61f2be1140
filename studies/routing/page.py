"""One HTML page with pictures, tables and the text itself, colored by expert: no server, no network, no script.

The choice of a layer, and of an expert to be shown alone, is made by radio buttons that the style sheet reads.
"""

import base64
import re
from collections.abc import Iterator, Sequence
from html import escape

from studies.routing import tables
from studies.routing.analysis import Statistics
from studies.routing.pictures import draw
from studies.routing.trace import Array, Trace, stack_of
from studies.routing.words import SPACE
from training.report.look import SCRIPT_FREE_POLICY, STYLE

GOLDEN_ANGLE = 137.508  # degrees: neighboring experts get hues far apart
READER_STYLE = """
.reader > input { position: absolute; opacity: 0; }
.reader > label { display: inline-block; padding: .1rem .5rem; margin: 0 .2rem .3rem 0; border: 1px solid #c3ccd6;
  border-radius: 4px; cursor: pointer; font-size: .82rem; }
.reader > input:checked + label { outline: 2px solid #1c2530; font-weight: 600; }
.reader > input:focus-visible + label { outline: 2px solid #1f77b4; }
.text { line-height: 1.9; }
.text p { margin: .5rem 0; overflow-wrap: anywhere; }
.text i { font-style: normal; padding: .08rem .02rem; border-radius: 3px; }
.text b { color: #5b6875; font-weight: 600; font-size: .8rem; margin-right: .5em; }
td { max-width: 46rem; }
code { background: #eef1f4; border-radius: 3px; padding: 0 .2em; }
"""


def to_html(found: Statistics, trace: Trace, shown: int) -> str:
    """Return the page: all text is escaped, nothing is loaded, no script runs.

    Args:
        found: the statistics.
        trace: of the model.
        shown: examples whose text is on the page, the first ones of each domain.
    """
    title = f"Which tokens go to which expert: {trace.described()}"
    examples = shown_examples(trace, shown)
    rules: list[str] = []
    readers = [_reader(trace, stack, examples, rules) for stack in trace.stacks]
    pictures = "".join(
        f"<figure><figcaption>{escape(name)}</figcaption>{_image(svg, name)}</figure>" for name, svg in draw(found)
    )
    body = "\n".join(
        [
            f"<h1>{escape(title)}</h1>",
            f"<p>{escape(tables.introduction(found))}</p>",
            f"<p><b>{escape(tables.verdict(found))}</b></p>",
            "<h2>The text</h2>",
            '<p class="note">The color is the expert that is the first choice of the piece. Choose a layer, and an '
            "expert to be shown alone. Point at a piece for its experts in all layers, with their gates.</p>",
            *readers,
            "<h2>Pictures</h2>",
            f'<div class="grid">{pictures}</div>',
            *_tables(found),
        ]
    )
    style = STYLE + READER_STYLE + "\n".join(rules)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">{SCRIPT_FREE_POLICY}'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def shown_examples(trace: Trace, shown: int) -> list[int]:
    """Return the numbers of the first examples of each domain, about as many of each, ``shown`` together."""
    of_domains = [(trace.domain_X == number).nonzero()[0].tolist() for number in range(len(trace.domains))]
    in_turn = [example for nth in range(shown) for of in of_domains for example in of[nth : nth + 1]]
    return sorted(in_turn[:shown])


def color(expert: int) -> str:
    """Return the background of an expert's tokens."""
    return f"hsl({expert * GOLDEN_ANGLE % 360:.0f} {75 if expert % 2 else 60}% {80 if expert % 3 else 70}%)"


def _reader(trace: Trace, stack: str, examples: Sequence[int], rules: list[str]) -> str:
    """The text of a stack with its buttons; its style sheet is added to ``rules``."""
    layers = [layer for layer in trace.layers if stack_of(layer) == stack]
    if not layers:
        return f'<h3>{stack}</h3><p class="note">No sparse layer.</p>'
    parts = [f"<h3>{stack}</h3>", '<div class="reader">']
    for number, layer in enumerate(layers):
        parts.append(_button(f"{stack}-layer", f"{stack}{number}", layer, checked=number == 0))
    parts.append("<br>")
    parts.append(_button(f"{stack}-expert", f"{stack}all", "all experts", checked=True))
    for expert in range(trace.num_experts):
        name = f"{stack}x{expert}"
        parts.append(_button(f"{stack}-expert", name, str(expert), style=f"background:{color(expert)}"))
    for number in range(len(layers)):
        for expert in range(trace.num_experts):
            mark = f".{stack[0]}{number}e{expert}"
            rules.append(f"#{stack}{number}:checked~.text {mark}{{background:{color(expert)}}}")
            alone = f"#{stack}{number}:checked~#{stack}x{expert}:checked~.text i:not({mark})"
            rules.append(f"{alone}{{background:none;color:#9aa5b1}}")
    parts.append(f'<div class="text">{"".join(_paragraph(trace, stack, layers, n) for n in examples)}</div></div>')
    return "\n".join(parts)


def _button(group: str, name: str, text: str, *, checked: bool = False, style: str = "") -> str:
    mark = " checked" if checked else ""
    return (
        f'<input type="radio" name="{group}" id="{name}"{mark}>'
        f'<label for="{name}" style="{style}">{escape(text)}</label>'
    )


def _paragraph(trace: Trace, stack: str, layers: Sequence[str], example: int) -> str:
    tokens = trace.stacks[stack]
    where: Array = (tokens.example_T == example).nonzero()[0]
    domain = trace.domains[int(trace.domain_X[example])]
    pieces = "".join(_token(trace, stack, layers, token) for token in where.tolist())
    return f"<p><b>{escape(domain)} {example}</b>{pieces}</p>"


def _token(trace: Trace, stack: str, layers: Sequence[str], token: int) -> str:
    piece = trace.pieces[int(trace.stacks[stack].token_T[token])]
    marks, told = [], [piece]
    for number, layer in enumerate(layers):
        routed = trace.layers[layer]
        experts, gates = routed.expert_TN[token].tolist(), routed.gate_TN[token].tolist()
        if experts[0] >= 0:
            marks.append(f"{stack[0]}{number}e{experts[0]}")
        chosen = [f"{expert} ({gate:.2f})" for expert, gate in zip(experts, gates, strict=True) if expert >= 0]
        told.append(f"{layer}: {', '.join(chosen) or 'none'}")
    text = piece.lstrip(SPACE)
    space = " " if piece.startswith((SPACE, "<")) else ""
    return f'{space}<i class="{" ".join(marks)}" title="{escape(chr(10).join(told))}">{escape(text or "·")}</i>'


def _tables(found: Statistics) -> Iterator[str]:
    """The tables of ``tables``, as HTML."""
    text = tables.to_markdown(found).partition("\n## ")[2]
    for section in ("## " + text).split("\n\n"):
        if section.startswith("## "):
            yield f"<h2>{escape(section[3:].strip())}</h2>"
        elif section.startswith("**"):
            yield f"<h3>{escape(section.strip('*'))}</h3>"
        elif section.startswith("|"):
            yield _table(section)
        else:
            yield f'<p class="note">{_inline(section)}</p>'


def _table(markdown: str) -> str:
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in markdown.strip().splitlines()]
    head, rows = lines[0], lines[2:]
    header = "".join(f"<th>{escape(cell.strip())}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{_inline(cell.strip())}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{header}</tr>{body}</table></div>'


def _inline(markdown: str) -> str:
    """Text with inline code."""
    text = escape(markdown.replace("\\|", "|"))
    return re.sub(r"(`+) ?(.+?) ?\1", r"<code>\2</code>", text)


def _image(svg: str, title: str) -> str:
    data = base64.b64encode(svg.encode()).decode()
    return f'<img alt="{escape(title)}" src="data:image/svg+xml;base64,{data}">'
