"""Names of unreadable files keep their lines, whatever they hold."""

from ldm_lightning.data.bad_files import BadFileLog
from ldm_lightning.utils.terminal import one_line
from tests.hostile_names import HOSTILE_NAMES


def test_every_name_is_one_entry_in_every_process(tmp_path):
    logs = [BadFileLog(split="train", num_files=1000, max_bad_fraction=1.0) for _ in range(2)]
    for log in logs:
        log.write_to(tmp_path / "unreadable_files.tsv")
        for name in HOSTILE_NAMES:
            log.add(name, f"{name}: broken")
    for log in logs:
        assert set(log.entries()) == set(map(one_line, HOSTILE_NAMES))
    lines = (tmp_path / "unreadable_files.tsv").read_text(encoding="utf-8").split("\n")
    assert {line.count("\t") for line in lines[:-1]} == {2}
