"""A fresh learning-rate scheduler for every experience.

Avalanche's ``LRSchedulerPlugin`` resets one scheduler by setting its epoch to 0, which is wrong for composed
schedulers: warm-up starts at another rate from the second experience on. Here a factory builds a new one each
time, from the rate the optimizer was made with.
"""

from __future__ import annotations

import warnings

import incrlt._compat  # noqa: F401  (before avalanche)

import torch
from avalanche.training.plugins import SupervisedPlugin
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from incrlt.errors import UserError
from incrlt.roles import State, Strategy
from incrlt.types import Schedule


class SchedulerFactory(SupervisedPlugin):
    """Build a scheduler before each experience and step it after each epoch.

    The rate at the start of each experience is the initial one of each param group: ``initial_lr``, which
    torch's schedulers note in the group, or ``lr`` in a group no scheduler has seen.

    Args:
        schedule: ``schedule(optimizer, epochs)`` returns a torch ``LRScheduler`` that is stepped per epoch,
            for example :func:`multistep_with_warmup`, :func:`cosine`, or
            ``lambda optimizer, epochs: StepLR(optimizer, 30)``.

    Attributes:
        scheduler: The scheduler of the running experience; None between experiences.
    """

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.schedule = schedule
        self.scheduler: LRScheduler | None = None
        self._epochs = 0
        self._epochs_done = 0
        self._pending: int | None = None

    def before_training_exp(self, strategy: Strategy, **kwargs: object) -> None:
        """Start the schedule of this experience: of its first stage, where it trains in stages."""
        stages = getattr(strategy, "stages", None)
        epochs = stages(strategy.experience)[0].epochs if callable(stages) else strategy.train_epochs
        self.start(strategy.optimizer, max(1, epochs))  # a first stage that is skipped has none

    def after_training_epoch(self, strategy: Strategy, **kwargs: object) -> None:
        """Step once; later stages have optimizers and schedules of their own."""
        if getattr(strategy, "stage_index", 0) == 0:
            self.step()

    def after_training_exp(self, strategy: Strategy, **kwargs: object) -> None:
        """Let the scheduler go; the rate stays as it is until the next experience starts."""
        self.scheduler = None
        self._epochs_done = 0

    def start(self, optimizer: Optimizer, epochs: int) -> None:
        """Put the initial learning rates back and build a scheduler for ``epochs`` epochs.

        A state loaded before (see :meth:`load_state_dict`) is continued from.

        Raises:
            UserError: The factory made something that cannot be stepped without a metric.
        """
        done, self._pending = self._pending or 0, None
        reset_learning_rates(optimizer)
        scheduler = self.schedule(optimizer, epochs)
        if isinstance(scheduler, ReduceLROnPlateau) or not isinstance(scheduler, LRScheduler):
            raise UserError(
                f"the schedule must return a torch LRScheduler that steps per epoch; got "
                f"{type(scheduler).__name__}. To watch a metric use Avalanche's LRSchedulerPlugin."
            )
        self.scheduler, self._epochs, self._epochs_done = scheduler, epochs, 0
        self._replay(done)

    def step(self) -> None:
        """Go to the next epoch's learning rate; without a running schedule nothing happens."""
        if self.scheduler is not None:
            self.scheduler.step()
            self._epochs_done += 1

    def state_dict(self) -> State:
        """Return how many epochs of the running schedule are done (0 between experiences).

        That is all there is: the rates follow by replaying the steps from the initial rates, bit by bit.
        """
        running = self.scheduler is not None
        return {"epochs_done": self._epochs_done if running else (self._pending or 0)}

    def load_state_dict(self, state: State) -> None:
        """Continue from a state: at once when a schedule is running, else at the next :meth:`start`."""
        self._pending = int(state["epochs_done"])
        if self.scheduler is not None:
            self.start(self.scheduler.optimizer, self._epochs)

    def _replay(self, steps: int) -> None:
        with warnings.catch_warnings():
            # torch warns of steps without optimizer steps: those were taken before the interruption.
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            for _ in range(steps):
                self.step()


def reset_learning_rates(optimizer: Optimizer) -> None:
    """Set each param group's ``lr`` to its ``initial_lr`` (if noted) and forget the note."""
    for group in optimizer.param_groups:
        initial = group.pop("initial_lr", group["lr"])
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(float(initial))  # captured graphs hold on to this tensor
        else:
            group["lr"] = float(initial)
