"""What the forward pass of a training step gave, so that a plugin that changes it is not ignored."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from incrlt.errors import UserError
from incrlt.types import ModelOutput


@dataclass(frozen=True)
class Answered:
    """The network's answer and the logits by label id that Avalanche's plugins see.

    Attributes:
        output: What the loss reads.
        logits: ``mb_output`` ``[B, L]`` as the forward pass left it.
        version: Of ``logits``; a change in place raises it.
    """

    output: ModelOutput
    logits: Tensor
    version: int

    def check(self, output: ModelOutput, logits: Tensor) -> None:
        """Refuse logits that a plugin has changed and that the loss of an expert network would not see.

        A plugin that also put another :class:`~incrlt.types.ModelOutput` in ``strategy.mb_out`` has said what to train
        on.

        Args:
            output: ``strategy.mb_out`` as it is now.
            logits: ``strategy.mb_output`` as it is now.

        Raises:
            UserError: They are others, or were changed in place.
        """
        same = logits is self.logits and logits._version == self.version
        if same or output is not self.output:
            return
        raise UserError(
            "a plugin changed mb_output after the forward pass; the loss of an expert network reads the logits of each "
            "expert, and would not see the change. Put a changed incrlt.types.ModelOutput into strategy.mb_out."
        )
