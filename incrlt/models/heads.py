"""Classification layers that grow as classes arrive, without moving what was learned.

Storage is padded to a multiple of 16 rows, so that most growth reuses the same parameter and the optimizer's state
with it; only the first ``num_classes`` rows exist for the forward pass.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from incrlt.errors import UserError
from incrlt.files import Plain
from incrlt.losses.proxies import local_similarity
from incrlt.models.facts import Facts
from incrlt.models.layout import Layout
from incrlt.roles import State

ALIGNMENT = 16
"""Row capacity is a multiple of this: tensor cores and 16-byte loads want it."""

SCATTER = 0.3
"""Length of the noise between the proxies of a class that is imprinted by one prototype; ours."""

Replaced = list[tuple[nn.Parameter, nn.Parameter]]
"""Parameters that growth replaced: (old, new) pairs whose leading rows agree."""


def capacity_for(num_classes: int) -> int:
    """Return the smallest positive multiple of :data:`ALIGNMENT` that holds ``num_classes`` rows."""
    return max(ALIGNMENT, -(-num_classes // ALIGNMENT) * ALIGNMENT)


class GrowingHead(Facts):
    """Rows for the classes seen so far; base of the cosine and the linear head.

    Args:
        num_features: Width D of the input.

    Attributes:
        num_classes: Rows in use.
        num_frozen: Leading rows (old classes) with their biases, that get no gradient and that
            :meth:`restore_frozen` puts back.
        class_scale: Learnable factor per class ``[capacity]``, 1 until a rebalancing stage trains it.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features
        self.num_classes = 0
        self.num_frozen = 0
        self.weight = nn.Parameter(torch.zeros(ALIGNMENT, num_features))
        self.class_scale = nn.Parameter(torch.ones(ALIGNMENT))
        self._frozen_rows: dict[str, Tensor] = {}

    @property
    def classifier(self) -> list[nn.Parameter]:
        """Rows and, of a linear head, biases."""
        named = dict(self.named_parameters())
        return [named[name] for name in ("weight", "bias") if name in named]

    @property
    def padding(self) -> dict[str, float]:
        """Parameters with a row per class, and the value of rows not in use."""
        return {"weight": 0.0, "class_scale": 1.0}

    def grow(self, num_new: int) -> Replaced:
        """Add rows for new classes, drawn from the global random state; old rows keep their values.

        Args:
            num_new: Number of classes that arrive; 0 changes nothing.

        Returns:
            The parameters that had to be replaced because capacity ran out.
        """
        if num_new == 0:
            return []
        start = self.num_classes
        replaced = self.resize(start + num_new)
        with torch.no_grad():
            self._draw(slice(start, self.num_classes))
        return replaced

    def resize(self, num_classes: int) -> Replaced:
        """Set the number of rows without drawing values; used by growth and when a checkpoint is loaded.

        Returns:
            The parameters that had to be replaced because the capacity is another one.
        """
        capacity = capacity_for(num_classes)
        replaced: Replaced = []
        for name, value in self.padding.items():
            old = getattr(self, name)
            if old.shape[0] != capacity:
                new = nn.Parameter(old.new_full((capacity, *old.shape[1:]), value))
                kept = min(capacity, old.shape[0])
                new.data[:kept] = old.data[:kept]
                setattr(self, name, new)
                replaced.append((old, new))
        self.num_classes = num_classes
        return replaced

    def facts(self) -> Plain:
        """The number of rows in use: storage is padded, its shape does not tell."""
        return {"num_classes": self.num_classes}

    def take_facts(self, facts: Plain, state: State, prefix: str) -> None:
        """Grow or shrink to the rows of the state; parameters stay the objects that an optimizer may hold."""
        count: Any = facts.get("num_classes")
        weight = state.get(prefix + "weight")
        damaged = not isinstance(count, int) or count < 0
        if damaged or (weight is not None and len(weight) != capacity_for(count)):
            raise UserError(
                f"the state of this head is damaged: {count!r} classes, and weights of another size."
            )
        kept = self.num_frozen if count == self.num_classes else 0
        for old, new in self.resize(count):
            name = next(name for name, parameter in self._parameters.items() if parameter is new)
            old.data, old.grad = new.data, None
            setattr(self, name, old)
        self.num_frozen = kept

    def take_older(self, state: State, prefix: str) -> None:
        """Refuse rows where nobody has said how many of them are classes."""
        if not self.num_classes and prefix + "weight" in state:
            raise UserError(
                "this state is of an older incrlt and does not say how many classes the head has; grow the head to "
                "them first: head.grow(num_classes), or network.grow(class_ids)."
            )

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self.freeze(self.num_frozen)  # the rows that stay are those that were loaded

    def _draw(self, rows: slice) -> None:
        bound = 1 / math.sqrt(self.num_features)
        self.weight[rows] = torch.empty_like(self.weight[rows]).uniform_(-bound, bound)
        self.class_scale[rows] = 1.0

    def freeze(self, num_rows: int) -> None:
        """Keep the first ``num_rows`` rows as they are now, whatever the optimizer does to the parameter."""
        self.num_frozen = num_rows
        # a rebalancing stage trains the factors of all classes
        names = self.padding.keys() - {"class_scale"} if num_rows else ()
        self._frozen_rows = {name: getattr(self, name).data[:num_rows].clone() for name in names}

    @torch.no_grad()
    def restore_frozen(self) -> None:
        """Put frozen rows back after an optimizer step: momentum and weight decay move rows without gradient."""
        for name, frozen in self._frozen_rows.items():
            getattr(self, name)[: self.num_frozen] = frozen

    @torch.no_grad()
    def restart(self) -> None:
        """Draw all rows in use anew, as if every class arrived now; class scales become 1."""
        self._draw(slice(0, self.num_classes))

    def rows(self) -> Tensor:
        """Return the rows in use ``[C, D]``; frozen ones without gradient."""
        return self._in_use(self.weight)

    def _in_use(self, parameter: Tensor) -> Tensor:
        if not self.num_frozen:
            return parameter[: self.num_classes]
        return torch.cat(
            [parameter[: self.num_frozen].detach(), parameter[self.num_frozen : self.num_classes]]
        )

    def rebalance(self, logits: Tensor) -> Tensor:
        """Multiply logits ``[B, C]`` by the learnable class scales."""
        return logits * self.class_scale[: self.num_classes]

    @torch.no_grad()
    def imprint(self, prototypes: Tensor) -> None:
        """Set the last rows to class prototypes of the mean length of the rows before them.

        Hou et al. 2019 (LUCIR): the length does not change the output of a cosine head, but how far a step turns it.

        Args:
            prototypes: One unit vector per new class ``[N, D]``.
        """
        start = self.num_classes - len(prototypes)
        length = self.weight[:start].norm(dim=1).mean() if start else self.weight.new_ones(())
        self.weight[start : self.num_classes] = prototypes.to(self.weight) * length


