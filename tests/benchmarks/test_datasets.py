"""Datasets: what the facts say is what the files hold, and missing or damaged files are named."""

from __future__ import annotations

import pytest
import torch

from incrlt.benchmarks import datasets, facts
from incrlt.errors import UserError


def check_against_facts(data: datasets.ImageData) -> None:
    info = facts.info(data.name)
    assert data.train_images.dtype == data.test_images.dtype == torch.uint8
    assert tuple(data.train_images.shape[1:]) == tuple(data.test_images.shape[1:]) == info.image_shape
    assert data.train_labels.bincount().tolist() == [info.max_images] * info.num_classes
    assert len(data.test_labels) == len(data.test_images) == info.test_images
    assert len(data.class_names) == info.num_classes == len(set(data.class_names))
    assert (data.mean, data.std) == (info.mean, info.std)
    tenth = data.train_images[:: 10 if len(data.train_images) > 5000 else 1]  # a tenth of CIFAR is enough
    mean = tenth.double().mean((0, 2, 3)) / 255
    torch.testing.assert_close(mean, torch.tensor(info.mean).double(), atol=5e-3, rtol=0)


def test_digits():
    data = datasets.load("digits")
    check_against_facts(data)
    pixels = data.train_images.double() / 255
    assert pixels.mean().item() == pytest.approx(facts.info("digits").mean[0], abs=1e-4)
    assert pixels.std(correction=0).item() == pytest.approx(facts.info("digits").std[0], abs=1e-4)
    assert data.train_images.max() == 255
    again = datasets.load("digits")
    assert torch.equal(data.train_images, again.train_images)


def test_digits_split_is_a_partition():
    from sklearn.datasets import load_digits

    data = datasets.load("digits")
    ours = torch.cat([data.train_images, data.test_images]).flatten(1).double() * (16 / 255)
    theirs = torch.from_numpy(load_digits().data)
    ours, theirs = (sorted(map(tuple, images.round().int().tolist())) for images in (ours, theirs))
    assert ours == theirs
    assert data.test_labels.bincount().min() >= 44


def test_cifar100(cifar100_root):
    from torchvision.datasets import CIFAR100

    data = datasets.load("cifar100", cifar100_root)
    check_against_facts(data)
    official = CIFAR100(str(cifar100_root), train=False)
    assert torch.equal(data.test_images[7].permute(1, 2, 0), torch.from_numpy(official.data[7]))
    assert data.class_names[data.test_labels[7]] == official.classes[official.targets[7]]


def test_root_from_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("INCRLT_DATA", str(tmp_path))
    assert datasets.data_root() == tmp_path
    assert str(datasets.data_root("elsewhere")) == "elsewhere"
    monkeypatch.delenv("INCRLT_DATA")
    assert str(datasets.data_root()) == "data"


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_missing_files_are_listed_with_checksums(name, tmp_path):
    with pytest.raises(UserError) as caught:
        datasets.load(name, tmp_path)
    message = str(caught.value)
    files = {"cifar10": ["data_batch_3", "test_batch", "batches.meta"], "cifar100": ["train", "test", "meta"]}
    for file in files[name]:
        assert f"{file} is missing (md5 " in message
    assert str(tmp_path) in message
    assert "download" in message
    assert "INCRLT_DATA" in message


def test_a_damaged_file_is_named(cifar100_root, tmp_path):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for file in ("train", "meta"):
        (folder / file).symlink_to(cifar100_root / "cifar-100-python" / file)
    content = bytearray((cifar100_root / "cifar-100-python" / "test").read_bytes())
    content[1000] ^= 1
    (folder / "test").write_bytes(content)
    with pytest.raises(UserError, match="test is damaged") as caught:
        datasets.load("cifar100", tmp_path)
    assert "missing" not in str(caught.value)


def test_a_failed_download_is_one_clear_error(monkeypatch, tmp_path):
    import torchvision.datasets.cifar as cifar

    def fail(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(cifar, "download_and_extract_archive", fail)
    with pytest.raises(UserError, match=r"could not be downloaded \(OSError: no route to host\)"):
        datasets.load("cifar100", tmp_path, download=True)


def test_unknown_name():
    with pytest.raises(UserError, match="Did you mean 'cifar100'"):
        datasets.load("cifar-100")
