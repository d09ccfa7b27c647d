"""What a router is held against, on logits whose every answer is known by hand."""

from __future__ import annotations

import math

import pytest
import torch

from incrlt.losses import running_means
from incrlt.metrics.yardsticks import weight_grid
from incrlt.plugins.yardsticks import YardstickCounting, weighted
from incrlt.types import ModelOutput

# Weight w of the second expert ->          true   right alone   under weights
IMAGES = [
    ([4.5, 0, 0], [0, 1, 0], 0),  # a:             the first     w < 0.82
    ([3, 0, 0], [0, 2.2, 0], 1),  # b:             the second    w > 0.58
    ([3, 0, 2], [0, 3, 2], 2),  # c:               none          0.33 < w < 0.67; probabilities say 0
    ([3, 0, 2], [0, 3, 2], 2),  # c once more
    ([0, -6, 2.2], [5, 5, -1.5], 2),  # d:         the first     w < 0.25; probabilities say 2
    ([9, 0, 0], [9, 0, 0], -1),  # of a class yet to come
]
USED = torch.tensor([1, 2, 1, 2, 1, 1])
LOGITS = torch.tensor(
    [[first for first, _, _ in IMAGES], [second for _, second, _ in IMAGES]], dtype=torch.float
)
TRUE = torch.tensor([true for _, _, true in IMAGES])
TESTED = torch.tensor([1, 1, 3])


def counted(combine=None, batch=4):
    """Return the counts of the images above, in batches."""
    counting = YardstickCounting(3, 2)
    for at in range(0, len(TRUE), batch):
        logits = LOGITS[:, at : at + batch]
        answer = logits.mean(0) if combine is None else combine(logits)
        stops = running_means(logits, combine).argmax(-1)
        counting.add(ModelOutput(answer, logits), stops, USED[at : at + batch], TRUE[at : at + batch])
    return counting.found(TESTED)


@pytest.mark.parametrize("batch", [1, 4, 6])
def test_every_answer_by_hand(batch):
    found = counted(batch=batch)
    assert found.right.tolist() == [
        # routed: a after one, d after one, c after two. The mean: a and both c. Probabilities: a and d. Weights 0.4,
        # 0.6: a, b and both c. A stop: all but b. An expert: all but c.
        [1, 1, 1, 1, 1, 1, 1],
        [0, 0, 0, 0, 1, 0, 1],
        [2, 2, 2, 1, 2, 3, 1],
    ]
    assert found.weights == (0.4, 0.6)
    assert found.right.dtype == "int64"


def test_a_combination_of_its_own_is_not_the_mean():
    """The last of the first k experts answers: all experts are the second one, and a stop is one expert."""
    found = counted(combine=lambda logits: logits[-1])
    assert found.right.tolist() == [
        [1, 0, 1, 1, 1, 1, 1],
        [1, 1, 0, 0, 1, 1, 1],
        [1, 0, 2, 1, 2, 1, 1],
    ]


def test_of_weights_that_are_equally_right_the_most_even_are_taken():
    counting, logits = YardstickCounting(1, 2), torch.tensor([[[4.0, 0.0]], [[0.0, 1.0]]])
    counting.add(ModelOutput(logits.mean(0), logits), logits.argmax(-1), torch.tensor([1]), torch.tensor([0]))
    assert counting.found(torch.tensor([1])).weights == (0.5, 0.5)


def test_equal_weights_are_the_mean_to_the_bit_and_others_the_sum():
    logits = torch.randn(3, 50, 7, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    assert torch.equal(weighted(logits, weight_grid(3)[0]), logits.mean(0))
    torch.testing.assert_close(
        weighted(logits, (0.5, 0.2, 0.3)), 0.5 * logits[0] + 0.2 * logits[1] + 0.3 * logits[2]
    )
    assert torch.equal(weighted(logits, (0, 1, 0)), logits[1])
    assert torch.equal(logits, before), "the network's logits stay as they are"


def test_an_expert_without_weight_has_no_say():
    logits = torch.tensor([[[1.0, 2.0]], [[math.inf, -math.inf]]])
    assert weighted(logits, (1, 0)).tolist() == [[1, 2]]


def test_a_batch_is_counted_without_reading_a_number_back():
    """Tensors of the meta device have no numbers: whatever wants one raises."""
    counting, logits = YardstickCounting(3, 2), torch.empty(2, 5, 3, device="meta")
    numbers = torch.empty(5, dtype=torch.long, device="meta")
    for _ in range(2):
        counting.add(ModelOutput(logits.mean(0), logits), logits.argmax(-1), numbers, numbers)
    with pytest.raises(NotImplementedError, match="meta"):
        counting.found(TESTED)
