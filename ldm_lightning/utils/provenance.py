"""Provenance of a number: commit, package versions, device, memory."""

import platform
import resource
import subprocess
from importlib import metadata
from pathlib import Path

import torch

PACKAGES = (
    "ldm_lightning",
    "torch",
    "torchvision",
    "lightning",
    "torchmetrics",
    "torch-fidelity",
    "lpips",
    "hydra-core",
    "wandb",
    "numpy",
)


def package_versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that shape a result; None for a missing one."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def git_commit(folder: Path | None = None) -> str | None:
    """Commit of the source code that runs, with ``-dirty`` where tracked files were changed since.

    Args:
        folder: A folder of the working tree; by default the one this package is imported from.

    Returns:
        None where git or a commit is missing, and where the package was installed as a copy that
        happens to lie inside somebody else's repository.
    """
    where = Path(__file__).resolve().parent if folder is None else folder
    if folder is None and _git(where, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    commit = _git(where, "rev-parse", "--verify", "HEAD")
    if commit is None:
        return None
    changes = _git(where, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}-dirty" if changes else commit


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git prints, or None where it fails, is missing or takes over 10 seconds."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def device_name(device: torch.device) -> str:
    """Name of a device, such as ``NVIDIA H100`` or ``cpu (x86_64, 2 threads)``."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"
    return str(device)


def peak_memory(device: torch.device) -> dict[str, float | None]:
    """Most memory this process has held, in MiB: on the host, and on a CUDA device (else None)."""
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    host_mib = resident / 2**20 if platform.system() == "Darwin" else resident / 2**10
    on_cuda = device.type == "cuda"
    device_mib = torch.cuda.max_memory_allocated(device) / 2**20 if on_cuda else None
    return {"peak_host_mib": host_mib, "peak_device_mib": device_mib}