class CosineHead(GrowingHead):
    """Cosine classifier with one learnable scale (Hou et al. 2019): ``scale * cos(x, w_c)``.

    Args:
        num_features: Width D of the input.
        scale: Initial scale; LUCIR starts at 1, RIDE and SHIKE keep 30.
        learn_scale: Train the scale; otherwise it is a buffer of the same name.
        unit_rows: New rows start with length 1 (RIDE, SHIKE), otherwise as those of a linear layer. Cosines do not
            depend on it, but how far a step turns a row does.

    Note:
        A zero feature gives zero logits (norms are bounded below by 1e-12, as in the official code).
    """

    scale: Tensor

    def __init__(
        self, num_features: int, scale: float = 1.0, learn_scale: bool = True, unit_rows: bool = False
    ) -> None:
        super().__init__(num_features)
        first = torch.full((1,), float(scale))
        if learn_scale:
            self.scale = nn.Parameter(first)
        else:
            self.register_buffer("scale", first)
        self.unit_rows = unit_rows

    def _draw(self, rows: slice) -> None:
        super()._draw(rows)
        if self.unit_rows:
            self.weight[rows] = F.normalize(self.weight[rows], dim=-1)

    def cosines(self, features: Tensor) -> Tensor:
        """Return ``cos(x, w_c)`` for features ``[B, D]``: ``[B, C]``."""
        return F.linear(F.normalize(features, dim=-1), F.normalize(self.rows(), dim=-1))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """Map features ``[B, D]`` to logits ``[B, C]`` and the cosines before the scale ``[B, C]``."""
        cosines = self.cosines(features)
        return self.scale * cosines, cosines


