import subprocess

import torch

from ldm_lightning.utils.provenance import device_name, git_commit, package_versions, peak_memory


def git(folder, *arguments):
    identity = ["-c", "user.name=n", "-c", "user.email=e"]
    return subprocess.run(
        ["git", "-C", folder, *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_commit_of_a_working_tree_says_whether_it_was_changed(tmp_path):
    git(tmp_path, "init")
    assert git_commit(tmp_path) is None  # no commit yet
    (tmp_path / "code.py").write_text("one")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert git_commit(tmp_path) == commit
    (tmp_path / "code.py").write_text("two")
    assert git_commit(tmp_path) == f"{commit}-dirty"


def test_there_is_no_commit_outside_a_repository(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_commit(tmp_path) is None


def test_there_is_no_commit_without_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert git_commit(tmp_path) is None


def test_versions_are_those_that_run():
    versions = package_versions()
    assert versions["torch"] == torch.__version__.split("+")[0]
    assert all(versions[name] for name in ("python", "lightning", "torchmetrics", "numpy"))


def test_cpu_has_a_name_and_no_device_memory():
    assert device_name(torch.device("cpu")).startswith("cpu (")
    memory = peak_memory(torch.device("cpu"))
    assert 10 < memory["peak_host_mib"] < 1e6
    assert memory["peak_device_mib"] is None
