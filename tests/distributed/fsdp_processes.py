"""Runs of the command line with two processes, one after the other in the same two processes.

``python -m tests.distributed.fsdp_processes FOLDER`` with LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and
MASTER_PORT set is one of them; ``FOLDER/commands.json`` holds the words of each run.
"""

import json
import sys
from pathlib import Path

import torch

from tests.cli.run import command


def main() -> None:
    """Run every command as one of several processes."""
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    for words in json.loads((folder / "commands.json").read_text()):
        ended = command("train", words, folder)
        assert ended.code == 0, ended.output
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
