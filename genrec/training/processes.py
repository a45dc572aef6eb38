"""The end of a training in several processes."""

from __future__ import annotations

import gc

import torch.distributed as dist


def leave_process_group() -> None:
    """End this process's part in a run of several processes; nothing to do where it is alone (internal).

    A wrapped model in a reference cycle keeps the group and its worker threads alive past `destroy_process_group`. Such
    a thread that asks for the interpreter's lock while the interpreter ends aborts the process, after all work is done.
    Hence the cycles go first.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    gc.collect()
    dist.destroy_process_group()
