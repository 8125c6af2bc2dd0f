"""Values written as words read back as they are."""

import random
from pathlib import Path

import pytest

from ldm_lightning.runs.overrides import literal, parsed, path_override, value_of

VALUES = [
    *(None, True, False, 1, -3, 1.5, 1e-6, -1e-9, float("inf"), [], {}),
    *("", "a b", "it's", "\\", "\\\\'", "'", "\\'", "a\\", "a\\\n", "null", "true", "1e-3", "[1]"),
    *("{a:b}", "a=b,c", "$x", "#", "~/x", "é, ü", " a ", '"', "a\nb", "a' hydra.run.dir='x"),
    [1, "a'", [None, "b"]],
    {"val/rfid": "min", "b": {"c": [1, "x y"]}},
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_reads_back_as_it_is(value):
    (word,) = parsed([f"++a.b={literal(value)}"])
    assert word.value() == value
    assert type(word.value()) is type(value)


def test_any_text_and_path_read_back_as_they_are():
    draw = random.Random(0)
    for _ in range(200):
        text = "".join(draw.choice("\\'\"ab ={}[],:$#\n~é") for _ in range(draw.randint(1, 9)))
        words = [f"a={literal(text)}", path_override("b", Path("/x") / text)]
        assert value_of(parsed(words), "a") == text
        assert value_of(parsed(words), "b") == str(Path("/x") / text)


def test_a_name_that_cannot_be_written_is_refused():
    with pytest.raises(ValueError, match="a=b"):
        literal({"a=b": 1})
