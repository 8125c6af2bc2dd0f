"""Text on a terminal: control characters act on nothing, and no letter ends a command."""

import io
import logging
import os
import subprocess
import sys

import pytest
from rich.console import Console

from ldm_lightning.reporting.parameters import print_parameters
from ldm_lightning.reporting.table import print_metrics, print_rows
from ldm_lightning.utils.terminal import PrintableRecord, one_line, printable
from tests.hostile_names import HOSTILE_NAMES


def harmful(text):
    """Letters that would act on a terminal."""
    return [letter for letter in text if not letter.isprintable() and letter not in "\n\t"]


def console(*, is_terminal, width=60):
    file = io.StringIO()
    return Console(file=file, force_terminal=is_terminal, width=width, color_system=None), file


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_every_name_is_shown_and_acts_on_nothing(name):
    assert harmful(printable(name)) == harmful(one_line(name)) == []
    assert len(one_line(name).splitlines()) <= 1
    assert printable(one_line(name)) == one_line(name)
    record = PrintableRecord("x", logging.INFO, "", 0, "Image %s", (name,), None)
    assert harmful(record.getMessage()) == []


@pytest.mark.parametrize("name", HOSTILE_NAMES)
@pytest.mark.parametrize("is_terminal", [True, False])
def test_tables_show_every_name_in_every_place(name, is_terminal, monkeypatch):
    shown, file = console(is_terminal=is_terminal, width=20_000)
    print_rows(("job", "why"), [(name, name)], title=name, console=shown)
    print_metrics({name: 1.0}, {name: name}, title=name, console=shown)
    monkeypatch.setattr("ldm_lightning.reporting.parameters.Console", lambda: shown)
    print_parameters({name: 3}, title=name)
    text = file.getvalue()
    assert harmful(text.replace("\x1b[0m", "").replace("\x1b[1m", "").replace("\x1b[3m", "")) == []
    assert text.count(one_line(name).strip()) >= 7 or not is_terminal


@pytest.mark.parametrize("width", [1, 20, 80])
def test_tables_fit_any_terminal(width):
    shown, file = console(is_terminal=True, width=width)
    print_rows(("job", "why"), [("a" * 300, "b")], title="title", console=shown)
    assert max(map(len, file.getvalue().splitlines())) <= max(width, 20)


@pytest.mark.parametrize(
    ("env", "written"),
    [
        ({"PYTHONIOENCODING": "ascii"}, b"Frechet \\xd7 \\u2192 \\u65e5"),
        ({"PYTHONIOENCODING": "latin-1"}, b"Fr\xe9chet \xd7 \\u2192 \\u65e5"),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, b"Frechet \\xd7 "),
        ({"PYTHONIOENCODING": "utf-8"}, "Fréchet × → 日 \\udce9".encode()),
    ],
)
def test_every_encoding_takes_every_letter_on_both_streams(env, written):
    code = (
        "import sys; from ldm_lightning.utils.terminal import prepare_streams; prepare_streams()\n"
        "for stream in (sys.stdout, sys.stderr):"
        r" print('Fr\xe9chet \xd7 \u2192 \u65e5 \udce9', file=stream)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, env={**os.environ, **env}
    )
    assert ended.stdout.startswith(written)
    assert ended.stderr.startswith(written)


def test_a_command_whose_reader_has_gone_works_on_to_its_end(tmp_path):
    code = (
        "import sys; from ldm_lightning.utils.terminal import prepare_streams; prepare_streams()\n"
        "for number in range(100_000): print(number)\n"
        "open(sys.argv[1], 'w').write('done')"
    )
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "end"], stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    os.close(reader)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, b"")
    assert (tmp_path / "end").read_text() == "done"
