"""One run on several processes that were started together: what each of them computes, and what they exchange.

Every process goes through the whole stream, draws the same random numbers and holds the whole batch. What costs the
time is shared out: the pass of images through stem and branches. Each process runs its own rows of the batch, and they
exchange the features. All that comes after (heads, losses, herding, evaluation) is the same computation on the same
numbers everywhere, so that terms over pairs, classes or the whole batch, priors, temperatures and the memory see the
global batch and need no care of their own. A gradient that comes back through the features is that of a process's own
rows, times the number of processes; every other one, of heads or of a penalty on parameters, is whole in each process.
The mean over processes then completes both.

``torchrun --nproc-per-node 2 -m incrlt.run FILE`` starts them; a script of your own does so with :func:`joined`:

    with processes.joined():
        strategy = LUCIR(model=..., optimizer=...)
        ...
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Literal, TypeVar, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from incrlt.errors import UserError, short

T = TypeVar("T")

BatchNorm = Literal["sync", "local"]
PATIENCE: Final = timedelta(seconds=60)
"""How long a process waits for the others before it gives up."""


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them.

    Attributes:
        rank: This one's number, from 0.
        size: How many there are.
        batch_norm: ``sync``: statistics of the global batch; ``local``: of a process's own rows, the running ones
            averaged when an epoch ends.
    """

    rank: int = 0
    size: int = 1
    batch_norm: BatchNorm = "sync"

    def __deepcopy__(self, memo: dict[int, object]) -> World:
        """There is one world; copies of modules that know it know the same."""
        return self

    @property
    def is_first(self) -> bool:
        """This process writes and speaks."""
        return self.rank == 0

    def rows(self, count: int) -> slice:
        """Return which of ``count`` rows are this process's own: as many as the others', or one more."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def spread(self, function: Callable[..., Tensor], *batch: Tensor) -> Tensor:
        """Run a function on this process's own rows and return the results of all rows, on every process.

        Args:
            function: Maps rows ``[B, ...]`` to ``[K, B, D]``, each row by itself or by statistics that are exchanged.
            batch: The global batch, the same everywhere: what the function takes, rows first.

        Returns:
            ``[K, B, D]``. What is computed from it on every process alike gives each process the gradient of its own
            rows, ``size`` times; :meth:`average` over the gradients of all parameters completes it.
        """
        if self.size == 1:
            return function(*batch)
        return self.spread_all(lambda *rows: (function(*rows),), *batch)[0]

    def spread_all(self, function: Callable[..., tuple[Tensor, ...]], *batch: Tensor) -> tuple[Tensor, ...]:
        """Do the same for a function with several results ``[K, B, ...]``."""
        if self.size == 1:
            return function(*batch)
        count = len(batch[0])
        own = self.rows(count)
        results = function(*(part[own] for part in batch))
        return tuple(_Gathered.apply(result, own, count, self.size) for result in results)

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over processes, with its gradient; the tensor itself where there is one process."""
        if self.size == 1:
            return tensor
        total: Tensor = _Summed.apply(tensor)
        return total

    @torch.no_grad()
    def average(self, tensors: Iterable[Tensor]) -> None:
        """Put the mean over processes in the place of each tensor; whole numbers are left alone."""
        if self.size == 1:
            return
        numbers = [tensor for tensor in tensors if tensor.is_floating_point()]
        for dtype in {tensor.dtype: None for tensor in numbers}:
            own = [tensor for tensor in numbers if tensor.dtype == dtype]
            message = torch.cat([tensor.reshape(-1) for tensor in own])
            _all_reduce(message)
            message.div_(self.size)
            for tensor, part in zip(own, message.split([tensor.numel() for tensor in own]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def tell(self, value: T) -> T:
        """Return the first process's value, plain data and tensors, on every process."""
        if self.size == 1:
            return value
        box = [value]
        with _others_there():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def check_same(self, what: str, tensors: Iterable[Tensor]) -> None:
        """Refuse to go on where processes hold different numbers.

        Args:
            what: For the message.
            tensors: The same ones everywhere.

        Raises:
            UserError: They differ: which processes.
        """
        if self.size == 1:
            return
        digest = hashlib.sha256()
        for tensor in tensors:
            plain = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(plain.view(torch.uint8).numpy().tobytes())
        found: list[Any] = [None] * self.size
        with _others_there():
            dist.all_gather_object(found, digest.hexdigest())
        others = [str(rank) for rank, one in enumerate(found) if one != found[0]]
        if others:
            raise UserError(
                f"{what} of process {', '.join(others)} differs from that of process 0. Run on machines of one kind, "
                "or in one process; what was saved stays."
            )


@contextlib.contextmanager
def _others_there() -> Iterator[None]:
    """Say in a sentence that another process is gone, or does not answer."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"another process of this run has ended, or has not answered for {PATIENCE.seconds} seconds "
            f"({short(error, 200)}). See what it said; what was saved stays, and the same command goes on from there."
        ) from error


def _all_reduce(tensor: Tensor) -> None:
    with _others_there():
        dist.all_reduce(tensor)


class _Gathered(torch.autograd.Function):
    """Rows of all processes; the gradient of a result that is computed everywhere alike is that of the own rows."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, rows: slice, count: int, size: int) -> Tensor:
        """Return ``[K, B, D]`` of own rows ``[K, b, D]``: each number comes from one process, and is its bits."""
        ctx.rows, ctx.size = rows, size
        whole = own.new_zeros((own.shape[0], count, *own.shape[2:]))
        whole[:, rows] = own
        _all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        """Return the own rows, as large as the mean over processes wants them."""
        return ctx.size * gradient[:, ctx.rows], None, None, None


class _Summed(torch.autograd.Function):
    """A sum over processes, each of which uses it for its own rows."""

    @staticmethod
    def forward(ctx: object, tensor: Tensor) -> Tensor:
        """Return the sum."""
        total = tensor.clone()
        _all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:  # type: ignore[override]
        """Sum what the rows of every process say of it."""
        total = gradient.clone()
        _all_reduce(total)
        return total


ALONE: Final = World()
_world = ALONE


def world() -> World:
    """Return the processes of this run: one, unless :func:`joined` has brought more together."""
    return _world


@contextlib.contextmanager
def joined(batch_norm: BatchNorm = "sync") -> Iterator[World]:
    """Bring together the processes that torchrun has started; without it, one process is its own world.

    Args:
        batch_norm: See :class:`World`.

    Raises:
        UserError: An unknown ``batch_norm``, processes that do not find one another, or a group that someone else made.
    """
    global _world
    if batch_norm not in get_args(BatchNorm):
        raise UserError(f"batch_norm is {batch_norm!r}; allowed: {', '.join(get_args(BatchNorm))}.")
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    if dist.is_initialized():
        raise UserError("a process group exists already; leave it to incrlt.processes.joined() to make one.")
    _init(size)
    _world = World(dist.get_rank(), size, batch_norm)
    try:
        yield _world
    finally:
        _world = ALONE
        dist.destroy_process_group()


def local_device() -> torch.device:
    """Return this process's own device: a GPU by its number on the machine, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return torch.device("cpu")


def _init(size: int) -> None:
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if backend == "nccl":
        torch.cuda.set_device(local_device())
    try:
        dist.init_process_group(backend, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the {size} processes of this run did not find one another within {PATIENCE.seconds} seconds ({error}). "
            "Start them with torchrun --nproc-per-node N -m incrlt.run FILE."
        ) from error
