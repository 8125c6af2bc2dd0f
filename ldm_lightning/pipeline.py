"""From images to a measured second stage, in one folder, each step a command of its own.

    python -m ldm_lightning.pipeline experiment=ldm_kl_f4
    python -m ldm_lightning.pipeline resume=outputs/ldm_kl_f4_chain/CHAIN

Trains a first stage, measures it, encodes the images, trains the second stage, generates, measures.
Every command is printed before it runs. A chain that stopped goes on with the step it stopped in.
"""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import hydra
from hydra import compose
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from ldm_lightning.checks.keys import check_keys
from ldm_lightning.cli import (
    check_alone,
    config_dir_options,
    handle_user_errors,
    run_entry_point,
    run_lock,
)
from ldm_lightning.config import CONF_DIR, check_values
from ldm_lightning.distributed.processes import end_with_parent
from ldm_lightning.jobs.chain.running import INTERRUPTED, Chain, Runner, exit_code, run_chain
from ldm_lightning.jobs.chain.step_process import run_command
from ldm_lightning.jobs.chain.steps import ImageFacts, Request, Step, all_steps, trainings
from ldm_lightning.jobs.chain.stored_overrides import check_overrides
from ldm_lightning.runs.overrides import key_of
from ldm_lightning.runs.run_folder import RunFolder

log = logging.getLogger(__name__)

CHAIN_FILE = "chain.json"


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="pipeline")
def _pipeline(cfg: DictConfig) -> None:
    with handle_user_errors():
        code = pipeline(cfg, HydraConfig.get(), run=run_command)
    if code:
        sys.exit(code)


def pipeline(cfg: DictConfig, runtime: HydraConf, *, run: Runner) -> int:
    """Start the chain of a configuration, or continue it.

    Args:
        cfg: The composed configuration.
        runtime: Hydra's own configuration of this job: group choices, overrides, folder.
        run: Runs a step.

    Returns:
        The exit code: 0, that of the step that failed, or 130 after Ctrl-C.

    Raises:
        ValueError: Before any step, on overrides that make no sense, or a folder with a chain.
    """
    check_keys(cfg, runtime.runtime.choices, command="pipeline")
    run_folder = RunFolder.create(runtime.runtime.output_dir)
    with run_lock(run_folder, is_first=True):
        return _start_or_continue(cfg, runtime, run_folder.path, run=run)


def _start_or_continue(cfg: DictConfig, runtime: HydraConf, folder: Path, *, run: Runner) -> int:
    # What may be built from files is no part of a chain: who continues it says so again.
    given = ("resume", "trusted_packages")
    overrides = [override for override in runtime.overrides.task if key_of(override) not in given]
    if cfg.resume is not None and (cfg.resume != "auto" or (folder / CHAIN_FILE).is_file()):
        chain = Chain.load(folder / CHAIN_FILE)
        _check_same_overrides(overrides, chain)
        _check_stored(chain, runtime, folder / CHAIN_FILE)
        log.info("Continuing the chain in %s.", folder)
    else:
        if (folder / CHAIN_FILE).exists():
            raise ValueError(
                f"{folder} holds a chain already. Continue it with resume={folder}, or choose "
                "another output_dir."
            )
        check_overrides(overrides, source="The command line")
        steps = _steps(
            cfg, runtime.runtime.choices, overrides, folder, tuple(config_dir_options(runtime))
        )
        chain = Chain(tuple(overrides), str(Path.cwd()), str(folder), steps)
        if cfg.dry_run:
            return _dry_run(chain, run)
        chain.save(folder / CHAIN_FILE)
        OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
    code = run_chain(chain, run=run, trusted_packages=tuple(cfg.trusted_packages))
    if code == 0 and cfg.page:
        from ldm_lightning.reporting.page.write import write_own_page

        write_own_page(folder)
    return code


def _check_same_overrides(overrides: list[str], chain: Chain) -> None:
    other = [override for override in overrides if override not in chain.overrides]
    if other:
        raise ValueError(
            "A chain goes on with the overrides it was started with, so resume takes no others; "
            f"got {shlex.join(other)}. Leave that out, or start a new chain."
        )


def _check_stored(chain: Chain, runtime: HydraConf, path: Path) -> None:
    """Refuse overrides that a chain may not hold, and commands that do not follow from them."""
    check_overrides(chain.overrides, source=path)
    options = tuple(config_dir_options(runtime))
    chain.check_options(options, path)
    cfg, choices = _composed("pipeline", chain.overrides)
    chain.check_steps(_steps(cfg, choices, chain.overrides, Path(chain.folder), options), path)


