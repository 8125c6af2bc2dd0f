"""Counts of files that are not read."""

import logging

from ldm_lightning.data.left_out import LeftOut, Reason, say_what_is_not_read, suffix_reason


def test_counts_are_kept_by_reason_with_the_first_example():
    left_out = LeftOut()
    left_out.add(suffix_reason(".txt"), "a.txt")
    left_out.add(suffix_reason(".txt"), "b.txt", count=3)
    left_out.add(suffix_reason(""), "c")
    other = LeftOut({suffix_reason(".txt"): Reason(1200, "z.txt")})
    left_out.update(other)
    txt, none = suffix_reason(".txt"), suffix_reason("")
    assert left_out.reasons == {none: Reason(1, "c"), txt: Reason(1204, "a.txt")}
    assert left_out.num_files == 1205
    assert str(left_out) == f"{none}: 1 (e.g. c); {txt}: 1,204 (e.g. a.txt)"
    assert other.num_files == 1200


def test_nothing_is_said_where_nothing_was_left_out(caplog):
    with caplog.at_level(logging.WARNING):
        say_what_is_not_read(LeftOut(), "data.root=here")
        assert not caplog.records
        say_what_is_not_read(LeftOut({"links": Reason(2, "x.png")}), "data.root=here")
    (record,) = caplog.records
    assert all(part in record.getMessage() for part in ("data.root=here", "x.png"))
