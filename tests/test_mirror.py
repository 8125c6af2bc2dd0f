"""Every module of the package has a test file of its name, or stands in the table below."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE, TESTS = ROOT / "ldm_lightning", ROOT / "tests"

COVERED_BY = {
    "autoencoder/test_autoencoder.py": "autoencoder/encoder autoencoder/decoder",
    "autoencoder/test_linear_fit.py": "autoencoder/linear",
    "bottleneck/test_gaussian.py": "bottleneck/base",
    "builders/test_optimizer.py": "module/optimizer_state",
    "callbacks/test_checkpointing.py": "callbacks/comparison",
    "callbacks/test_distributions.py": "callbacks/dashboards",
    "callbacks/test_reconstruction_grid.py": "callbacks/pictures",
    "checkpoints/test_sharded.py": "checkpoints/contents checkpoints/sharded_tensors",
    "checks/test_keys.py": "checks/kinds",
    "cli/test_bad_input.py": "cli config",
    "cli/test_floor.py": "autoencoder/lapped autoencoder/linear_autoencoder evaluation/floors "
    "planning/denoiser_cost reporting/floors",
    "cli/test_plan.py": "planning/facts planning/first_stage planning/cost planning/second_stage "
    "planning/table planning/trial planning/untrained utils/memory",
    "cli/test_sample.py": "restore/second_stage restore/run_defaults sampler/images",
    "conditioner/test_class_label.py": "conditioner/base conditioner/none",
    "data/images/test_image_folder.py": "data/class_names data/images/folder_listing",
    "data/latents/test_module.py": "data/latents/cache data/latents/writing",
    "data/order/test_position.py": "data/order/shard_order",
    "data/shapes/test_module.py": "data/shapes/backgrounds data/shapes/signed_distances",
    "data/shards/test_remote_shards.py": "data/shards/shard_cache",
    "data/shards/test_webdataset.py": "data/shards/shard_set data/shards/tar_source",
    "data/test_identity.py": "data/module data/image_module data/loading data/evaluation_loader "
    "data/images/source data/images/module data/images/settings",
    "data/test_value_range.py": "data/images/trial_reading data/images/encoded data/samples",
    "denoiser/test_unet.py": "denoiser/unet_attention denoiser/unet_blocks denoiser/unet_layers "
    "denoiser/unet_levels",
    "diffusion/test_process.py": "diffusion/edm diffusion/flow",
    "distributed/test_fsdp.py": "distributed/sharding utils/collectives",
    "evaluation/test_gate.py": "evaluation/folders evaluation/reconstruct "
    "data/images/folder_batches utils/progress",
    "jobs/chain/test_running.py": "jobs/chain/step_process",
    "jobs/sweep/test_running.py": "jobs/sweep/job_process jobs/sweep/status",
    "metrics/test_frechet.py": "metrics/features metrics/reference_cache",
    "module/test_diffusion.py": "module/generation module/settings",
    "module/test_prepared_networks.py": "builders/data builders/first_stage builders/hardware "
    "builders/image_metrics builders/training",
    "reporting/page/test_swept.py": "reporting/page/findings reporting/page/labels",
    "reporting/page/test_write.py": "reporting/page/page reporting/page/own_files "
    "reporting/page/results_file reporting/page/summary_file",
    "reporting/test_metrics_csv.py": "reporting/metrics_file",
    "restore/test_trusted_packages.py": "restore/first_stage",
    "resume/test_arguments.py": "resume/changes resume/kept_values",
    "sampler/test_sampler.py": "sampler/ddim sampler/ddpm sampler/dpm_solver sampler/euler "
    "sampler/heun",
    "storage/test_content.py": "storage/content_store",
    "training/test_dry_run.py": "builders/meta_networks builders/second_stage",
    "training/test_stages.py": "training/steps training/report",
    "utils/test_terminal.py": "reporting/parameters",
}
"""Modules by the test file that covers them."""

DOORS = ("train", "evaluate", "encode", "sample", "plan", "floor", "report", "pipeline")
"""Commands; ``tests/cli`` runs them."""


def has_code(path: Path) -> bool:
    """Return whether a file holds more than a docstring and imports."""
    statements = ast.parse(path.read_text(encoding="utf-8")).body[1:]
    return not all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in statements)


def modules() -> list[str]:
    """Modules with code, ``room/name``."""
    files = (path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
    return sorted(
        path.relative_to(PACKAGE).with_suffix("").as_posix() for path in files if has_code(path)
    )


def own_test(module: str) -> Path:
    """File that is named after a module."""
    room, _, name = module.rpartition("/")
    return TESTS / ("cli" if module in DOORS else room) / f"test_{name}.py"


@cache
def imported(path: Path) -> frozenset[Path]:
    """Files of package and tests that a file imports, inside of functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    files = (ROOT / f"{name.replace('.', '/')}.py" for name in names)
    return frozenset(file for file in files if file.is_file())


def reached(test: Path) -> set[Path]:
    """Files that a test file, its helpers and two steps of imports inside the package reach."""
    helpers, found = {test}, set()
    while helpers != found:
        found = set(helpers)
        helpers |= {file for path in found for file in imported(path) if TESTS in file.parents}
    for _ in range(3):
        found |= {file for path in found for file in imported(path)}
    return found


def test_every_module_has_a_test_file_of_its_name_or_stands_in_the_table():
    listed = [module for text in COVERED_BY.values() for module in text.split()]
    assert len(listed) == len(set(listed))
    without = {module for module in modules() if not own_test(module).is_file()}
    assert without == set(listed)


def test_a_file_that_covers_modules_reaches_them():
    for test, text in COVERED_BY.items():
        files = {PACKAGE / f"{module}.py" for module in text.split()}
        assert files <= reached(TESTS / test), test