def _steps(
    cfg: DictConfig,
    choices: Mapping[str, str | None],
    overrides: Sequence[str],
    folder: Path,
    options: tuple[str, ...],
) -> tuple[Step, ...]:
    """The steps that the overrides ask for, after checking what can be checked without waiting."""
    experiment = str(choices["experiment"])
    if cfg.stage != "second":
        raise ValueError(
            f"experiment={experiment} is a first stage, and the pipeline is named by the second: "
            f"choose experiment=ldm_{experiment} or another ldm_*. A first stage alone: python -m "
            f"ldm_lightning.train experiment={experiment}."
        )
    if cfg.first_stage.checkpoint is not None:
        raise ValueError(
            f"first_stage.checkpoint={cfg.first_stage.checkpoint}: the pipeline trains its own "
            f"first stage. On a trained one: python -m ldm_lightning.train experiment={experiment} "
            f"first_stage.checkpoint={cfg.first_stage.checkpoint}."
        )
    if choices["data"] == "latents":
        raise ValueError(
            "data=latents: the pipeline encodes the images itself; give these, such as "
            "data=image_folder data.root=PHOTOS."
        )
    request = Request(
        experiment=experiment,
        first_stage=cfg.first_stage.experiment,
        overrides=tuple(overrides),
        first_stage_overrides=tuple(cfg.first_stage.overrides),
        encode_overrides=tuple(cfg.encode.overrides),
        num_samples=cfg.samples.num_samples,
        sample_overrides=tuple(cfg.samples.overrides),
    )
    first, second = trainings(request, folder, dry_run=cfg.dry_run)
    second, facts = _fitted(first, second)
    steps = all_steps(request, first, second, facts, folder)
    for step in steps:
        # The other steps hold no override of the user.
        if step.name in ("latents", "samples", "evaluation"):
            compose(config_name=step.command, overrides=list(step.overrides))
    return tuple(replace(step, options=options) for step in steps)


def _dry_run(chain: Chain, run: Runner) -> int:
    """Show every command; run the two trainings, which build their networks without memory."""
    for number, step in enumerate(chain.steps, start=1):
        log.info("%d/%d %s: %s", number, len(chain.steps), step.name, step.line)
        if step.command == "train" and (code := run(step, Path(chain.working_folder))):
            return exit_code(code)
    RunFolder.create(chain.folder).update_summary({"state": "dry_run"})
    return 0


# Checks, before anything is waited for


def _composed(command: str, overrides: Sequence[str]) -> tuple[DictConfig, dict[str, str]]:
    """Compose the configuration of a command and check its keys; returns it with group choices.

    Raises:
        ValueError: On a misspelled key, or a value of another type.
    """
    cfg = compose(config_name=command, overrides=list(overrides), return_hydra_config=True)
    choices = dict(cfg.hydra.runtime.choices)
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    OmegaConf.set_struct(cfg, True)
    check_keys(cfg, choices, command=command)
    return cfg, choices


def _fitted(first: Step, second: Step) -> tuple[Step, ImageFacts]:
    """Compose and check both trainings; the second follows the first where nothing says more.

    Returns:
        The second training, and what the first says about the images.

    Raises:
        ValueError: Naming what to change.
    """
    cfg, choices = _composed("train", first.overrides)
    if cfg.stage != "first":
        raise ValueError(
            f"first_stage.experiment={choices['experiment']} is a second stage; name a first one, "
            "such as kl_f4."
        )
    check_values(cfg)
    second_cfg, _ = _composed("train", second.overrides)
    broadcast_from_first = {
        "resolution": cfg.resolution,
        "image_channels": cfg.image_channels,
        "latent_channels": cfg.autoencoder.latent_channels,
        "downsampling_factor": cfg.autoencoder.downsampling_factor,
    }
    differing = {
        key: value for key, value in broadcast_from_first.items() if second_cfg[key] != value
    }
    given = {key_of(override) for override in second.overrides}
    for key, value in differing.items():
        if key in given or key == "downsampling_factor":
            raise ValueError(
                f"{key} is {second_cfg[key]} for the second stage, but {value} for the first stage "
                f"{cfg.name}; give {key}={value}, or another first_stage.experiment."
            )
    if differing:
        overrides = [f"{key}={value}" for key, value in differing.items()]
        second = replace(second, overrides=(*second.overrides, *overrides))
        second_cfg, _ = _composed("train", second.overrides)
    check_values(second_cfg)
    facts = ImageFacts(
        data=choices["data"],
        features=choices["features"],
        eval_crop=cfg.eval_crop,
        image_channels=cfg.image_channels,
    )
    return second, facts


def _pipeline_alone() -> None:
    check_alone("pipeline", instead="start it alone; its trainings start the others (trainer=ddp).")
    _pipeline()


def main() -> None:
    """Entry point of ``ldm-pipeline`` and ``python -m ldm_lightning.pipeline``."""
    end_with_parent()
    try:
        run_entry_point(_pipeline_alone)
    except KeyboardInterrupt:  # outside the steps, which say how to go on
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
