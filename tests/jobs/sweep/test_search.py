"""Optuna proposes jobs, and gets what they reached."""

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import MissingConfigException
from omegaconf import OmegaConf

from ldm_lightning.cli import error_text
from ldm_lightning.config import CONF_DIR, register_resolvers
from tests.cli.run import ROOT, summary_of
from tests.figures import figures_of
from tests.jobs.sweep.fake_job import starts_of
from tests.jobs.sweep.test_launcher import SEARCH, folders, sweep

pytestmark = pytest.mark.filterwarnings("ignore")  # optuna 2 is older than what it imports

WORDS = [
    *SEARCH.split()[4:],
    *("seed=3", "hydra.sweeper.n_trials=4", "hydra.launcher.n_jobs=2"),
]


@pytest.fixture(autouse=True)
def _found_by_jobs(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def kl_weight(folder) -> float:
    """What a job was started with."""
    (start,) = starts_of(folder)
    (word,) = (word for word in start["words"] if word.startswith("loss.kl_weight="))
    return float(word.partition("=")[2])


def test_a_search_gets_the_monitor_and_finds_its_jobs_done_when_it_is_started_again(tmp_path):
    first = sweep(tmp_path, *WORDS)
    assert first.code == 0, first.output
    found = folders(tmp_path, "search")
    assert len({kl_weight(folder) for folder in found}) == 4
    assert all(1e-8 <= kl_weight(folder) <= 1e-2 for folder in found)
    results = OmegaConf.load(tmp_path / "outputs/sweeps/search/optimization_results.yaml")
    assert results.best_value == 3.0  # what every fake job reaches is its seed
    assert set(results.best_params) == {"loss.kl_weight", "optim.learning_rate"}

    again = sweep(tmp_path, *WORDS)
    assert again.code == 0, again.output
    assert folders(tmp_path, "search") == found
    assert [len(starts_of(folder)) for folder in found] == [1, 1, 1, 1]


@pytest.mark.slow
def test_trials_that_fail_are_left_out_and_end_no_search(tmp_path):
    ended = sweep(tmp_path, *WORDS, "name=unlucky", "hydra.launcher.n_jobs=1")
    assert ended.code == 1, ended.output
    found = folders(tmp_path, "search")
    failed = [folder for folder in found if kl_weight(folder) < 1e-5]
    assert 0 < len(failed) < len(found) == 4
    assert [folder for folder in found if summary_of(folder)["state"] == "failed"] == failed
    assert figures_of(ended.said.splitlines()[-1])[-1] == len(failed)
    results = OmegaConf.load(tmp_path / "outputs/sweeps/search/optimization_results.yaml")
    assert results.best_params["loss.kl_weight"] >= 1e-5


@pytest.mark.slow
def test_a_search_without_any_result_fails(tmp_path):
    ended = sweep(tmp_path, *WORDS, "name=refused")
    assert ended.code == 1
    assert "Traceback" not in ended.output
    assert len(folders(tmp_path, "search")) == 4


@pytest.mark.parametrize(
    ("monitor", "direction"), [("val/psnr", "maximize"), ("val/rfid", "minimize")]
)
def test_the_search_follows_the_direction_of_the_monitor(monitor, direction):
    register_resolvers()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        words = [*WORDS, f"monitor={monitor}"]
        cfg = compose("train", overrides=words, return_hydra_config=True)
    assert cfg.hydra.sweeper.direction == direction
    assert cfg.hydra.sweeper.n_jobs == 2


def test_without_its_packages_it_says_what_to_install():
    error = MissingConfigException("no", "hydra/sweeper/optuna", options=["basic"])
    assert "pip install 'ldm_lightning[search]'" in error_text(error)
