"""Momentum encoder and queue of negatives: what NCL's contrastive term compares with.

He et al. 2020 (MoCo), one encoder and queue per expert as in Li et al. 2022 (NCL). The loss itself is
:func:`incrlt.losses.momentum_contrast`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from incrlt.errors import UserError
from incrlt.files import Plain
from incrlt.models.facts import Facts
from incrlt.models.layout import ContrastLayout
from incrlt.models.precision import at_least_float
from incrlt.processes import world
from incrlt.roles import State

Initialise = Callable[[nn.Module], None]
"""Draws the weights of a module anew; used with ``apply``."""


class MomentumContrast(Facts):
    """Projections of K experts, slowly following copies of experts and projections, and K queues of their keys.

    A training step asks for :meth:`project` (view 1), :meth:`keys` (view 2) and :meth:`negatives`, computes the loss,
    then calls :meth:`enqueue`; :meth:`update` comes before the keys of a step, as in MoCo.

    Args:
        branches: K whole networks that map images to features ``[B, D]``; copied.
        num_features: Width D of the features.
        layout: Length of the vectors, size of the queue, momentum, and whether to be exact to the official code.
        initialise: Draws the copies anew where ``layout.published``; None leaves them as the branches are.

    Attributes:
        queue: Unit columns ``[K, dim, Q]``; random until keys have come.
        pointer: Column that the next key takes ``[]``.
        filled: Columns that hold keys ``[]``.

    Deviation: the official code starts the copies apart from the networks, averages no projection (its key side stays
    random for ever) and leaves batch-norm statistics alone; here the copies start as copies, projections are averaged
    and statistics copied. Its random first columns are negatives; here they are marked as not valid.
    ``layout.published`` does as the official code does. The official code asks that the batch size divide the size of
    the queue; here any batch wraps around.
    """

    queue: Tensor
    pointer: Tensor
    filled: Tensor

    def __init__(
        self,
        branches: Sequence[nn.Module],
        num_features: int,
        layout: ContrastLayout | None = None,
        initialise: Initialise | None = None,
    ) -> None:
        super().__init__()
        self.layout = ContrastLayout() if layout is None else layout
        self.projections = nn.ModuleList(_projection(num_features, self.layout.dim) for _ in branches)
        key_projections = copy.deepcopy(self.projections)
        self.key_branches = nn.ModuleList(copy.deepcopy(branch) for branch in branches).requires_grad_(False)
        if self.layout.published:
            key_projections = nn.ModuleList(_projection(num_features, self.layout.dim) for _ in branches)
            if initialise is not None:
                self.key_branches.apply(initialise)
        self.key_projections = key_projections.requires_grad_(False)
        columns = torch.randn(len(self.key_branches), self.layout.dim, self.layout.queue_size)
        self.register_buffer("queue", F.normalize(columns, dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    def facts(self) -> Plain:
        """How the copies follow and what counts as a key: no tensor tells."""
        return asdict(self.layout)

    def take_facts(self, facts: Plain, state: State, prefix: str) -> None:
        """Refuse the state of an encoder that works in another way."""
        for name, value in self.facts().items():
            if facts.get(name) != value:
                raise UserError(
                    f"the momentum encoder of this state has {name} {facts.get(name)!r}, this one has {value!r}; build "
                    f"the network with ContrastLayout({name}={facts.get(name)!r})."
                )

    def project(self, features: Tensor) -> Tensor:
        """Map features ``[K, B, D]`` to unit vectors ``[K, B, dim]``, with gradient."""
        return _projected(self.projections, features)

    @torch.no_grad()
    def keys(self, x: Tensor) -> Tensor:
        """Map images ``[B, c, H, W]`` to the unit vectors of the momentum copies ``[K, B, dim]``, without gradient.

        In training mode the copies normalise by the batch, as the experts do; several processes share out its rows.
        """
        return world().spread(self._keys, x)

    def _keys(self, x: Tensor) -> Tensor:
        return _projected(self.key_projections, [branch(x) for branch in self.key_branches])

    @torch.no_grad()
    def update(self, branches: Iterable[nn.Module]) -> None:
        """Move the copies a step of ``1 - momentum`` towards the experts; batch-norm statistics are copied.

        Args:
            branches: The K experts that were copied.
        """
        pairs = list(zip(self.key_branches, branches, strict=True))
        if not self.layout.published:
            pairs += list(zip(self.key_projections, self.projections, strict=True))
        copies: list[Tensor] = [parameter for ours, _ in pairs for parameter in ours.parameters()]
        sources: list[Tensor] = [parameter for _, theirs in pairs for parameter in theirs.parameters()]
        torch._foreach_lerp_(copies, sources, 1 - self.layout.momentum)
        if not self.layout.published:
            _copy_buffers(pairs)

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Write keys over the oldest columns, around the end; of more keys than columns the last ones stay.

        Args:
            keys: Unit vectors ``[K, B, dim]``, oldest first.
        """
        size, batch = self.layout.queue_size, keys.shape[1]
        kept = min(batch, size)
        places = torch.arange(batch - kept, batch, device=keys.device) + self.pointer
        self.queue.index_copy_(2, places % size, keys[:, batch - kept :].transpose(1, 2).to(self.queue))
        self.pointer.add_(batch).remainder_(size)
        self.filled.add_(batch).clamp_(max=size)

    def negatives(self) -> tuple[Tensor, Tensor]:
        """Return a copy of the queue ``[K, dim, Q]`` and which of its columns are valid ``[Q]``.

        A copy, because :meth:`enqueue` may come before the backward pass. Until the queue is full the rest of it is
        random; ``layout.published`` takes it for valid.
        """
        places = torch.arange(self.layout.queue_size, device=self.queue.device)
        valid = torch.ones_like(places, dtype=torch.bool) if self.layout.published else places < self.filled
        return self.queue.clone(), valid

    @torch.no_grad()
    def restart(self, branches: Iterable[nn.Module]) -> None:
        """Begin an experience: the copies become copies of the experts again and the queue is empty.

        Keys of the network of before are no negatives for this one. With ``layout.published`` nothing happens: the
        official code knows one experience.

        Args:
            branches: The K experts that were copied.
        """
        if self.layout.published:
            return
        pairs = [*zip(self.key_branches, branches, strict=True)]
        pairs += zip(self.key_projections, self.projections, strict=True)
        for ours, theirs in pairs:
            ours.load_state_dict(theirs.state_dict())
        self.pointer.zero_()
        self.filled.zero_()


def _projection(num_features: int, dim: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(num_features, num_features), nn.ReLU(inplace=True), nn.Linear(num_features, dim)
    )


def _projected(projections: nn.ModuleList, features: Sequence[Tensor] | Tensor) -> Tensor:
    vectors = torch.stack([projection(x) for projection, x in zip(projections, features, strict=True)])
    return F.normalize(at_least_float(vectors), dim=-1)


def _copy_buffers(pairs: Sequence[tuple[nn.Module, nn.Module]]) -> None:
    copies = [buffer for ours, _ in pairs for buffer in ours.buffers()]
    if copies:
        torch._foreach_copy_(copies, [buffer for _, theirs in pairs for buffer in theirs.buffers()])
