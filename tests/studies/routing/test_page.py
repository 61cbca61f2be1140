"""The tables and the page: all is escaped, no script runs, and a piece has the color of its expert in each layer."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from common.strict_json import finite_or_null, to_json
from studies.routing.analysis import analyze
from studies.routing.page import shown_examples, to_html
from studies.routing.tables import best_experts, code, to_markdown, verdict
from studies.routing.trace import load_trace, save_trace
from tests.support.traces import PIECES, drawn_trace, trace_of


class Reader(HTMLParser):
    """Collects the pieces of the text, and the names of all tags."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.pieces: list[tuple[str, str, str]] = []  # class, title, text
        self.inside: dict[str, str | None] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.inside = dict(attrs) if tag == "i" else None

    def handle_data(self, data: str) -> None:
        if self.inside is not None:
            self.pieces.append((self.inside["class"] or "", self.inside["title"] or "", data))
            self.inside = None


def test_the_page_shows_each_piece_with_its_experts():
    layers = ("encoder_1", "encoder_3", "decoder_1")
    encoder, decoder = [[18, 5, 6, 99, 7], [4, 3, 14, 1]], [[0, 99, 16], [0, 4, 5]]
    trace = trace_of(encoder, decoder, domains=("<news>", "b"), layers=layers)
    trace.layers["encoder_3"].expert_TN[1] = -1
    found = analyze(trace, drawn_trace(1) and trace, permutations=2, seed=0)
    html = to_html(found, trace, shown=2)
    reader = Reader()
    reader.feed(html)
    assert not {"script", "link", "iframe"} & set(reader.tags)
    assert "default-src 'none'" in html
    assert "<news>" not in html
    assert "<b>" + "▁" not in html
    told = [(text, title.split("\n")[0]) for _, title, text in reader.pieces]
    ids = [number for examples in (encoder, decoder) for example in examples for number in example]
    assert told == [(PIECES[number].lstrip("▁") or "·", PIECES[number]) for number in ids]
    experts = [trace.layers[layer].expert_TN[0, 0] for layer in layers[:2]]
    assert reader.pieces[0][0] == f"e0e{experts[0]} e1e{experts[1]}"
    assert reader.pieces[1][0] == f"e0e{trace.layers['encoder_1'].expert_TN[1, 0]}"
    assert "encoder_3: none" in reader.pieces[1][1]
    rules = set(re.findall(r"#(\w+):checked~\.text \.(\w+)\{background", html))
    assert rules == {(f"{s}{n}", f"{s[0]}{n}e{e}") for s, n in (("encoder", 0), ("encoder", 1), ("decoder", 0))
                     for e in range(4)}  # fmt: skip
    ids_of_buttons = set(re.findall(r'<input type="radio" name="[\w-]+" id="(\w+)"', html))
    assert {name for name, _ in rules} | {f"encoderx{e}" for e in range(4)} <= ids_of_buttons


def test_examples_of_all_domains_are_shown():
    trace = drawn_trace(9, domains=("a", "b", "c"))
    assert shown_examples(trace, 4) == [0, 1, 2, 3]
    assert shown_examples(trace, 99) == list(range(9))
    assert shown_examples(replace(trace, domain_X=np.array([0] * 7 + [1, 2], np.int16)), 4) == [0, 1, 7, 8]


def test_the_tables_are_complete_and_the_figures_are_json():
    trace = drawn_trace(20)
    found = analyze(trace, trace, permutations=2, seed=0)
    text = to_markdown(found)
    for section in ("Entropy", "Mutual information", "Experts of each class", "Words", "alike", "routers", "keep"):
        assert re.search(rf"^## .*{section}", text, re.MULTILINE), section
    assert "| domain a |" in text
    assert "| domain |" in text
    widths = [line.count(" | ") for line in text.splitlines() if line.startswith("| --- ")]
    assert min(widths) >= 2
    assert json.loads(to_json(finite_or_null(found)))["examples"] == 20
    assert "100.0 ± 0.0 %" in text  # against itself


def test_the_verdict_names_the_side_and_whether_it_is_clear():
    def found(decoder: float, error: float) -> str:
        values = {"encoder": (1.0, 0.1), "decoder": (decoder, 0.1), "difference": (decoder - 1.0, error)}
        parts = {name: {"value": value, "error": error} for name, (value, error) in values.items()}
        return verdict({"decoder_above_encoder": {"sentinel": parts}})

    assert "is above the encoder's, by 1.00 ± 0.10" in found(2.0, 0.1)
    assert "is below the encoder's, by 0.50 ± 0.10" in found(0.5, 0.1)
    assert "is not clearly above the encoder's, by 0.10 ± 0.10" in found(1.1, 0.1)
    assert "not in both stacks" in verdict({"decoder_above_encoder": {"sentinel": None}})
    assert best_experts([0.1, 0.6, 0.3, 0.0]) == "1: 60 %, 2: 30 %, 0: 10 %"
    assert code("a|`") == "`` a\\|` ``"


def test_a_trace_comes_back_from_its_file_and_a_damaged_one_is_refused(tmp_path: Path):
    trace = drawn_trace(5)
    file = tmp_path / "trace.safetensors"
    save_trace(trace, file)
    again = load_trace(file)
    save_trace(again, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == file.read_bytes()
    assert again.pieces == trace.pieces
    assert np.array_equal(again.layers["encoder_1"].expert_TN, trace.layers["encoder_1"].expert_TN)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="is no trace that can be read"):
        load_trace(file)
    with pytest.raises(ValueError, match="is no trace that can be read"):
        load_trace(tmp_path / "none")