class ProxyHead(CosineHead):
    """Several proxies per class, reduced to one cosine by a soft maximum (PODNet's local similarity classifier).

    Douillard et al., ECCV 2020, with cosines as in Long-Tailed-CIL; minus the squared distances of PODNet's own code
    are ``2 cos - 2``, hence the same answers at half its scale and another sharpness of the attention.

    Args:
        num_features: Width D of the input.
        scale: As of a cosine head, applied after the reduction.
        learn_scale: As of a cosine head.
        unit_rows: New proxies start with length 1.
        num_proxies: P per class; 10 in both codes.

    Attributes:
        weight: Proxies of a class side by side ``[capacity, P D]``.
    """

    def __init__(
        self,
        num_features: int,
        scale: float = 1.0,
        learn_scale: bool = True,
        unit_rows: bool = False,
        num_proxies: int = 10,
    ) -> None:
        super().__init__(num_features, scale, learn_scale, unit_rows)
        self.num_proxies = num_proxies
        self.weight = nn.Parameter(torch.zeros(ALIGNMENT, num_proxies * num_features))

    def _draw(self, rows: slice) -> None:
        GrowingHead._draw(self, rows)
        if self.unit_rows:
            proxies = self.weight[rows].unflatten(1, (self.num_proxies, -1))
            self.weight[rows] = F.normalize(proxies, dim=-1).flatten(1)

    def cosines(self, features: Tensor) -> Tensor:
        """Return the soft maximum of the cosines to a class's proxies, for features ``[B, D]``: ``[B, C]``."""
        proxies = F.normalize(self.rows().unflatten(1, (self.num_proxies, -1)).flatten(0, 1), dim=-1)
        return local_similarity(F.linear(F.normalize(features, dim=-1), proxies), self.num_proxies)

    @torch.no_grad()
    def imprint(self, prototypes: Tensor) -> None:
        """Set the last rows to class prototypes of the mean length of the proxies before them.

        Args:
            prototypes: One unit vector per new class ``[N, D]``, scattered at random since equal proxies would stay
                equal; or its proxies ``[N, P, D]``, taken as they are.
        """
        start = self.num_classes - len(prototypes)
        before = self.weight[:start].unflatten(1, (self.num_proxies, -1))
        length = before.norm(dim=-1).mean() if start else self.weight.new_ones(())
        prototypes = prototypes.to(self.weight)
        if prototypes.dim() == 2:
            shape = (len(prototypes), self.num_proxies, self.num_features)
            noise = torch.randn(shape).to(self.weight) * SCATTER / math.sqrt(self.num_features)
            prototypes = F.normalize(prototypes.unsqueeze(1) + noise, dim=-1)
        self.weight[start : self.num_classes] = prototypes.flatten(1) * length


class LinearHead(GrowingHead):
    """Linear classifier ``w_c x + b_c``.

    Args:
        num_features: Width D of the input.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.bias = nn.Parameter(torch.zeros(ALIGNMENT))

    @property
    def padding(self) -> dict[str, float]:
        """Parameters with a row per class, and the value of rows not in use."""
        return {**super().padding, "bias": 0.0}

    def _draw(self, rows: slice) -> None:
        super()._draw(rows)
        self.bias[rows] = 0.0

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """Map features ``[B, D]`` to logits ``[B, C]``; there are no cosines."""
        return F.linear(features, self.rows(), self._in_use(self.bias)), None


HEADS: dict[str, type[GrowingHead]] = {"cosine": CosineHead, "linear": LinearHead, "proxies": ProxyHead}
"""Names that ``model.head`` may take."""


def make_head(name: str, num_features: int, layout: Layout) -> GrowingHead:
    """Build a head; ``scale``, ``learn_scale`` and ``unit_rows`` of the layout are for cosine heads.

    Args:
        name: A key of :data:`HEADS`.
        num_features: Width D of the input.
        layout: What the expert method asks for.
    """
    head = HEADS[name]
    if issubclass(head, CosineHead):
        return head(num_features, layout.scale, layout.learn_scale, layout.unit_rows)
    return head(num_features)
