"""How a run answers training images that its protocol holds out: what settings may be chosen by, unlike test images."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from incrlt.benchmarks.datasets import ImageData
from incrlt.benchmarks.protocols import ResolvedProtocol
from incrlt.data import augment
from incrlt.data.stores import Images
from incrlt.plugins.features import evaluation
from incrlt.runner.events import Score
from incrlt.training.readouts import all_scores
from incrlt.training.template import IncrTemplate


class Validation:
    """Scores the held-out training images of the classes that have arrived, without a trace in the run.

    Neither random states nor statistics of the network change, so that a run with it has the bits of one without.

    Args:
        data: The dataset, an :class:`~incrlt.benchmarks.datasets.ImageData`.
        resolved: The protocol on it; its held-out images are used, and no test image.
        batch_size: Images per step.
    """

    def __init__(self, data: ImageData, resolved: ResolvedProtocol, batch_size: int) -> None:
        held = np.concatenate(resolved.holdout_indices).astype(np.int64)
        arrival = np.argsort(resolved.protocol.class_order)  # the benchmark's labels are arrival positions
        images: Images = data.train_images
        self._rows = torch.as_tensor(held)
        if isinstance(images, Tensor):  # the others are held by nobody
            images, self._rows = images[self._rows], torch.arange(len(held))
        self._images = images
        self.labels = torch.as_tensor(arrival[data.train_labels[held].numpy()])
        channels, height, width = images.shape[1:]
        chosen = resolved.protocol.augmentation
        named = chosen if chosen in augment.NAMED else "none"
        self._prepare = augment.build(named, (channels, height, width), data.mean, data.std, train=False)
        self._batch_size = batch_size

    @torch.no_grad()
    def score(self, strategy: IncrTemplate) -> Score:
        """Return the accuracy of every read-out over the classes seen so far.

        Args:
            strategy: Whose network answers, as in evaluation.

        Returns:
            ``accuracy`` of the first read-out in percent, every class that has a held-out image counting the same (None
            without any), and how many ``classes`` and ``images`` it is over. A class of up to five images has no
            held-out one. ``readouts`` are the accuracies of all by name, where there is more than one.
        """
        known = torch.tensor(strategy.seen_classes, dtype=torch.long)
        of_seen = torch.isin(self.labels, known)
        rows, labels = self._rows[of_seen], self.labels[of_seen]
        if not len(labels):
            return {"accuracy": None, "classes": 0, "images": 0}
        with evaluation(strategy.model):
            answers = [self._answers(strategy, own) for own in rows.split(self._batch_size)]
        shares = {
            name: _over_classes(known[torch.cat([own[name] for own in answers])], labels) for name in answers[0]
        }
        score: Score = {
            "accuracy": next(iter(shares.values())),
            "classes": len(labels.unique()),
            "images": len(labels),
        }
        return score if len(shares) == 1 else {**score, "readouts": shares}

    def _answers(self, strategy: IncrTemplate, rows: Tensor) -> dict[str, Tensor]:
        """Return the class positions ``[B]`` that each read-out answers with."""
        prepared = self._prepare(self._images.index_select(0, rows).to(strategy.device))
        output = strategy.compute.run(strategy.network, prepared, rebalanced=True)
        scores, _ = all_scores(
            strategy.readouts(output), output, strategy.model, strategy.rebalance, strategy.router
        )
        return {name: score.argmax(1).cpu() for name, score in scores.items()}


def _over_classes(answers: Tensor, labels: Tensor) -> float:
    """Return the mean of the classes' accuracies in percent."""
    right = (answers == labels).double()
    shares = [right[labels == label].mean().item() for label in labels.unique().tolist()]
    return 100 * sum(shares) / len(shares)
