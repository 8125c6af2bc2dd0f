"""Writing and continuing from a checkpoint whose tensors are spread over processes.

Each process writes its own part into a folder of its own turn, ``last.shards/a`` or ``b``; then one
process replaces ``last.ckpt``, which names that folder. Until that moment the previous checkpoint
stands untouched in the other folder, and only afterward is it removed.
"""

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, distribute_tensor

from ldm_lightning.checkpoints.checkpoint import (
    SHARD_FOLDERS,
    SHARDS,
    load_file,
    remove_shards,
    save_checkpoint,
    shards_of,
    with_shards,
)
from ldm_lightning.checkpoints.sharded_tensors import Place, own_parts, pop_prefixed, write_shards
from ldm_lightning.storage.files import link_or_copy
from ldm_lightning.utils.collectives import process_rank


def save_sharded(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint, each process its part; call it on all processes.

    Args:
        checkpoint: Nested dicts and lists; what is no DTensor is taken from the first process.
        path: The file, on a disk that all processes share. What it held before is still there,
            unharmed, if the new one could not be written.

    Raises:
        OSError: On every process, if one of them could not write.
    """
    found: dict[str, tuple[Place, DTensor]] = {}
    rest = pop_prefixed(dict(checkpoint), [], found)
    folder = shards_of(path) / _from_first(lambda: _free_folder(path))
    files: dict[str, list[int]] = {}
    try:
        files = write_shards({name: tensor for name, (_, tensor) in found.items()}, folder)
    except OSError as err:
        _from_first(lambda: shutil.rmtree(folder, ignore_errors=True))
        kept = "The previous checkpoint there is still valid." if path.exists() else ""
        raise OSError(
            f"The checkpoint {path} could not be written ({err}). Most often the disk is full or a "
            f"quota is reached: free some space, then continue with resume=auto. {kept}".rstrip()
        ) from err
    places = {name: place for name, (place, _) in found.items()}
    rest[SHARDS] = {"folder": folder.name, "files": files, "places": places}
    _from_first(lambda: _point_to(folder, rest, path))


def load_sharded(path: Path, mesh: DeviceMesh) -> dict[str, Any]:
    """Read a checkpoint, of a sharded one each process its part over ``mesh`` alone.

    Tensors of a checkpoint in one file are whole.

    Raises:
        CheckpointError: As ``load_checkpoint`` does.
    """
    return with_shards(load_file(path), path, partial(own_parts, mesh=mesh))


def cut_alike(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Cut a tensor that every process holds as a parameter of its shape is cut, if that is."""
    if isinstance(tensor, DTensor) or not isinstance(parameter, DTensor):
        return tensor
    mesh, placements = parameter.device_mesh, parameter.placements
    # None: every process has read the same file, so that nothing needs to be sent.
    return distribute_tensor(tensor.to(parameter.device), mesh, placements, src_data_rank=None)


def link_checkpoint(source: Path, target: Path) -> None:
    """Let ``target`` hold what ``source`` holds now, atomically, sharing the space on disk.

    One process does it, for checkpoints that are only ever replaced, as all of ours are.
    """
    content = load_file(source) if shards_of(source).is_dir() else {}
    if SHARDS not in content:
        link_or_copy(source, target)
        remove_shards(target)
        return
    folder = shards_of(target) / _free_folder(target)
    folder.mkdir(parents=True)
    for name in content[SHARDS]["files"]:
        link_or_copy(shards_of(source) / content[SHARDS]["folder"] / name, folder / name)
    content[SHARDS]["folder"] = folder.name
    _point_to(folder, content, target)


def _free_folder(path: Path) -> str:
    """Return the folder of two that no checkpoint needs, emptied of what a kill left."""
    folders = shards_of(path)
    used = None
    if folders.is_dir() and path.is_file():
        used = load_file(path, device="meta").get(SHARDS, {}).get("folder")
    free = next(name for name in SHARD_FOLDERS if name != used)
    shutil.rmtree(folders / free, ignore_errors=True)
    return free


def _point_to(folder: Path, content: Mapping[str, Any], path: Path) -> None:
    """Replace the file, then remove the folder that it named before."""
    save_checkpoint(content, path)
    for other in SHARD_FOLDERS:
        if other != folder.name:
            shutil.rmtree(folder.parent / other, ignore_errors=True)


def _from_first(work: Callable[[], Any]) -> Any:
    """Let the first process do something; every process gets its result, or its failure.

    Raises:
        OSError: On every process, if the first one met with one, or with a checkpoint that cannot
            be read.
    """
    told: list[Any] = [None, None]
    if process_rank() == 0:
        try:
            told[0] = work()
        except (OSError, ValueError) as err:
            told[1] = str(err)
    dist.broadcast_object_list(told)
    if told[1] is not None:
        raise OSError(told[1])
    return told[0]
