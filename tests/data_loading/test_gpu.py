"""On a CUDA device: the same values as on the CPU, and no wait for the device inside an epoch."""

from __future__ import annotations

import pytest
import torch

from incrlt.data.augment import NAMED, Draw, Pad, build, flip, identity_axes, interpolation, render
from incrlt.data.tensors import Group, TensorBatches

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_resized_crop_has_the_values_of_the_cpu() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    starts, lengths = torch.tensor([0, 3, 10, 25]), torch.tensor([40, 30, 11, 15])

    def run(device: str) -> torch.Tensor:
        batch, start, length = images.to(device), starts.to(device), lengths.to(device)
        axes = Pad(4, 4, 4, 4).apply(*identity_axes(batch), Draw(4, batch.device, None))
        rows, columns = (axis.blend(interpolation(start, length, 32, 40, True)) for axis in axes)
        mirrored = torch.tensor([True, False, True, False], device=device)
        return render(batch, rows, flip(columns, mirrored), 0).cpu()

    torch.testing.assert_close(run("cuda"), run("cpu"), atol=2e-3, rtol=1e-5)


@pytest.mark.parametrize("name", NAMED)
def test_no_synchronisation_within_an_epoch(name: str) -> None:
    images = torch.randint(0, 256, (96, 3, 32, 32), dtype=torch.uint8, device="cuda")
    targets = torch.arange(96, device="cuda") % 5
    rows = torch.arange(96, device="cuda")
    loader = TensorBatches(
        images,
        targets,
        groups=[Group(rows[:60], 16), Group(rows[60:], 8)],
        oversample_small=True,
        augmentation=build(name, (3, 32, 32), (0.5,) * 3, (0.2,) * 3, train=True),
        augmentation_generator=torch.Generator("cuda").manual_seed(0),
        channels_last=True,
    )
    list(loader)  # constants are put on the device at their first use
    epoch = iter(loader)
    next(epoch)  # the order of the epoch is copied to the device once
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert len(list(epoch)) == len(loader) - 1
    finally:
        torch.cuda.set_sync_debug_mode("default")
