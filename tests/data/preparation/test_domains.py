"""How archives become documents."""

from pathlib import Path

import pytest

from data.preparation.domains import readers
from data.preparation.domains.sword import plain_text, sword_units
from data.preparation.domains.units import DOCUMENT_CHARACTERS, alone, join_parts
from tests.support.archives import NEW, OLD, dictionary, make_deb, make_sword, make_wheel


def written(tmp_path: Path, content: bytes) -> Path:
    (tmp_path / "archive").write_bytes(content)
    return tmp_path / "archive"


def test_parts_are_joined_up_to_the_size_of_a_document_and_none_is_lost() -> None:
    parts = [f"{i} " + "x" * (i * 37 % 900) for i in range(200)]
    documents = join_parts(parts)
    assert "\n".join(documents) == "\n".join(parts)
    assert max(map(len, documents)) <= DOCUMENT_CHARACTERS
    assert min(map(len, documents[:-1])) > DOCUMENT_CHARACTERS - 1000
    assert join_parts(["", " \n", "a", "b"], "\n\n") == ["a\n\nb"]


def test_a_long_part_is_cut_between_its_lines() -> None:
    lines = ["y" * 999] * 9
    documents = join_parts(["before", "\n".join(lines), "after", "z" * 5000])
    assert documents == ["before", "\n".join(lines[:4]), "\n".join(lines[4:8]), lines[8], "after", "z" * 5000]


def test_repeated_and_blank_documents_go() -> None:
    assert alone([" a\n", "b", "a", " ", ""]) == [["a"], ["b"]]


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ('In the <w lemma="strong:H7225">beginning</w> <w>God</w>.', "In the beginning God."),
        ("light<note n='1'>Heb. <i>x</i></note>: and", "light: and"),
        ('<title type="x-s">Psalm 1</title> <div sID="a"/>Blessed &amp; <hi>good</hi>', "Psalm 1\nBlessed & good"),
        ("<table> <row><cell>a</cell><cell>(1-2)</cell></row> </table>b", "a (1-2)\nb"),
        ("<lg><l>one</l><l>two</l></lg>", "one\ntwo"),
    ],
)
def test_markup_of_verses(markup: str, text: str) -> None:
    assert plain_text(markup) == text


@pytest.mark.parametrize(("verse", "driver"), [("<IIH", "zText"), ("<III", "zText4")])
def test_verses_come_from_blocks_in_order_and_a_comment_on_several_once(
    tmp_path: Path, verse: str, driver: str
) -> None:
    module = make_sword({OLD: [["Ä one. ", "two"], ["three", "three", "four"]], NEW: [["five"]]}, verse)
    assert sword_units(written(tmp_path, module), driver) == [["Ä one.\ntwo\nthree\nfour\nfive"]]


def test_a_package_without_a_module_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no module of SWORD"):
        sword_units(written(tmp_path, make_deb({"usr/x": b""})), "zText")


def test_code_is_cut_between_functions_and_keeps_its_indentation(tmp_path: Path) -> None:
    function = "def f():\n    a = 1\n\n    return a" + "\n    # comment" * 200
    text = "import os\n\n\n" + "\n\n\n".join([function] * 4) + "\n" + "9" * 600 + "\n"
    (unit,) = readers.code_units(
        written(tmp_path, make_wheel({"a.py": text, "b/benchmarks/c.py": text, "d.txt": text}))
    )
    assert [part.count("def f") for part in unit] == [1, 1, 1, 1]
    assert unit[0].startswith("import os\n\ndef f():\n    a = 1\n\n    return a") and "999" not in unit[-1]


def test_mathematics_keeps_comments_and_statements_without_proofs(tmp_path: Path) -> None:
    text = (
        b"""$( A long
   comment with $= inside $)
#*#*#*#*#*#*#*#*#*#*#*#*#*#*
  ${
    mp2.1 $e |- ph $.

    $( Infer. $)
    mp2 $p |- ch $=
      ( wi ax-mp ) ABCBCGDAB
      CGEFHH $.
  $}
"""
        + b"$( "
        + b"renamed " * 5000
        + b"$)\n"
    )
    ((found,),) = readers.metamath_units(
        written(tmp_path, make_deb({"usr/share/metamath/databases/set.mm": text, "usr/other.mm": b"no"}))
    )
    assert found == (
        "$( A long\n comment with $= inside $)\n ${\n mp2.1 $e |- ph $.\n\n $( Infer. $)\n mp2 $p |- ch $.\n $}"
    )


def test_a_dictionary_and_a_list_of_questions(tmp_path: Path) -> None:
    entry = "Abjure \\Ab*jure\\\n   To renounce; na\u00efve.\n   [1913 Webster]\n\n".encode()
    assert readers.gcide_units(written(tmp_path, dictionary(entry + b"Don\x92t\n   x"))) == [
        ["Abjure \\Ab*jure\\\n To renounce; naïve.\n\nDon\u2019t\n x"]
    ]
    files = {"usr/share/doc/anarchism/markdown/a.md": b"# One\n\nsee [section A](a.md#1)", "usr/share/doc/x": b"no"}
    assert readers.afaq_units(written(tmp_path, make_deb(files))) == [["# One\n\nsee section A"]]
