import logging
import os
import pty
import re
import subprocess
import sys
import textwrap
from pathlib import Path

from ldm_lightning.callbacks.progress import TrainingProgress
from tests.callbacks.tiny_module import TinyModule, fit, make_trainer


def lines_of(caplog, **options):
    with caplog.at_level(logging.INFO, logger="ldm_lightning"):
        trainer = make_trainer(
            [TrainingProgress(**options)], enable_checkpointing=False, enable_progress_bar=True
        )
        fit(trainer, TinyModule())
    return [r.getMessage() for r in caplog.records if r.name.startswith("ldm_lightning")]


def test_without_a_terminal_it_is_a_line_after_each_pause(caplog):
    lines = lines_of(caplog, plain_every_seconds=0.0)
    assert len(lines) == 10 + 2  # batches, validations
    assert lines[3].startswith("update 4 of 10")
    assert "img/s" in lines[3]
    assert "loss_total" in lines[3]
    assert "psnr 15" in lines[6]
    assert "min left" in lines[6]


def test_without_a_terminal_pauses_are_silent(caplog):
    lines = lines_of(caplog, plain_every_seconds=60.0)
    assert [line.split(":")[0].split(",")[0] for line in lines] == [
        "update 5 of 10",
        "update 10 of 10",
    ]


ON_A_TERMINAL = """
    import logging
    import sys
    sys.path.insert(0, sys.argv[1])
    logging.basicConfig(stream=sys.stdout, level="INFO", format="%(message)s")
    from tiny_module import TinyModule, fit, make_trainer
    from ldm_lightning.callbacks.progress import TrainingProgress

    progress = [TrainingProgress()]
    module = TinyModule()
    module.on_batch = lambda module, batch_idx: logging.info("logged in update %d", batch_idx + 1)
    fit(make_trainer(progress, enable_checkpointing=False, enable_progress_bar=True), module)
    logging.info("logged at the end")
"""


def test_on_a_terminal_it_is_a_bar_that_ends_full():
    ours, theirs = pty.openpty()
    script = textwrap.dedent(ON_A_TERMINAL)
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "140", "OMP_NUM_THREADS": "1"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [sys.executable, "-c", script, Path(__file__).parent],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env=environment,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            block = os.read(ours, 4096)
        except OSError:  # Linux reports the closed terminal as an error
            break
        if not block:
            break
        shown += block
    os.close(ours)
    assert process.wait() == 0
    text = shown.decode()
    assert "update 10/10" in text
    assert "img/s" in text
    assert "psnr 20" in text
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    lines = re.split(r"[\r\n]+", plain)
    for number in range(1, 11):
        assert f"logged in update {number}" in lines  # on a line of its own, not behind the bar
    assert lines[-2:] == ["logged at the end", ""]
