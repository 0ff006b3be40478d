"""One process or many (torchrun): who I am, and how the processes talk."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes work together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait until every process is here."""
    if dist.is_initialized():
        dist.barrier()


def all_sum(values: Tensor) -> Tensor:
    """The sum over all processes, on every process."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def device() -> torch.device:
    """The accelerator of this process, or the CPU; torchrun's processes and the workers of `Jobs` take them in turn."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return torch.device("cpu")


def leave_a_core_to_the_loader() -> None:
    """Use all cores but one for computing, unless OMP_NUM_THREADS says otherwise.

    A step waits for its slowest thread: with a thread on every core, a loader process (or anything else) on one of them
    stops all others again and again. On two busy cores one thread was measured to be several times faster than two.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) - 1))


@contextmanager
def processes() -> Iterator[None]:
    """Join the processes that torchrun started, if it did; leave them in the end.

    The first process works alone in some stages while the others wait, hence the long timeout.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    where = device()
    if where.type == "cuda":
        torch.cuda.set_device(where)
    dist.init_process_group("nccl" if where.type == "cuda" else "gloo", timeout=datetime.timedelta(hours=24))
    try:
        yield
    finally:
        dist.destroy_process_group()
