"""The table of stages, and the types that order the steps of a run."""

import inspect
from itertools import pairwise
from typing import get_type_hints

import pytest
from omegaconf import OmegaConf

from ldm_lightning.config import CONF_DIR
from ldm_lightning.training import check, steps
from ldm_lightning.training.report import report
from ldm_lightning.training.stages import STAGES


def test_every_stage_of_the_configuration_has_an_entry():
    assert set(STAGES) == {path.stem for path in (CONF_DIR / "stage").glob("*.yaml")}


def test_a_step_takes_what_the_step_before_returns():
    functions = [check.check, steps.build, steps.load, steps.prepare, steps.fit, report]
    for before, after in pairwise(functions):
        (taken,) = inspect.signature(after).parameters
        assert get_type_hints(after)[taken] is get_type_hints(before)["return"]


def test_an_optimizer_that_cannot_be_built_is_refused_before_data_are_read(monkeypatch):
    monkeypatch.setattr(steps, "build_features", lambda cfg: pytest.fail("too late"))
    cfg = OmegaConf.create({"stage": "first", "optim": {"_target_": "torch.optim.Adamm"}})
    with pytest.raises(ValueError, match="optim._target_=torch.optim.Adamm"):
        steps.build(check.CheckedRun(cfg, None, None, None))


def test_a_first_stage_refuses_latents(monkeypatch):
    monkeypatch.setattr("ldm_lightning.builders.data.build_data", lambda cfg: object())
    with pytest.raises(ValueError, match="data=latents"):
        STAGES["first"].build_data(OmegaConf.create(), None)
