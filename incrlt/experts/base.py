"""What a strategy asks of an expert method."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from dataclasses import Field, fields, is_dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from incrlt.errors import UserError
from incrlt.experiment.ranges import check_fields
from incrlt.kernels import TermSpec, TermTensors, expert_loss
from incrlt.losses import class_balanced_weights, ldam_margins
from incrlt.losses.margins import never_zero
from incrlt.models import ExpertNetwork
from incrlt.models.layout import Combination, Layout
from incrlt.models.named import name_of
from incrlt.types import LossContext, LossTerms, ModelOutput, Stage


class ExpertMethod:
    """Network layout, loss terms and stages of one method; a frozen dataclass, so that all state lives elsewhere.

    A subclass is one file of ``incrlt/experts`` with fields for its hyper-parameters, :attr:`layout` and
    :meth:`loss`; the rest has a default.

    What else a class may tell (its title, its needs, the lengths of its stages, what it clashes with) stands in
    :mod:`incrlt.experiment.declared`.

    Attributes:
        name: The name in YAML; also the name of the file.
        needs_cosine: The losses need cosine heads.
        needs_maps: The losses read ``output.maps``, the maps between the stages of the backbone.
    """

    name: ClassVar[str]
    needs_cosine: ClassVar[bool] = False
    needs_maps: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: object) -> None:
        """Let the layout of a method that combines in its own way name it: a saved network finds it again by that."""
        super().__init_subclass__(**kwargs)
        if isinstance(own := vars(cls).get("layout"), property) and own.fget is not None:
            cls.layout = property(_with_combination(own.fget), doc=own.__doc__)  # type: ignore[assignment,method-assign]

    def __post_init__(self) -> None:
        """Refuse hyper-parameters outside of their ranges; a subclass with checks of its own calls this first."""
        check_fields(self)

    @property
    def averaged(self) -> bool:
        """Terms are means over experts, as those of a strategy are.

        The parameters of one expert then get K times the gradient of the mean, which is that of the expert's own loss:
        each learns at the pace of a single network, whatever K is. What experts share gets the mean. A method whose
        terms are sums, as in the official codes, says False, and gradients stay as they are.
        """
        return getattr(self, "flavor", "sane") != "published"

    @property
    def expert_scale(self) -> int:
        """What a mean over experts is multiplied with, to stand beside the method's own terms: 1, or K beside sums."""
        return 1 if self.averaged else self.layout.num_experts

    @property
    def layout(self) -> Layout:
        """What the method asks of the network: number of experts, what they share, how heads begin."""
        return _with_combination(lambda self: Layout())(self)

    def combine(self, expert_logits: Tensor) -> Tensor:
        """Make one answer of the experts' logits; the default is their mean.

        The network answers so, and early exit, the router and the recorders ask the same function for the answer of the
        first k experts alone, ``combine(expert_logits[:k])``: a method that weighs its experts brings the weights of
        those k to a sum of one. It reads the method's fields and nothing else, since a saved network makes the method
        anew from them.

        Args:
            expert_logits: Of the first k experts, 1 to K ``[k, B, C]``; in evaluation as rebalanced by later stages.

        Returns:
            ``[B, C]``, each row from that row of the experts' logits alone. No host sync.
        """
        return expert_logits.mean(0)

    def loss(self, context: LossContext, output: ModelOutput, labels: Tensor) -> LossTerms:
        """Return the classification terms of the batch by name.

        Args:
            context: Counts, progress and the number of old classes.
            output: The network's answer, classes in arrival order.
            labels: Class positions ``[B]``.
        """
        raise NotImplementedError

    def phase(self, context: LossContext) -> Hashable:
        """Return what :meth:`loss` depends on beside the batch and the counts.

        A captured step (``step: graph``) is made anew when it changes. The default says that every epoch is
        different; a method whose loss stays the same returns None, one with a switch the switch's position.
        """
        return context.epoch

    def stages(self) -> tuple[Stage, ...]:
        """Return what trains after the first stage of each experience."""
        return ()

    def guide(self) -> ExpertNetwork | None:
        """Return a network trained before that the method distils, or None; called once per run."""
        return None

    def begin_experience(self, network: ExpertNetwork) -> None:
        """Prepare the grown network before the first epoch; not called when a run is resumed."""


def _with_combination(layout: Callable[[ExpertMethod], Layout]) -> Callable[[ExpertMethod], Layout]:
    @functools.wraps(layout)
    def named(method: ExpertMethod) -> Layout:
        cls, wanted = type(method), layout(method)
        if not isinstance(wanted, Layout):
            raise UserError(
                f"layout of experts {cls.__name__} is {wanted!r}; return a Layout, such as Layout(num_experts=3)."
            )
        if cls.combine is ExpertMethod.combine:
            return wanted
        own: tuple[Field[object], ...] = fields(method) if is_dataclass(method) else ()
        settings = {field.name: getattr(method, field.name) for field in own}
        return replace(wanted, combination=Combination(name_of(cls), settings))

    return named


def fused(
    context: LossContext,
    output: ModelOutput,
    labels: Tensor,
    spec: TermSpec,
    tensors: TermTensors | None = None,
    **names: str,
) -> LossTerms:
    """Return the terms of a spec over the experts' logits, from the fused op.

    Args:
        context: Says which backend computes.
        output: The network's answer.
        labels: Class positions ``[B]``.
        spec: Terms and weights.
        tensors: What the terms read beside the logits.
        names: Names in logs of terms that have another one there.
    """
    terms = expert_loss(output.expert_logits, labels, spec, tensors, kernels=context.kernels)
    return {names.get(name, name): term for name, term in terms.items()}


def log_prior(context: LossContext, tau: float = 1.0) -> Tensor:
    """Return ``tau`` times the log of the images per class as drawn ``[C]``, fractions as well; none is infinite."""
    return context.constant(("log_prior", tau), lambda: tau * never_zero(drawn(context)).log())


def drawn(context: LossContext) -> Tensor:
    """Return images per class as drawn ``[C]`` in the default floating-point type, whatever type they came in."""
    return context.class_counts.to(torch.get_default_dtype())


def ldam_tensors(
    context: LossContext,
    output: ModelOutput,
    max_margin: float,
    smallest: float | None,
    beta: float,
    late: bool,
) -> TermTensors:
    """Return what LDAM-DRW reads: margins, the heads' scales and, late, class weights.

    Args:
        context: Counts and progress.
        output: Tells the scales; none of linear heads.
        max_margin: Margin of the rarest class, in cosine.
        smallest: Images of a class that gets it; None: the rarest class of the stream.
        beta: Base of the effective numbers.
        late: Classes are re-weighted.
    """
    counts_C = drawn(context)
    margins_C = context.constant(
        ("margins", max_margin, smallest), lambda: ldam_margins(counts_C, max_margin, smallest)
    )
    weights_C = None
    if late:
        weights_C = context.constant(("weights", beta), lambda: class_balanced_weights(counts_C, beta))
    return TermTensors(margins=margins_C, scales=output.scales, class_weights=weights_C)


def scaled(terms: LossTerms, factor: float) -> LossTerms:
    """Multiply every term: published codes sum over experts where ours average."""
    return terms if factor == 1 else {name: factor * term for name, term in terms.items()}
