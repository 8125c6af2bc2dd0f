"""A dry run: build everything without memory, print the parameters, write them down."""

from omegaconf import OmegaConf

from ldm_lightning.builders.meta_networks import count_parameters, networks_without_memory
from ldm_lightning.config import plain
from ldm_lightning.reporting.parameters import print_parameters
from ldm_lightning.training.check import CheckedRun


def dry_run(checked: CheckedRun) -> None:
    """Count the parameters of a run, without data, weights or updates."""
    cfg, run_folder = checked.cfg, checked.run_folder
    counts = count_parameters(networks_without_memory(cfg))
    print_parameters(counts, title=f"{cfg.name}: parameters")
    run_folder.update_summary(
        {"state": "dry_run", "name": cfg.name, "parameters": counts, "config": plain(cfg)}
    )
    OmegaConf.save(cfg, run_folder.config, resolve=True)
