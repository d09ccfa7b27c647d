"""Synthetic run folders: the files a run writes, with plausible numbers and no training."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

import incrlt
from incrlt.metrics import load_records, save_classes, save_confusions, write_results
from incrlt.metrics.evaluation import BINS, MILLION, save_evaluations

SIZES = (50, *[5] * 10)


def images_of(num_classes: int, generator: np.random.Generator) -> np.ndarray:
    """Exponential class sizes 500 -> 5 in a shuffled order."""
    images = np.array([int(500 * 0.01 ** (index / max(1, num_classes - 1))) for index in range(num_classes)])
    return generator.permutation(images)


def confusion(seen: int, ages: np.ndarray, images: np.ndarray, skill: float, generator) -> np.ndarray:
    """Counts of 50 test images per class: rare and old classes fare worse, errors go to new ones."""
    right = np.clip(skill * (images[:seen] / 500) ** 0.25 * 0.93 ** ages[:seen], 0.02, 0.98)
    pull = (images[:seen] / 500) ** 0.5 + 2.0 * (ages[:seen] == 0)
    chances = np.tile(pull, (seen, 1))
    np.fill_diagonal(chances, 0)
    sums = chances.sum(axis=1, keepdims=True)
    chances = chances / np.where(sums > 0, sums, 1) * (1 - right[:, None])
    chances[np.arange(seen), np.arange(seen)] = right if seen > 1 else 1
    return generator.multinomial(50, chances / chances.sum(axis=1, keepdims=True))


def evaluation(counts: np.ndarray, num_experts: int, generator) -> dict[str, np.ndarray]:
    """What one evaluation records beyond its counts: a network that is surer than it is right."""
    right, tested = np.diag(counts), counts.sum(axis=1)
    confidence = np.zeros((len(counts), 3, BINS), dtype=np.int64)
    for bin_, share in ((8, 0.4), (14, 0.6)):
        images = np.round(share * tested).astype(int)
        sure = (bin_ + 0.5) / BINS
        confidence[:, :, bin_] = np.stack([images, share * right, images * sure * MILLION], axis=1)
    alone = generator.binomial(tested[:, None], 0.8 * (right / tested)[:, None], (len(counts), num_experts))
    together = np.minimum(tested[:, None], alone + np.arange(num_experts))
    differ = np.repeat(generator.binomial(tested, 0.4)[:, None, None], num_experts, axis=1)
    differ = np.repeat(differ, num_experts, axis=2) * (1 - np.eye(num_experts, dtype=int))
    return {
        "confidence_cnn": confidence, "right": np.stack([alone, together], axis=1), "disagree": differ,
        "macs": 40_000_000 + 30_000_000 * np.arange(num_experts), "memory": np.minimum(tested, 20),
    }  # fmt: skip


def log_lines(sizes, epochs: int, done: int) -> list[dict]:
    """The events of ``done`` experiences with ``epochs`` epochs each and a second stage."""
    lines = [{"event": "start", "time": 1_760_000_000.0}]
    for t in range(done):
        for epoch in range(epochs):
            terms = {"ce": 3.2 * 0.93**epoch + 0.4}
            if t:
                terms |= {"less_forget": 1.1 * 0.98**epoch, "ranking": 0.3 * 0.9**epoch}
            lines.append({
                "event": "epoch", "experience": t, "stage": "train", "epoch": epoch, "epochs": epochs,
                "lr": 0.1 * 0.1 ** (epoch // max(1, epochs // 3)), "terms": terms,
                "loss": sum(terms.values()),
                "images_per_second": 2900.0 + 10 * t, "seconds": 1.4,
            })  # fmt: skip
        lines.append({
            "event": "experience", "experience": t, "train_seconds": 1.4 * epochs, "eval_seconds": 2.2,
            "classes_seen": sum(sizes[: t + 1]), "memory_images": 17 * sum(sizes[: t + 1]),
        })  # fmt: skip
    return lines


def write_run(
    root: Path,
    experiment: str = "cifar100lt_10tasks",
    *,
    sizes=SIZES,
    done: int | None = None,
    readouts=("cnn", "nme"),
    epochs: int = 20,
    seed: int = 0,
    method: str = "LUCIR+LWS",
    protocol: str = "lfh-shuffled-10",
    protocol_hash: str = "1a2b3c4d5e6f",
    skill: float = 0.8,
    num_experts: int = 0,
    **rule,
) -> Path:
    """Write a run folder; ``done`` experiences of ``sizes``, unfinished where fewer.

    Without ``num_experts`` it is one of an older version, which recorded counts alone.
    """
    generator = np.random.default_rng(seed)
    done = len(sizes) if done is None else done
    num, experience = sum(sizes), np.repeat(np.arange(len(sizes)), sizes)
    images = images_of(num, np.random.default_rng(1993))
    folder = root / experiment / f"{protocol_hash[:8]}-0f0e0d0c-s{seed}"
    folder.mkdir(parents=True)
    seen = np.cumsum(sizes)[:done]
    confusions = {
        readout: [
            confusion(n, np.maximum(t - experience, 0), images, skill - 0.05 * index, generator)
            for t, n in enumerate(seen)
        ]
        for index, readout in enumerate(readouts)
    }
    save_confusions(folder / "confusions.npz", confusions)
    if num_experts:
        steps = {t: evaluation(c, num_experts, generator) for t, c in enumerate(confusions["cnn"])}
        labels = np.repeat(np.arange(seen[-1]), 10)
        wrong = generator.random(labels.size) < 0.5
        answers = {"labels": labels, "predicted_cnn": np.where(wrong, generator.permutation(labels), labels)}
        save_evaluations(folder / "evaluations.npz", steps, answers)
    save_classes(
        folder / "classes.json", experience, images, [f"class {index}" for index in range(num)], range(num)
    )
    described = {
        "name": protocol, "dataset": "cifar100", "num_classes": num, "classes_per_experience": list(sizes),
        "class_order": list(range(num)), "profile": "exponential", "imbalance_ratio": 100.0, "image_seed": 0,
        "holdout": "none", "memory": {"per_class": 20, "selection": "herding"}, "augmentation": "crop-flip",
        "hash": protocol_hash, "experiences": [
            {"experience": t, "classes": np.flatnonzero(experience == t).tolist(),
             "images": int(images[experience == t].sum())} for t in range(len(sizes))
        ],
    } | rule  # fmt: skip
    config = {
        "benchmark": {"dataset": "cifar100", "protocol": protocol, "imbalance_ratio": 100},
        "model": {"name": "resnet32"}, "strategy": {"name": "lucir", "less_forget": 5.0},
        "training": {"epochs": epochs, "batch_size": 128}, "seed": {"all": seed},
    }  # fmt: skip
    environment = {
        "python": "3.11.2", "torch": "2.15.0", "torchvision": "0.30.0", "avalanche": "0.6.0",
        "numpy": "2.4.6",
        "incrlt": incrlt.__version__, "device": "cpu", "precision": "bf16", "threads": 2, "git_commit": "0123456789ab",
        "git_dirty": True,
        "platform": "Linux", "command": f"python -m incrlt.run experiments/{experiment}.yaml",
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "protocol.json").write_text(json.dumps(described))
    (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "log.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in log_lines(sizes, epochs, done))
    )
    if done == len(sizes):
        write_results(folder, load_records(folder), {"method": method, "protocol": protocol})
        (folder / "DONE").touch()
    return folder


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Path]:
    """Write a synthetic run folder under a root; see :func:`write_run`."""
    return write_run


WRONG = [None, 1, -2.5, "x", [], {}, [None], {"a": None}, True]


def spoilt(value, generator: random.Random):
    """Replace some values by others of any type, and leave out some keys, as another version may write them."""
    if generator.random() < 0.08:
        return generator.choice(WRONG)
    if isinstance(value, dict):
        return {k: spoilt(inner, generator) for k, inner in value.items() if generator.random() < 0.97}
    if isinstance(value, list):
        return [spoilt(inner, generator) for inner in value]
    return value


def spoil_run(folder: Path, generator: random.Random, names) -> None:
    """Spoil the named JSON files of a run, its configuration and the lines of its log."""
    for name in names:
        content = json.loads((folder / name).read_text())
        content = {key: spoilt(inner, generator) for key, inner in content.items()}
        (folder / name).write_text(json.dumps(content))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(spoilt(config, generator)))
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    text = "".join(json.dumps(spoilt(line, generator)) + "\n" for line in lines)
    (folder / "log.jsonl").write_text(text)


@pytest.fixture(scope="session")
def spoil() -> Callable[..., None]:
    """Spoil the files of a run; see :func:`spoil_run`."""
    return spoil_run
