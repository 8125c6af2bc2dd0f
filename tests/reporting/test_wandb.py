import os

import pytest
from PIL import Image

from ldm_lightning.reporting.metrics_csv import MetricsCsv
from ldm_lightning.reporting.wandb import WandbDashboard
from ldm_lightning.runs.run_folder import RunFolder
from tests.reporting.wandb_file import read_wandb


@pytest.fixture(autouse=True)
def nobody_logged_in(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))


def dashboard(folder, *, offline=True, **labels):
    given = {"project": "p", "name": "kl_f8", "group": None, "job_type": "first_stage", **labels}
    return WandbDashboard(folder, offline=offline, **given)


def test_online_without_a_key_is_refused_instead_of_asking(tmp_path):
    with pytest.raises(ValueError, match=r"W&B.*logger\.offline=true"):
        dashboard(tmp_path, offline=False)


def test_online_with_a_key_is_accepted(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert dashboard(tmp_path, offline=False).mode == "online"


def test_online_with_a_login_of_wandb_is_accepted(tmp_path):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine api.wandb.ai login user password secret\n")
    netrc.chmod(0o600)
    assert dashboard(tmp_path, offline=False).mode == "online"


def test_disabled_by_the_environment_it_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    logger = dashboard(tmp_path)
    logger.log_hyperparams({"seed": 0})
    logger.log_metrics({"val/psnr": 1.0}, step=1)
    logger.finalize("success")
    assert not (tmp_path / "wandb").exists()
    assert logger.version is None


def test_the_environment_takes_no_run_online_that_is_configured_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    logger = dashboard(tmp_path, group="g", tags=["a", "b"], entity="team")
    logger.log_metrics({"val/psnr": 1.0}, step=1)
    logger.finalize("success")
    run = read_wandb(tmp_path).run
    assert (run["project"], run["entity"]) == ("p", "team")
    assert (run["run_group"], run["job_type"], run["tags"]) == ("g", "first_stage", ["a", "b"])
    assert run["display_name"] == f"kl_f8 {tmp_path.name}"


def test_a_run_that_did_not_finish_says_so(tmp_path):
    state, code = "interrupted", 255
    logger = dashboard(tmp_path)
    logger.log_metrics({"train/loss_total": 1.0}, step=3)
    RunFolder.create(tmp_path).update_summary({"state": state, "reason": "because"})
    logger.finalize("failed")
    logger.finalize("failed")  # twice does no harm
    found = read_wandb(tmp_path)
    assert found.exit_code == code
    assert (found.summary["state"], found.summary["reason"]) == (state, "because")
    assert found.series("train/loss_total") == {3: 1.0}


def test_a_run_left_open_is_not_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    open_one, other = dashboard(tmp_path / "a"), dashboard(tmp_path / "b")
    for step, logger in enumerate((open_one, other), start=1):
        RunFolder.create(logger.save_dir)
        logger.log_metrics({"val/psnr": 10.0 + step}, step=step)
    other.finalize("success")
    assert os.environ["WANDB_MODE"] == "offline"
    assert other.version != open_one.version
    assert read_wandb(tmp_path / "a").series("val/psnr") == {1: 11.0}
    found = read_wandb(tmp_path / "b")
    assert found.series("val/psnr") == {2: 12.0}
    assert set(found.metrics) == {"update", "val/psnr"}
    other.log_metrics({"val/psnr": 13.0}, step=3)  # begins again
    other.finalize("success")
    again = read_wandb(tmp_path / "b")
    assert again.run["run_id"] == found.run["run_id"]
    assert set(again.metrics) == {"update", "val/psnr"}


def test_a_continued_run_keeps_its_id_and_its_newest_folder_is_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")  # though the configuration says otherwise
    csv, first = MetricsCsv(tmp_path), dashboard(tmp_path, offline=False)
    images = RunFolder.create(tmp_path).images
    for step in (1, 2, 3):
        for logger in (csv, first):
            logger.log_metrics({"val/psnr": 10.0 + step}, step=step)
        path = images / f"reconstruction_{step}.png"
        Image.new("RGB", (4, 4), (step, 0, 0)).save(path)
        first.log_picture("images/reconstruction", path, step=step)
        if step == 1:  # drawn once
            Image.new("RGB", (4, 4)).save(images / "ceiling.png")
            first.log_picture("images/ceiling", images / "ceiling.png", step=step)
    first.finalize("failed")
    before = read_wandb(tmp_path)
    second = dashboard(tmp_path, offline=False)
    second.drop_rows_after(2, validated=True)  # update 3 was not saved, and is done again
    second.log_metrics({"val/psnr": 20.0}, step=3)
    second.finalize("success")
    after = read_wandb(tmp_path)
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 2
    assert after.run["run_id"] == before.run["run_id"] == second.version
    assert before.series("val/psnr") == {1: 11.0, 2: 12.0, 3: 13.0}
    assert after.series("val/psnr") == {1: 11.0, 2: 12.0, 3: 20.0}
    for name in ("images/reconstruction.sha256", "images/ceiling.sha256"):
        kept = {step: sha for step, sha in before.series(name).items() if step <= 2}
        assert kept
        assert after.series(name) == kept
