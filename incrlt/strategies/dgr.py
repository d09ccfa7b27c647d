"""DGR: gradient reweighting.

J. He, CVPR 2024; official code JiangpengHe/imbalanced_cil, held to stored arrays. The gradient of each class's row is
weighted by how little the class has gathered so far, old and new classes are balanced against each other, and
distillation pulls hardest at the classes that lost most images. Mathematics in :mod:`incrlt.losses.gradients`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from incrlt.experiment.fields import NonNegative, Positive
from incrlt.experts.single import Single
from incrlt.losses.gradients import (
    attenuation,
    distillation_factor,
    distillation_ratio,
    distribution_aware_distillation,
    gradient_weights,
    rewritten,
)
from incrlt.roles import Experience, State
from incrlt.training.template import IncrTemplate
from incrlt.types import LossTerms, ModelOutput

GATHERED = "dgr_gathered"
"""Under this name the network keeps the gradient norms that each row has gathered in this experience ``[K, C]``."""


class Images(NamedTuple):
    """What the images of an experience say.

    Attributes:
        removed: Images of each old class that are no longer there ``[O]``.
        factor: Weight of the distillation, without ``T^2``.
        attenuation: How much new classes are slowed beside old ones.
    """

    removed: Tensor
    factor: float
    attenuation: float


class DGR(IncrTemplate):
    r"""The expert method's loss with the classifier's gradient re-weighted, and distribution-aware distillation.

    .. math:: L = L_{experts} + D, \quad D = \lambda \sqrt{n_{seen} / n_{new}} \, T^2 d(z, z^*), \qquad
        \nabla_{w_c} \leftarrow g_c \nabla_{w_c} L_{experts} + \rho \, \nabla_{w_c} D

    The last is what row c of the classifier gets in place of its gradient; everything below gets that of L. The weight
    :math:`g_c`, the ratio :math:`\rho` and d are :func:`~incrlt.losses.gradients.gradient_weights`,
    :func:`~incrlt.losses.gradients.distillation_ratio` and
    :func:`~incrlt.losses.gradients.distribution_aware_distillation`.

    Args:
        distillation: Base of the distillation's weight, times sqrt(images seen / new images); 0.7 in the official code.
        temperature: Softens both distributions; the term holds its square.
        prior: Where experts are ``single`` and their loss plain cross entropy, balanced softmax takes its place, as
            published. Other expert methods keep their own loss.
        reweight: Re-weight the classifier's gradient; without it the distillation alone is left.
        largest_ratio: Cap of the factor that stretches the distillation's gradient in the classifier.
        template: Arguments of :class:`~incrlt.training.template.IncrTemplate`.

    Counts: images per class as they arrived and as they are in the stream now.

    Deviations: the guards of :mod:`incrlt.losses.gradients` where the official code divides by zero, a cap of the
    stretching among them; with K experts each has rows, weights and norms of its own. On cosine heads, which the paper
    does not have, norms depend on the length of rows as well.
    """

    name: ClassVar[str] = "dgr"
    title: ClassVar[str] = "DGR"
    steady: ClassVar[bool] = True
    uses_teacher: ClassVar[bool] = True
    needs_network: ClassVar[bool] = True

    def __init__(
        self,
        *,
        distillation: NonNegative = 0.7,
        temperature: Positive = 2.0,
        prior: bool = True,
        reweight: bool = True,
        largest_ratio: Positive = 100.0,
        **template: object,
    ) -> None:
        super().__init__(**template)
        self.distillation, self.temperature = distillation, temperature
        self.prior, self.reweight, self.largest_ratio = prior, reweight, largest_ratio
        self.arrived = torch.zeros(0, dtype=torch.long)

    def begin_experience(self, experience: Experience) -> None:
        """Count the images that arrived, and forget what rows have gathered."""
        self.arrived = torch.cat([self.arrived[: self.num_old], self.class_counts[self.num_old :].cpu()])
        gathered = torch.zeros(self.model.num_experts, self.model.num_classes, dtype=torch.float64)
        self.model.remember(GATHERED, gathered)

    def _images(self) -> Images:
        now, old = self.class_counts, self.num_old
        arrived = self.arrived.to(now.device)
        seen = float(arrived[:old].sum())
        new = float(now[old:].sum()) if self.num_new else float(now.sum())
        removed = (arrived - now)[:old].clamp(min=0)  # a class that comes again may have more than before
        factor = distillation_factor(seen, new, self.distillation)
        return Images(removed, factor, attenuation(seen, new))

    def _classification(self, output: ModelOutput, labels: Tensor) -> LossTerms:
        method = self.experts
        if self.prior and isinstance(method, Single) and method.objective == "cross_entropy":
            method = replace(method, objective="balanced_softmax")
        return method.loss(self.loss_context(), output, labels)

    def loss_terms(self, output: ModelOutput, labels: Tensor) -> LossTerms:
        """Add the distillation; the first term carries the re-weighting, which changes no value."""
        terms = self._classification(output, labels)
        images = self.loss_context().constant("dgr_images", self._images)
        classification = torch.stack(list(terms.values())).sum()
        teacher, distance = self.teacher_output(), None
        if teacher is not None and self.distillation:
            distance = distribution_aware_distillation(
                output.expert_logits, teacher.expert_logits, images.removed, self.temperature
            )
            distance = self.expert_scale * images.factor * self.temperature**2 * distance
            terms["distillation"] = distance
        if self.reweight:
            first = next(iter(terms))
            terms[first] = terms[first] + self._rewriting(classification, distance, images)
        return terms

    def _rewriting(self, classification: Tensor, distance: Tensor | None, images: Images) -> Tensor:
        """Return a term of value 0 that turns the heads' gradient into the re-weighted one.

        Everything below the heads keeps the gradient of the plain sum.
        """
        parts = [head.classifier for head in self.model.heads]
        flat = [p for part in parts for p in part]
        plain, distilled = _gradients(classification, flat), _gradients(distance, flat)
        gathered_KC = self.model.recall(GATHERED)
        total = classification.new_zeros(())
        for k, (head, part) in enumerate(zip(self.model.heads, parts, strict=True)):
            rows = slice(0, head.num_classes)
            ours, theirs = ([next(g)[rows] for _ in part] for g in (plain, distilled))
            norms_C = ours[0].norm(dim=-1)
            gathered_KC[k] += norms_C
            weights_C = gradient_weights(gathered_KC[k], self.num_old, images.attenuation)
            ratio = distillation_ratio(
                norms_C, weights_C.to(norms_C), theirs[0][: self.num_old].norm(dim=-1), self.largest_ratio
            )
            for parameter, g, d in zip(part, ours, theirs, strict=True):
                wanted = rewritten(g, d, weights_C, ratio)
                total = total + (parameter[rows] * (wanted - g - d)).sum()
        return total - total.detach()

    def extra_state(self) -> State:
        """Return the images of each class when it arrived."""
        return {"arrived": self.arrived}

    def load_extra_state(self, state: State) -> None:
        """Restore the images of each class when it arrived."""
        self.arrived = state["arrived"]


def _gradients(term: Tensor | None, parameters: list[nn.Parameter]) -> Iterator[Tensor]:
    """Yield the gradient of a term with respect to each parameter, zeros where there is none."""
    if term is None:
        return iter([torch.zeros_like(p) for p in parameters])
    found = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
    return iter([torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)])
