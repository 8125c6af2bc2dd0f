"""How every command begins, before Hydra reads its words."""

import sys
from collections.abc import Callable

from ldm_lightning.command import errors_told_plainly
from ldm_lightning.config import register_resolvers
from ldm_lightning.utils.home import ensure_home, expanded_word
from ldm_lightning.utils.terminal import prepare_streams


def run_entry_point(command: Callable[[], None]) -> None:
    """Run a command as the only work of this process; it ends with code 1 on wrong input.

    Args:
        command: Hydra's wrapper of the command, which reads ``sys.argv``.
    """
    prepare_streams()
    register_resolvers()
    with errors_told_plainly():
        sys.argv[1:] = map(expanded_word, sys.argv[1:])  # the processes it starts get them too
        ensure_home()
        command()
