"""Defaults that a command takes from the run of its checkpoint."""

from omegaconf import DictConfig, OmegaConf

from ldm_lightning.restore.first_stage import OpenedFirstStage


def with_run_defaults(cfg: DictConfig, first_stage: OpenedFirstStage) -> DictConfig:
    """Fill what was not given from the checkpoint and its run's configuration.

    Args:
        cfg: With ``data``, ``features``, ``resolution``, ``image_channels``, ``eval_crop`` and
            ``precision``, None where the run's are wanted, and ``cache_dir``.
        first_stage: What is going to be measured.

    Raises:
        ValueError: If something is missing that the checkpoint's surroundings do not tell.
    """
    cfg = cfg.copy()
    OmegaConf.set_struct(cfg, False)
    path, stored, run = first_stage.path, first_stage.description, first_stage.run_config()
    absent = [group for group in ("data", "features") if cfg.get(group) is None]
    if absent and not run:
        needed = " and ".join(f"{group}=..." for group in absent)
        raise ValueError(
            f"{path} does not lie in a run folder with a config.yaml, so {needed} must be given."
        )
    for key in ("resolution", "image_channels"):
        if cfg[key] is None:
            cfg[key] = stored[key]
    if cfg.image_channels != stored["image_channels"]:
        raise ValueError(
            f"image_channels={cfg.image_channels}, but the first stage of {path} was trained on "
            f"{stored['image_channels']}; leave image_channels out."
        )
    if cfg.eval_crop is None:
        cfg.eval_crop = run.get("eval_crop", "center")
    if "train_crop" in cfg and cfg.train_crop is None:
        same = "random" if cfg.eval_crop == "crops" else "center"
        cfg.train_crop = run.get("train_crop", same)
    if cfg.precision is None:
        cfg.precision = OmegaConf.select(run, "trainer.precision", default="auto")
    for group in absent:
        cfg[group] = run[group]
    cfg.metrics = {**(run.get("metrics") or {}), **(cfg.get("metrics") or {})}
    if "data" in absent:
        cfg.data.resolution = cfg.resolution
        if "cache_dir" in cfg.data:
            cfg.data.cache_dir = cfg.cache_dir  # not where the run's machine had it
    if missing := sorted(OmegaConf.missing_keys(cfg.data)):
        raise ValueError(f"No value for {missing[0]}: give {missing[0]}=VALUE.")
    return cfg
