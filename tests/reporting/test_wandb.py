import pytest

from ldm_lightning.reporting.wandb import wandb_logger


@pytest.fixture(autouse=True)
def nobody_logged_in(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))


def test_offline_needs_no_key_and_writes_into_the_run_folder(tmp_path):
    logger = wandb_logger(tmp_path / "run", offline=True, project="p")
    assert logger.save_dir == str(tmp_path / "run")
    assert logger._offline is True
    assert logger._wandb_init["name"] == "run"


def test_online_without_a_key_is_refused_instead_of_asking(tmp_path):
    with pytest.raises(ValueError, match=r"needs a W&B API key.*logger.offline=true"):
        wandb_logger(tmp_path, offline=False, project="p")


def test_online_with_a_key_is_accepted(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert wandb_logger(tmp_path, offline=False, project="p")._offline is False


def test_online_with_a_login_of_wandb_is_accepted(tmp_path):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine api.wandb.ai login user password secret\n")
    netrc.chmod(0o600)
    assert wandb_logger(tmp_path, offline=False, project="p")._offline is False
