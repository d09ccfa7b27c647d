"""Features that are kept on disk: computed once, exact, and safe against killed processes."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from incrlt.data.features import SUFFIX, FeatureCache
from incrlt.errors import UserError


class Counted(nn.Module):
    """A part that says how many pictures it was shown."""

    def __init__(self, pair: bool = False) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)
        self.pair, self.shown = pair, 0

    def forward(self, x: Tensor) -> Any:
        self.shown += len(x)
        y = self.layer(x)
        return (y, y.mean((2, 3)).double()) if self.pair else y


@pytest.fixture
def pictures() -> Tensor:
    return torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def standing(pair: bool = False, seed: int = 0) -> Counted:
    torch.manual_seed(seed)
    part = Counted(pair).eval()
    part.requires_grad_(False)
    return part


def test_pictures_of_two_sizes_have_maps_of_two_sizes(tmp_path: Path, pictures: Tensor) -> None:
    part, cache = standing(), FeatureCache(tmp_path)
    for shown in (pictures, pictures[..., :6, :6], pictures):
        torch.testing.assert_close(cache(part, shown), part(shown))
    assert (cache.computed, cache.found) == (12, 6)


def test_a_picture_is_computed_once_and_read_exactly(tmp_path: Path, pictures: Tensor) -> None:
    part, cache = standing(), FeatureCache(tmp_path)
    wanted = part.layer(pictures)
    first = cache(part, pictures[[0, 1, 2, 0]])  # the same one twice
    assert part.shown == 3
    assert torch.equal(first, wanted[[0, 1, 2, 0]])
    again = cache(part, pictures.to(memory_format=torch.channels_last))
    assert part.shown == 6
    assert torch.allclose(again, wanted, atol=1e-6)
    assert torch.equal(again[:3], first[:3])
    assert (cache.computed, cache.found) == (6, 4)


def test_another_process_and_a_copy_find_them(tmp_path: Path, pictures: Tensor) -> None:
    part = standing(pair=True)
    first = FeatureCache(tmp_path)(part, pictures)
    other, cache = copy.deepcopy(part), FeatureCache(tmp_path)
    other.shown = 0
    found = cache(other, pictures.flip(0))
    assert other.shown == 0
    assert isinstance(found, tuple)
    assert [value.dtype for value in found] == [torch.float32, torch.float64]
    assert all(torch.equal(a.flip(0), b) for a, b in zip(first, found, strict=True))
    assert copy.deepcopy(cache) is cache
    assert pickle.loads(pickle.dumps(cache)).folder == tmp_path


def test_other_weights_pixels_and_precision_are_others(tmp_path: Path, pictures: Tensor) -> None:
    part, cache = standing(), FeatureCache(tmp_path)
    cache(part, pictures)
    cache(part, pictures + 1e-3)
    assert part.shown == 12
    cache(standing(seed=1), pictures)
    assert cache.computed == 18
    with torch.autocast("cpu", torch.bfloat16):
        assert cache(part, pictures).dtype == torch.bfloat16
    assert cache.computed == 24
    with torch.no_grad():
        part.layer.bias += 1  # loaded anew in place
    assert torch.equal(cache(part, pictures), part.layer(pictures))


def test_records_that_a_killed_process_left_are_computed_anew(tmp_path: Path, pictures: Tensor) -> None:
    part = standing()
    wanted = FeatureCache(tmp_path)(part, pictures)
    file = next(tmp_path.rglob(f"*{SUFFIX}"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255  # one record damaged
    file.write_bytes(content[:-5])  # the last one unfinished
    cache = FeatureCache(tmp_path)
    assert torch.allclose(cache(part, pictures), wanted, atol=1e-6)
    assert (cache.computed, cache.found) == (2, 4)


def test_a_part_that_trains_is_refused(tmp_path: Path, pictures: Tensor) -> None:
    with pytest.raises(UserError, match="this one trains"):
        FeatureCache(tmp_path)(standing().train(), pictures)
    with pytest.raises(UserError, match="this one trains"):
        FeatureCache(tmp_path)(standing().requires_grad_(True), pictures)
