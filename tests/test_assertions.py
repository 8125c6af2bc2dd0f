"""Tests assert keys, values, figures and file names, so that a message may be worded anew.

The rule: no string literal of an ``assert``, a ``match=``, a parametrization or a call of a helper
named ``refused`` holds three lower-case words in a row, with one space between them. Commas,
digits, dots and the characters of regular expressions end a row, so lists of values and
``key.*value`` are no prose; neither is the message of an ``assert``.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

PROSE = re.compile(r"(?<![\w.=/#-])[a-z]+ [a-z]+ [a-z]+(?![\w.=/-])")
TESTS = Path(__file__).parent


def asserted(tree: ast.AST) -> Iterator[ast.expr]:
    """The expressions that say what is expected."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            yield node.test
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else None
            name = node.func.id if isinstance(node.func, ast.Name) else name
            yield from (keyword.value for keyword in node.keywords if keyword.arg == "match")
            if name == "refused":
                yield from node.args
            elif name == "parametrize":
                yield from (*node.args[1:], *(keyword.value for keyword in node.keywords))


def prose_in(text: str) -> list[str]:
    """The literals of a module that break the rule."""
    constants = (node for one in asserted(ast.parse(text)) for node in ast.walk(one))
    literals = {
        (node.lineno, node.value)
        for node in constants
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    return [f"{line}: {value!r}" for line, value in sorted(literals) if PROSE.search(value)]


def test_no_test_depends_on_the_words_of_a_message():
    found = {
        str(path.relative_to(TESTS)): lines
        for path in sorted(TESTS.rglob("*.py"))
        if (lines := prose_in(path.read_text(encoding="utf-8")))
    }
    assert found == {}


PROSES = (
    "pytest.raises(ValueError, match='batch_size must not be zero')",
    "assert 'x is ' f'{y} and of no use' in z",
    "refused('train', words, 'could not be')",
    "pytest.mark.parametrize('said', ['there is none'])",
)
OTHERS = (
    r"pytest.raises(ValueError, match=r'batch_size.*\b0\b')",
    "assert y in 'alex, vgg, squeeze', 'this line is told where it fails'",
    "print('not a bit of it')",
)


def test_prose_is_told_from_keys_and_values():
    assert [line for line in PROSES if not prose_in(line)] == []
    assert [line for line in OTHERS if prose_in(line)] == []
