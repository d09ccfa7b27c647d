from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture(scope="session")
def cifar100_labels(cifar100_root) -> np.ndarray:
    from incrlt.benchmarks import datasets

    return datasets.load("cifar100", cifar100_root).train_labels.numpy()
