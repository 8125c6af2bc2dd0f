"""The check of a GPU goes on when a part fails, and keeps what each measured."""

import json

import pytest

from benchmarks import gpu_check
from benchmarks.gpu_check import Check, run_part, run_parts


@pytest.fixture
def check(tmp_path):
    return Check("cpu", 0.1, tmp_path)


def part_of(name, code, *, timeout_minutes=1.0):
    def run(check):
        return run_part(
            check,
            name,
            ["-c", code],
            timeout_minutes=timeout_minutes,
            results=lambda folder: json.loads((folder / "numbers.json").read_text()),
        )

    return run


def test_every_part_is_recorded_whatever_happens_to_the_others(check, monkeypatch):
    writes = "open('numbers.json', 'w').write('{\"images_per_s\": 5}')"

    def breaks(check):
        raise KeyError("unexpected")

    parts = {
        "breaks": breaks,
        "fails": part_of("fails", "raise SystemExit('cause')"),
        "sleeps": part_of("sleeps", "import time; time.sleep(60)", timeout_minutes=0.02),
        "works": part_of("works", writes),
    }
    monkeypatch.setattr(gpu_check, "PARTS", parts)
    run_parts(check, list(parts))
    record = json.loads((check.folder / "record.json").read_text())
    states = {part["name"]: part["state"] for part in record["parts"]}
    assert states == {
        "breaks": "failed",
        "fails": "failed",
        "sleeps": "timed out",
        "works": "passed",
    }
    assert record["parts"][0]["last_lines"] == ["KeyError: 'unexpected'"]
    assert record["parts"][1]["last_lines"] == ["cause"]
    assert record["parts"][3]["results"] == {"images_per_s": 5}
    assert {"device", "versions", "commit"} <= record.keys()
    text = (check.folder / "record.txt").read_text()
    assert "images_per_s: 5" in text
