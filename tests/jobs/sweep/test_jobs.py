"""Which folder is whose."""

from ldm_lightning.jobs.sweep.jobs import differing_overrides, hash_of, jobs_of

WORDS = ["experiment=kl_f4", "loss.kl_weight=1e-06", "sweep_name=a"]


def test_the_hash_depends_on_the_words_alone():
    assert hash_of(WORDS) == hash_of(reversed(WORDS))
    assert hash_of(WORDS) == hash_of([*WORDS[:2], "sweep_name=another"])
    assert hash_of(WORDS) != hash_of([*WORDS, "seed=1"])
    assert hash_of(["a=1", "b=2"]) != hash_of(["a=12", "b="])


def test_of_two_values_for_a_key_the_last_counts():
    assert hash_of(["a=1", "b=0", "a=2"]) == hash_of(["b=0", "a=2"])
    assert hash_of(["a=1", "a=2"]) != hash_of(["a=2", "a=1"])
    assert hash_of(["~a", "+a=2"]) != hash_of(["+a=2"])


def test_a_job_keeps_its_folder_and_a_new_one_gets_the_next_number(tmp_path):
    first = jobs_of(tmp_path, [["seed=0"], ["seed=1"]])
    assert [job.name for job in first] == [
        f"0_{hash_of(['seed=0'])}",
        f"1_{hash_of(['seed=1'])}",
    ]
    for job in first:
        job.folder.mkdir()
    (tmp_path / "7_not_a_job").mkdir()
    again = jobs_of(tmp_path, [["seed=2"], ["seed=1"], ["seed=0"], ["seed=3"]])
    assert [job.name.partition("_")[0] for job in again] == ["2", "1", "0", "3"]
    assert again[2].folder == first[0].folder


def test_the_same_words_are_one_job(tmp_path):
    one, other, third = jobs_of(tmp_path, [["a=1", "b=2"], ["b=2", "a=1"], ["a=1"]])
    assert one.folder == other.folder != third.folder


def test_a_job_is_told_by_the_words_that_others_have_not(tmp_path):
    jobs = jobs_of(tmp_path, [[*WORDS, "seed=0"], [*WORDS, "seed=1", "max_steps=3"]])
    assert list(differing_overrides(jobs).values()) == ["seed=0", "seed=1 max_steps=3"]
    alone = "experiment=kl_f4 loss.kl_weight=1e-06 seed=0"
    assert list(differing_overrides(jobs[:1]).values()) == [alone]


def test_only_what_can_be_continued_has_begun(tmp_path):
    (job,) = jobs_of(tmp_path, [["train=false"]])
    job.folder.mkdir()
    (job.folder / "config.yaml").touch()  # its words begin it as well
    assert not job.has_begun
    (job.folder / "chain.json").touch()
    assert job.has_begun
    (job.folder / "chain.json").unlink()
    (job.folder / "checkpoints").mkdir()
    (job.folder / "checkpoints" / "best.ckpt").touch()
    assert job.has_begun
    (job.folder / "checkpoints" / "best.ckpt").unlink()
    (job.folder / "metrics.csv").write_text("step,metric,value\n")
    assert job.has_begun
