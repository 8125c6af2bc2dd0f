"""Tensors in several files, of which each process writes and reads its own part.

The files are safetensors with the place of each part in their headers, written and read by
torch.distributed.checkpoint. Its default format keeps that in a pickle, ``.metadata``, which runs
what it says when it is read; here there is none, and one in the folder is not looked at.
"""

import logging
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor import empty as empty_dtensor

from ldm_lightning.utils.collectives import num_processes, process_rank
from ldm_lightning.utils.errors import CheckpointError

# Its notes on every save would reach the console, where Hydra shows all that is no debugging.
logging.getLogger("torch.distributed.checkpoint").setLevel(logging.WARNING)

Place = list[str | int]
"""Keys and indices that lead to a value inside nested dicts and lists."""


def pop_prefixed(value: Any, place: Place, found: dict[str, tuple[Place, DTensor]]) -> Any:
    """Copy nested dicts and lists with None for each tensor that is spread over processes.

    Args:
        value: Dicts, lists and anything else.
        place: Of ``value`` in the whole; empty at the start.
        found: Receives the tensors and their places, by a name made of the place.
    """
    if isinstance(value, DTensor):
        found["/".join(map(str, place))] = (place, value)
        return None
    if isinstance(value, dict):
        return {key: pop_prefixed(item, [*place, key], found) for key, item in value.items()}
    if isinstance(value, list):
        return [pop_prefixed(item, [*place, index], found) for index, item in enumerate(value)]
    return value


def put_back(value: Any, place: Place, tensor: Tensor) -> None:
    """Undo ``pop_prefixed`` for one tensor, in place.

    Raises:
        CheckpointError: If there is no such place.
    """
    try:
        for key in place[:-1]:
            value = value[key]
        value[place[-1]] = tensor
    except (KeyError, IndexError, TypeError) as err:
        raise CheckpointError(f"A sharded tensor belongs at {place}, which is not there.") from err


def write_shards(tensors: Mapping[str, DTensor], folder: Path) -> dict[str, list[int]]:
    """Write this process' part of every tensor; call it on all processes.

    Args:
        tensors: By name, the same names on every process.
        folder: Empty or not there yet; of all processes.

    Returns:
        Size in bytes and CRC-32 of every file by its name, on every process.

    Raises:
        OSError: On every process, if one of them could not write.
    """
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        dcp.save(dict(tensors), storage_writer=writer)
    except dcp.CheckpointException as err:  # no Exception, but a BaseException
        told = {rank: str(failure) for rank, (failure, _) in err.failures.items()}
        raise OSError(f"process {min(told)}: {told[min(told)]}") from err
    own = sorted(folder.iterdir())[process_rank() :: num_processes()]
    parts: list[dict[str, list[int]]] = [{} for _ in range(num_processes())]
    dist.all_gather_object(parts, {file.name: _size_and_checksum(file) for file in own})
    return {name: fact for part in parts for name, fact in part.items()}


def check_shards(folder: Path, files: Mapping[str, list[int]], path: Path) -> None:
    """Compare the files of a folder with what was noted when they were written.

    Args:
        folder: Holds them.
        files: As ``write_shards`` returned it.
        path: The checkpoint, for the message.

    Raises:
        CheckpointError: Naming a file that is missing or has changed.
    """
    for name, (size, checksum) in sorted(files.items()):
        file = folder / name
        if not file.is_file():
            raise CheckpointError(
                f"checkpoint={path} is incomplete: {file} is missing. A sharded checkpoint is the "
                f"file and the folder {folder.parent.name} beside it; copy both."
            )
        if file.stat().st_size != size or _size_and_checksum(file) != [size, checksum]:
            raise CheckpointError(
                f"checkpoint={path} is damaged: {file} is not what was written (its size or its "
                "checksum is wrong). Take last.ckpt or best.ckpt, whichever of them is intact."
            )


def whole_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor with all its parts, on the CPU."""
    stored = _stored(folder)
    tensors = {name: torch.empty(m.size, dtype=m.properties.dtype) for name, m in stored.items()}
    _read_into(tensors, folder)
    return tensors


def tensors_without_values(folder: Path) -> dict[str, Tensor]:
    """Shape and type of every tensor, on the meta device; reads headers alone."""
    return {
        name: torch.empty(m.size, dtype=m.properties.dtype, device="meta")
        for name, m in _stored(folder).items()
    }


def own_parts(folder: Path, mesh: DeviceMesh) -> dict[str, Tensor]:
    """Every tensor cut along its first dimension over a mesh of any size, on the mesh's device.

    Each process reads its part alone, so that none waits for another.
    """
    tensors: dict[str, Tensor] = {
        name: empty_dtensor(
            *m.size, dtype=m.properties.dtype, device_mesh=mesh, placements=[Shard(0)]
        )
        for name, m in _stored(folder).items()
    }
    _read_into(tensors, folder)
    return tensors


def _stored(folder: Path) -> dict[str, TensorStorageMetadata]:
    metadata = HuggingFaceStorageReader(str(folder)).read_metadata()
    return metadata.state_dict_metadata  # type: ignore[return-value]


def _read_into(tensors: dict[str, Tensor], folder: Path) -> None:
    with warnings.catch_warnings():  # it warns of what it is asked for
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)


def _size_and_checksum(file: Path) -> list[int]:
    checksum = 0
    with file.open("rb") as reader:
        while block := reader.read(1 << 24):
            checksum = zlib.crc32(block, checksum)
    return [file.stat().st_size, checksum]
