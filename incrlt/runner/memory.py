"""A machine whose memory does not suffice: one sentence instead of what each library raises then."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Final

import torch

from incrlt.errors import UserError

SAID: Final = (
    "can't allocate memory",
    "cannot allocate memory",
    "out of memory",
    "can't start new thread",
    "ALLOC_FAILED",
    "could not create a primitive",
    "could not create a memory",
    "could not append workspace",
)
"""What messages of PyTorch's allocators, of CUDA's and oneDNN's libraries and of Python's threads hold, whatever their
class. oneDNN cannot make the code of a convolution then."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory did not suffice.

    Example:
        >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
        True
    """
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in SAID)


@contextlib.contextmanager
def lack_of_memory_told() -> Iterator[None]:
    """Make one sentence of memory that does not suffice.

    Raises:
        UserError: In place of what the allocator raised.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            "there is not enough memory. What the run has saved stays: end other programs, then run the same command "
            "again. Or make training.batch_size, training.eval_batch_size, model.width or the number of experts "
            "smaller, which is another run."
        ) from error


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that were held: on a GPU since this was last asked, else by this process in all its time.

    0 where the system does not tell.
    """
    if device.type == "cuda":
        most = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return most
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
