import contextlib
import logging
import os
import pty
import re
import sys
import threading

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


def read_all(terminal: int, shown: list[bytes]) -> None:
    """Read until the other side is closed, which Linux reports as an error."""
    with contextlib.suppress(OSError):
        while block := os.read(terminal, 4096):
            shown.append(block)


def test_on_a_terminal_it_is_a_bar_that_ends_full(monkeypatch, caplog):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.delenv("NO_COLOR", raising=False)
    caplog.set_level(logging.INFO)
    ours, theirs = pty.openpty()
    shown: list[bytes] = []
    reader = threading.Thread(target=read_all, args=(ours, shown))
    reader.start()
    module = TinyModule()
    module.on_batch = lambda module, batch_idx: logging.info("logged %d", batch_idx + 1)
    with os.fdopen(theirs, "w", buffering=1) as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        monkeypatch.setattr(sys, "stderr", terminal)
        handler = logging.StreamHandler(terminal)
        logging.getLogger().addHandler(handler)
        try:
            trainer = make_trainer(
                [TrainingProgress()], enable_checkpointing=False, enable_progress_bar=True
            )
            fit(trainer, module)
            logging.info("ended")
        finally:
            logging.getLogger().removeHandler(handler)
            monkeypatch.undo()
    reader.join()
    os.close(ours)
    text = b"".join(shown).decode()
    assert "update 10/10" in text
    assert "img/s" in text
    assert "psnr 20" in text
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    lines = re.split(r"[\r\n]+", plain)
    for number in range(1, 11):
        assert f"logged {number}" in lines  # on a line of its own, not behind the bar
    assert lines[-2:] == ["ended", ""]
