"""LUCIR in an ordinary Avalanche script: a benchmark, plugins and loggers that know nothing of incrlt.

Runs on scikit-learn's embedded handwritten digits in under half a minute on a laptop's CPU:

    python examples/lucir_in_avalanche.py
"""

from __future__ import annotations

import incrlt._compat  # repairs Avalanche needs with today's torch; before avalanche

import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.benchmarks.scenarios.deprecated.new_classes import NCScenario
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics
from avalanche.logging import InteractiveLogger
from avalanche.training.plugins import EarlyStoppingPlugin, EvaluationPlugin, EWCPlugin, LRSchedulerPlugin
from sklearn.datasets import load_digits
from torch.optim.lr_scheduler import MultiStepLR
from torch.utils.data import TensorDataset

import incrlt.models
from incrlt.plugins import ExemplarMemory
from incrlt.strategies import LUCIR


def digits(train: bool) -> TensorDataset:
    """Every fifth image tests, the others train; pixels in [0, 1]."""
    data = load_digits()
    chosen = (torch.arange(len(data.target)) % 5 != 0) == train
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1)[chosen] / 16
    labels = torch.tensor(data.target)[chosen]
    dataset = TensorDataset(images, labels)
    dataset.targets = labels.tolist()  # where Avalanche looks for them
    return dataset


def main(epochs: int = 8) -> dict[str, float]:
    """Train on five experiences of two classes and return Avalanche's last metrics."""
    torch.manual_seed(0)
    benchmark: NCScenario = nc_benchmark(
        digits(train=True), digits(train=False), n_experiences=5, task_labels=False, seed=1
    )
    model = incrlt.models.build("resnet8", head="cosine", in_channels=1)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    strategy = LUCIR(
        model=model,
        optimizer=sgd,
        memory=ExemplarMemory(per_class=20),
        train_mb_size=64,
        train_epochs=epochs,
        eval_mb_size=256,
        eval_every=1,  # EarlyStopping reads the accuracy on eval_streams after every epoch
        device="cuda" if torch.cuda.is_available() else "cpu",
        plugins=[
            EWCPlugin(ewc_lambda=0.1),
            LRSchedulerPlugin(MultiStepLR(sgd, milestones=[epochs // 2], gamma=0.1)),
            EarlyStoppingPlugin(patience=5, val_stream_name="train_stream"),
        ],
        evaluator=EvaluationPlugin(
            accuracy_metrics(epoch=True, experience=True, stream=True),
            forgetting_metrics(experience=True),
            loggers=[InteractiveLogger()],
        ),
    )
    metrics: dict[str, float] = {}
    for t, experience in enumerate(benchmark.train_stream):
        strategy.train(experience, eval_streams=[benchmark.train_stream[: t + 1]])
        metrics = strategy.eval(benchmark.test_stream[: t + 1])
    return metrics


if __name__ == "__main__":
    accuracy = [value for key, value in main().items() if key.startswith("Top1_Acc_Stream/eval_phase/test")]
    print(f"accuracy on all ten digits after five experiences: {100 * accuracy[-1]:.1f} %")
