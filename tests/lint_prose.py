"""Check docstrings and messages: ``python -m tests.lint_prose [--fix]``, a part of ``make lint``.

- A docstring starts with a verb or a noun, not with a question word.
- A message of several string literals fills each line; ``--fix`` fills them.
"""

import ast
import io
import re
import sys
import tokenize
from itertools import groupby
from pathlib import Path
from tokenize import TokenInfo

ROOT = Path(__file__).parent.parent
FOLDERS = ("ldm_lightning", "hydra_plugins", "benchmarks", "experiments")
LINE_LENGTH = 100

QUESTION = re.compile(r"(What|Whether|How|Where|Which|When|Who|Why|That)\b")
LITERAL = re.compile(r'(f?)"(.*)"')


def questions(source: str) -> list[tuple[int, str]]:
    """Find docstrings that start with a question word: line number and first line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        text = ast.get_docstring(node)
        if text and QUESTION.match(text):
            found.append((node.body[0].lineno, text.splitlines()[0]))
    return found


def filled(source: str) -> str:
    """Fill the lines of messages that consist of several literals, one a line."""
    lines = source.split("\n")
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    kept = (token for token in tokens if token.type != tokenize.NL)
    groups = [list(group) for is_text, group in groupby(kept, _is_text) if is_text]
    for group in reversed([group for group in groups if len(group) > 1]):
        first, last = group[0].start[0] - 1, group[-1].start[0]
        new = _filled(group, lines[first:last])
        if new is not None:
            lines[first:last] = new
    return "\n".join(lines)


def _is_text(token: TokenInfo) -> bool:
    return token.type == tokenize.STRING


def _filled(group: list[TokenInfo], old: list[str]) -> list[str] | None:
    """Return the filled lines of one message; None where it cannot be filled word by word."""
    indent = group[0].start[1]
    parts = [LITERAL.fullmatch(token.string) for token in group]
    one_a_line = len({token.start[0] for token in group}) == len(group) == len(old)
    aligned = all(token.start[1] == indent for token in group) and not old[0][:indent].strip()
    if not one_a_line or not aligned or not all(parts):
        return None
    pairs = [(part[1], part[2]) for part in parts if part is not None]
    if any("{{" in body or (not prefix and "{" in body) for prefix, body in pairs):
        return None
    if any(body.endswith("\\n") for _, body in pairs[:-1]):
        return None
    after = old[-1][group[-1].end[1] :]
    rows = [""]
    for word in _words("".join(body for _, body in pairs)):
        if rows[-1] and indent + len(_literal(rows[-1] + word)) > LINE_LENGTH:
            rows.append("")
        rows[-1] += word
    new = [" " * indent + _literal(row) for row in rows]
    new[-1] += after
    return new if len(new) <= len(old) and all(len(line) <= LINE_LENGTH for line in new) else None


def _words(body: str) -> list[str]:
    """Split at spaces outside of braces; each word keeps its space."""
    words, depth = [""], 0
    for character in body:
        depth += (character == "{") - (character == "}")
        words[-1] += character
        if character == " " and depth == 0:
            words.append("")
    return [word for word in words if word]


def _literal(body: str) -> str:
    return f'{"f" if "{" in body else ""}"{body}"'


def main() -> int:
    """Print every fault with its place; return 1 where there is one."""
    faults = 0
    for path in sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        place = path.relative_to(ROOT)
        for line, text in questions(source):
            print(f"{place}:{line}: the docstring starts with a question word: {text}")
            faults += 1
        new = filled(source)
        if new != source and "--fix" in sys.argv:
            path.write_text(new, encoding="utf-8")
        elif new != source:
            pairs = zip(source.split("\n"), new.split("\n"), strict=False)
            line = next(number for number, (a, b) in enumerate(pairs, 1) if a != b)
            print(f"{place}:{line}: the literals of a message do not fill their lines (use --fix)")
            faults += 1
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
