"""incrlt's plugins on Avalanche's own Naive: an exemplar memory, a fresh learning-rate schedule, and metrics.

Runs on scikit-learn's embedded handwritten digits with a long tail (ratio 10) in under half a minute:

    python examples/our_memory_on_naive.py
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import incrlt._compat  # noqa: F401  (repairs Avalanche needs with today's torch; before avalanche)

import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import InteractiveLogger
from avalanche.models import IncrementalClassifier
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from torch import Tensor, nn
from torch.utils.data import default_collate

from incrlt.benchmarks import digits_lt
from incrlt.metrics import StreamRecord, summarise
from incrlt.plugins import ExemplarMemory, SchedulerFactory, cosine


class SmallNetwork(nn.Module):
    """Any network will do; this one uses Avalanche's growing head, and the memory herds by its input."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU()
        )
        self.classifier = IncrementalClassifier(64, initial_out_features=2)

    def get_features(self, images: Tensor) -> Tensor:
        """Return features ``[B, 64]``: what the memory chooses exemplars by."""
        return self.features(images)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[B, C]``."""
        return self.classifier(self.get_features(images))


@torch.no_grad()
def count(model: nn.Module, experiences: Iterable[Any]) -> Tensor:
    """Count test images by (true class, predicted class): all that incrlt's metrics want to know."""
    model.eval()
    batches = [default_collate(list(experience.dataset.eval())) for experience in experiences]
    labels = torch.cat([batch[1] for batch in batches])
    classes = int(labels.max()) + 1  # our benchmarks number classes by arrival: all seen so far
    predicted = torch.cat([model(batch[0])[:, :classes].argmax(1) for batch in batches])
    return torch.bincount(labels * classes + predicted, minlength=classes**2).view(classes, classes)


def main(epochs: int = 10, per_class: int = 10) -> dict[str, float]:
    """Train on a long-tailed stream and return Avalanche's last metrics."""
    torch.manual_seed(0)
    benchmark = digits_lt("lfh-shuffled-5", imbalance_ratio=10)
    model = SmallNetwork()
    memory = ExemplarMemory(per_class=per_class)
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        train_mb_size=32,
        train_epochs=epochs,
        eval_mb_size=256,
        plugins=[memory, SchedulerFactory(cosine(warmup_epochs=1))],
        evaluator=EvaluationPlugin(accuracy_metrics(stream=True), loggers=[InteractiveLogger()]),
    )
    metrics, counts = {}, []
    for t, experience in enumerate(benchmark.train_stream):
        strategy.train(experience)
        metrics = strategy.eval(benchmark.test_stream[: t + 1])
        counts.append(count(model, benchmark.test_stream[: t + 1]).numpy())

    print(f"exemplars kept per class: {memory.counts()}")
    protocol = benchmark.protocol
    record = StreamRecord(tuple(counts), protocol.experience_of_class, protocol.counts_before_holdout)
    for name, value in summarise(record)["numbers"].items():
        print(f"{name:50} {'none' if value is None else f'{value:.1f}'}")
    return metrics


if __name__ == "__main__":
    accuracy = [value for key, value in main().items() if key.startswith("Top1_Acc_Stream/eval_phase/test")]
    print(f"accuracy on all ten digits at the end of the stream: {100 * accuracy[-1]:.1f} %")
