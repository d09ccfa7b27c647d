"""Hand-made and random streams of counts for the tests of metrics and report."""

from __future__ import annotations

import numpy as np
import pytest

from incrlt.metrics import StreamRecord


@pytest.fixture(scope="session")
def worked_example() -> StreamRecord:
    """Three experiences of 2, 1 and 1 classes, ten test images per class; to be done in the head.

    Per-class accuracy, one column per class:
        t=0:  90  50
        t=1:  70  50  80
        t=2:  80  20  40  60
    Accuracy matrix (column j = experience j):
        t=0:  70
        t=1:  60  80
        t=2:  50  40  60
    """
    after_0 = [[9, 1], [5, 5]]
    after_1 = [[7, 1, 2], [2, 5, 3], [1, 1, 8]]
    after_2 = [[8, 0, 1, 1], [2, 2, 1, 5], [1, 0, 4, 5], [2, 1, 1, 6]]
    return StreamRecord(
        confusions=(after_0, after_1, after_2),
        experience_of_class=[0, 0, 1, 2],
        images_of_class=[500, 100, 20, 5],
        class_names=("apple", "bear", "clock", "dolphin"),
    )


@pytest.fixture(scope="session")
def uneven_example() -> StreamRecord:
    """One class with 10 test images at 100 %, one with 30 at 0 %, both in experience 0; no forgetting."""
    return StreamRecord(([[10, 0], [30, 0]],), [0, 0], [200, 10])


@pytest.fixture(scope="session")
def random_stream():
    """Make random counts of a stream whose experiences have ``sizes`` classes."""

    def make(generator: np.random.Generator, sizes: list[int], most_images: int = 30) -> StreamRecord:
        seen = np.cumsum(sizes)
        return StreamRecord(
            confusions=tuple(generator.integers(0, most_images, (n, n)) for n in seen),
            experience_of_class=np.repeat(np.arange(len(sizes)), sizes),
            images_of_class=generator.integers(1, 500, int(seen[-1])),
        )

    return make
