"""iCaRL: distillation from the previous model and classification by the nearest mean of exemplars.

Rebuffi et al., CVPR 2017. The default is the softmax variant that LUCIR and its successors compare with (cross
entropy and temperature-2 distillation), with a larger weight; ``objective: sigmoid`` is the paper's own loss.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from incrlt.errors import UserError
from incrlt.experiment.fields import NonNegative, Positive
from incrlt.losses import knowledge_distillation, sigmoid_distillation
from incrlt.roles import Experience, State
from incrlt.training.arrival import classes_of
from incrlt.training.class_means import ClassMeans
from incrlt.training.template import IncrTemplate
from incrlt.types import LossTerms, ModelOutput


class ICaRL(IncrTemplate):
    r"""Distil the previous model on old classes, keep exemplars, read out by nearest mean of exemplars.

    .. math:: L = L_{experts} + \lambda T^2 \, \mathrm{KL}\big( \mathrm{softmax}(z^* / T) \,\|\,
        \mathrm{softmax}(z_{old} / T) \big), \qquad y = \arg\max_c \cos(f, \mu_c)

    :math:`\mu_c` is the mean of the exemplars of class c, :math:`\lambda` is ``distillation``.

    Args:
        objective: ``softmax``: the expert method's loss plus distillation; ``sigmoid``: one binary cross entropy
            per class, as in the paper (the expert method's loss is not used).
        distillation: Weight of the distillation term, which holds the factor T^2 (softmax only); 0.25 is LUCIR's
            iCaRL baseline at T = 2.
        temperature: Softens both distributions (softmax only).
        readout: ``nme`` (nearest mean of exemplars) or ``cnn`` (the head); the other one is recorded too.
        template: Arguments of :class:`~incrlt.training.template.IncrTemplate`; ``memory`` is required.

    Deviation of the default from LUCIR's iCaRL baseline: T^2 KL in place of KL, 4 times its weight at T = 2, as for
    the distillation of every other method here (Hinton et al. 2015).
    """

    name: ClassVar[str] = "icarl"
    title: ClassVar[str] = "iCaRL"
    steady: ClassVar[bool] = True
    uses_teacher: ClassVar[bool] = True
    needs_network: ClassVar[bool] = True
    needs_memory: ClassVar[bool] = True

    def __init__(
        self,
        *,
        objective: Literal["softmax", "sigmoid"] = "softmax",
        distillation: NonNegative = 1.0,
        temperature: Positive = 2.0,
        readout: Literal["nme", "cnn"] = "nme",
        **template: object,
    ) -> None:
        super().__init__(**template)
        self.objective, self.distillation, self.temperature = objective, distillation, temperature
        self.class_means = ClassMeans(first=readout == "nme")

    def begin_experience(self, experience: Experience) -> None:
        """Refuse labels that the sigmoid objective would not look at.

        Raises:
            UserError: Classes come again, and their targets are the old model's answers.
        """
        again = sorted(set(classes_of(experience)) & set(self.model.class_ids[: self.num_old]))
        if self.objective == "sigmoid" and again:
            raise UserError(
                f"classes {again} come again in this experience; objective: sigmoid takes the targets of old classes "
                "from the model before, so their labels would count for nothing. Use objective: softmax."
            )

    def loss_terms(self, output: ModelOutput, labels: Tensor) -> LossTerms:
        """Return the classification and the distillation term."""
        teacher = self.teacher_output()
        teacher_logits = None if teacher is None else teacher.expert_logits
        if self.objective == "sigmoid":
            loss = sigmoid_distillation(output.expert_logits, labels, teacher_logits)
            return {"sigmoid": loss if self.expert_scale == 1 else self.expert_scale * loss}
        terms = super().loss_terms(output, labels)
        if teacher_logits is not None:
            distance = knowledge_distillation(output.expert_logits, teacher_logits, self.temperature)
            terms["distillation"] = self.expert_scale * self.distillation * distance
        return terms

    def end_experience(self, experience: Experience) -> None:
        """Compute the means of the exemplars of all classes."""
        self.class_means.update(self)

    def readouts(self, output: ModelOutput) -> dict[str, Tensor]:
        """Return the scores of both read-outs."""
        return self.class_means.readouts(output)

    def extra_state(self) -> State:
        """Return the class means."""
        return self.class_means.state_dict()

    def load_extra_state(self, state: State) -> None:
        """Restore the class means."""
        self.class_means.load_state_dict(state)
