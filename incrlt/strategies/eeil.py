"""EEIL: end-to-end incremental learning.

Castro et al., ECCV 2018; code fmcp/EndToEndIncrementalLearning (Matlab), and approach/eeil.py of
xialeiliu/Long-Tailed-CIL, whose arithmetic is held to stored arrays. Each earlier experience is distilled within its
own classes; then the whole network trains on, gently, on as many images of old classes as of new ones.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from incrlt.experiment.fields import Index, NonNegative, Positive
from incrlt.losses.per_head import gradient_noise_std, per_head_distillation
from incrlt.roles import Experience, State
from incrlt.training.template import IncrTemplate
from incrlt.types import LossTerms, ModelOutput, Stage


class EEIL(IncrTemplate):
    r"""The expert method's loss, distillation per earlier experience, and a balanced finetune of the whole network.

    .. math:: L = L_{experts} + \lambda \sum_{i < t} d\big( \mathrm{softmax}(z_{C_i} / T),
        \mathrm{softmax}(z^*_{C_i} / T) \big)

    The logits z of the classes :math:`C_i` that arrived in experience i, against the teacher's; d is ``form``,
    :math:`\lambda` is ``distillation``.

    Args:
        distillation: Weight of the distillation.
        temperature: Softens both distributions; 2 in both codes.
        form: ``binary`` (Long-Tailed-CIL) or ``softmax`` (the paper), see
            :func:`~incrlt.losses.per_head.per_head_distillation`.
        distilled: ``all`` old experiences in both stages, as in the paper. ``ltcil`` leaves out the latest one before
            the finetune, as that code does by accident: the second experience then trains without distillation.
        balanced_epochs: Epochs of the finetune from the second experience on; 40 in Long-Tailed-CIL; 0 skips it.
        balanced_lr: Its constant learning rate; 0.001 in Long-Tailed-CIL.
        gradient_noise: Size of the noise on gradients in the first epoch; 0.3 in the paper's code, 0 in
            Long-Tailed-CIL.
        template: Arguments of :class:`~incrlt.training.template.IncrTemplate`; ``memory`` is required.

    Deviations: one growing head stands for the heads per experience, with the same logits. The finetune trains on the
    exemplars of all classes, herded, as in the paper (Long-Tailed-CIL draws new images at random, as many in all as
    there are exemplars). The paper's finetune distils the new head too, from the model just trained: here it does not,
    as in Long-Tailed-CIL. Noise is added before gradients are clipped, there after. Experts are averaged.
    """

    name: ClassVar[str] = "eeil"
    title: ClassVar[str] = "EEIL"
    later_stages: ClassVar[tuple[tuple[str, str, str], ...]] = (
        ("balanced", "balanced_epochs if num_old else 0", "exemplars"),
    )
    uses_teacher: ClassVar[bool] = True
    needs_network: ClassVar[bool] = True
    needs_memory: ClassVar[bool] = True

    def __init__(
        self,
        *,
        distillation: NonNegative = 1.0,
        temperature: Positive = 2.0,
        form: Literal["binary", "softmax"] = "binary",
        distilled: Literal["all", "ltcil"] = "all",
        balanced_epochs: Index = 40,
        balanced_lr: Positive = 0.001,
        gradient_noise: NonNegative = 0.0,
        **template: object,
    ) -> None:
        super().__init__(**template)
        self.distillation, self.temperature, self.form = distillation, temperature, form
        self.distilled, self.gradient_noise = distilled, gradient_noise
        self.balanced_epochs, self.balanced_lr = balanced_epochs, balanced_lr
        self.sizes: list[int] = []

    def begin_experience(self, experience: Experience) -> None:
        """Take note of how many classes arrived."""
        if self.num_new:
            self.sizes.append(self.num_new)

    @property
    def distilled_sizes(self) -> list[int]:
        """Classes of each experience that the present stage distils."""
        old = self.sizes[:-1] if self.num_new else self.sizes
        return old[:-1] if self.distilled == "ltcil" and self.stage.name != "balanced" else old

    def loss_terms(self, output: ModelOutput, labels: Tensor) -> LossTerms:
        """Add the distillation, and noise where it is asked for."""
        terms = super().loss_terms(output, labels)
        teacher, sizes = self.teacher_output(), self.distilled_sizes
        if teacher is not None and sizes and self.distillation:
            terms["distillation"] = (
                self.expert_scale
                * self.distillation
                * per_head_distillation(
                    output.expert_logits, teacher.expert_logits, sizes, self.temperature, self.form
                )
            )
        if self.gradient_noise:
            terms["gradient_noise"] = self._noise()
        return terms

    def _noise(self) -> Tensor:
        """Return a term of value 0 whose gradient is the noise."""
        std = gradient_noise_std(self.stage_epoch, self.gradient_noise)
        shared, own = list(self.model.stem.parameters()), list(self.model.branches.parameters())
        for head in self.model.heads:
            own += [head.rows(), *_others(head)]
        # the template multiplies the gradient of what serves one expert by K
        pace = self.model.num_experts if self.experts.averaged else 1
        drawn = [(part * torch.randn_like(part)).sum() for part in shared]
        drawn += [(part * torch.randn_like(part)).sum() / pace for part in own]
        total = std * torch.stack(drawn).sum()
        return total - total.detach()

    def stages(self, experience: Experience) -> tuple[Stage, ...]:
        """Add the balanced finetune from the second experience on."""
        stages = super().stages(experience)
        if not (self.balanced_epochs and self.num_old):
            return stages
        balanced = Stage(
            "balanced", self.balanced_epochs, lr=self.balanced_lr, data="exemplars", freeze_old=False
        )
        return (stages[0], balanced, *stages[1:])

    def extra_state(self) -> State:
        """Return the classes of each experience."""
        return {"sizes": list(self.sizes)}

    def load_extra_state(self, state: State) -> None:
        """Restore the classes of each experience."""
        self.sizes = list(state["sizes"])


def _others(head: nn.Module) -> list[Tensor]:
    """Return what a head trains beside its rows: biases in use, or the scale."""
    named = dict(head.named_parameters())
    found = [named["bias"][: head.num_classes]] if "bias" in named else []
    return [*found, named["scale"]] if "scale" in named else found
