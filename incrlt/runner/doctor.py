"""What a machine has, and whether it computes what it should; nothing here may raise, since it is asked in trouble."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final

import incrlt
from incrlt.checks import Check
from incrlt.errors import short
from incrlt.runner.threads import cores
from incrlt.words import counted, size

if TYPE_CHECKING:  # the doctor also looks at a machine where torch is broken
    import torch

PACKAGES: Final = (
    "torch", "torchvision", "avalanche-lib", "numpy", "pydantic", "pyyaml", "tensorboard", "pillow", "scikit-learn",
)  # fmt: skip
"""Packages that a run needs."""
OPTIONAL: Final = ("triton", "timm")
ENOUGH: Final = 1 << 30
"""Bytes of disk and of memory below which a run is in danger: a checkpoint of ours and the one before it, the images of
CIFAR-100 and torch itself."""
SAME_STEP: Final = 1e-2
"""Difference of weights after a few steps that is allowed, relative to the largest: kernels add up in other orders."""
TINY: Final[dict[str, dict[str, object]]] = {
    "benchmark": {"dataset": "digits", "base_classes": 5, "increment": 5, "imbalance_ratio": 2},
    "model": {"name": "resnet8", "width": 8, "head": "cosine"},
    "strategy": {"name": "lucir"},
    "memory": {"per_class": 5},
    "training": {"epochs": 1, "batch_size": 64, "precision": "fp32"},
}
"""The experiment on which a captured step shows its values."""


@dataclass(frozen=True)
class Findings:
    """All that was found."""

    machine: Mapping[str, str]
    versions: Mapping[str, str | None]
    checks: tuple[Check, ...]

    @property
    def wrong(self) -> list[str]:
        """Names of what is wrong."""
        return [check.name for check in self.checks if check.state == "wrong"]

    def as_json(self) -> dict[str, object]:
        """Return plain data."""
        return {
            "format": 1,
            "machine": dict(self.machine),
            "versions": dict(self.versions),
            "checks": [asdict(check) for check in self.checks],
            "wrong": self.wrong,
        }

    def as_text(self) -> str:
        """Return lines to read."""
        versions = ", ".join(f"{name} {version or 'is not here'}" for name, version in self.versions.items())
        facts = {**self.machine, "versions": versions}
        width = max(map(len, [*facts, *(check.name for check in self.checks)]))
        lines = [f"{'':7}{name:<{width}}  {value}" for name, value in facts.items()]
        for check in self.checks:
            seconds = f" ({check.seconds * 1e3:.1f} ms)" if check.seconds else ""
            lines.append(f"{check.state:<7}{check.name:<{width}}  {check.detail}{seconds}")
        verdict = (
            f"{counted(len(self.wrong), 'thing')} wrong: {', '.join(self.wrong)}"
            if self.wrong
            else "all is well"
        )
        return "\n".join([*lines, verdict])


def examine(data: str | None, out: Path) -> Findings:
    """Look at this machine.

    Args:
        data: Folder of the datasets; None: INCRLT_DATA, else ``data``.
        out: Folder of the run folders.
    """
    looks: dict[str, Callable[[], Iterable[Check]]] = {
        "packages": check_packages,
        "data": lambda: check_data(data),
        "disk": lambda: [check_disk(out)],
        "memory": lambda: [check_memory(available_memory())],
        "kernels": _kernels,
        "captured step": _step,
    }
    checks = [check for name, look in looks.items() for check in guarded(name, look)]
    return Findings(machine(), versions(), tuple(checks))


def guarded(name: str, look: Callable[[], Iterable[Check]]) -> list[Check]:
    """Return what a look found; one that raises is itself what is wrong."""
    try:
        return list(look())
    except Exception as error:  # a library that is broken raises whatever it likes
        return [Check(name, "wrong", f"{type(error).__name__}: {short(error)}")]


def machine() -> dict[str, str]:
    """Return processor, cores, memory and GPUs as plain data."""
    found = cores()
    limit = "" if found.quota is None else f", {found.quota:g} by its container"
    gpus = guarded("gpu", _gpus)
    return {
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": f"{found.total}, {found.allowed} allowed{limit}, {found.busy:.1f} busy",
        "memory": "unknown" if (memory := available_memory()) is None else f"{size(memory)} free",
        "gpu": "; ".join(gpu.detail for gpu in gpus) or "none",
    }


def _gpus() -> Iterable[Check]:
    import torch

    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        yield Check(
            "gpu", "ok", f"{facts.name}, {size(facts.total_memory)}, capability {facts.major}.{facts.minor}"
        )


def versions() -> dict[str, str | None]:
    """Return the versions of what a run uses; None: not installed."""
    names = (*PACKAGES, *OPTIONAL)
    return {
        "incrlt": incrlt.__version__,
        "python": platform.python_version(),
        **{n: _version(n) for n in names},
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def check_packages() -> Iterable[Check]:
    """Tell whether what a run needs is installed, and Avalanche is of the right version."""
    missing = [name for name in PACKAGES if _version(name) is None]
    if missing:
        yield Check(
            "packages", "wrong", f"not installed: {', '.join(missing)}. Run: pip install {' '.join(missing)}"
        )
        return
    import incrlt._compat  # raises where Avalanche is another one

    import incrlt.training.template  # noqa: F401  (and all that it takes)

    yield Check("packages", "ok", f"{len(PACKAGES)} installed, and they can be imported")


def check_data(root: str | None) -> Iterable[Check]:
    """Tell which datasets are here and whole; one that is not here is no fault."""
    from torchvision.datasets import CIFAR10, CIFAR100

    from incrlt.benchmarks import datasets
    from incrlt.benchmarks.folder import prepare_command

    folder = datasets.data_root(root)
    places = {"digits": None, "cifar10": CIFAR10.base_folder, "cifar100": CIFAR100.base_folder}
    for name, place in places.items():
        if place is not None and not (folder / place).exists():
            yield Check(
                f"data {name}", "absent",
                f"not in {folder}; run {prepare_command(name, folder)}, or say where with --data or INCRLT_DATA",
            )  # fmt: skip
            continue
        begun = time.perf_counter()
        try:
            images = datasets.load(name, folder).train_images
        except Exception as error:
            yield Check(f"data {name}", "wrong", short(error))
        else:
            yield Check(f"data {name}", "ok", f"{len(images):,} images", time.perf_counter() - begun)


def check_disk(folder: Path) -> Check:
    """Tell whether the disk of the run folders has space and can be written to."""
    place = folder.expanduser().absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        free = shutil.disk_usage(place).free
    except OSError as error:
        return Check("disk", "wrong", f"{place}: {error.strerror}; choose another folder with --out")
    if not os.access(place, os.W_OK):
        return Check("disk", "wrong", f"{place} cannot be written to; choose another folder with --out")
    if free < ENOUGH:
        return Check(
            "disk", "wrong", f"{size(free)} free in {place}; free some space or choose another with --out"
        )
    return Check("disk", "ok", f"{size(free)} free in {place}")


def check_memory(free: int | None) -> Check:
    """Tell whether there is memory for a run.

    Args:
        free: Bytes; None where the system does not say.
    """
    if free is None:
        return Check("memory", "absent", "the system does not say how much is free")
    enough = free >= ENOUGH
    return Check(
        "memory", "ok" if enough else "wrong", f"{size(free)} free{'' if enough else '; end other programs'}"
    )


def available_memory(place: str = "/proc/meminfo", limit: str = "/sys/fs/cgroup/memory.max") -> int | None:
    """Return the bytes of memory that are free here, or None where the system does not say.

    Args:
        place: The system's account; a test's own.
        limit: The container's limit; ``<limit's folder>/memory.current`` is what it has taken.
    """
    try:
        lines = dict(
            line.split(":", 1) for line in Path(place).read_text(encoding="ascii").splitlines() if ":" in line
        )
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, LookupError):
        return None
    try:
        most = int(Path(limit).read_text(encoding="ascii"))
        taken = int(Path(limit).with_name("memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):  # no container, or "max"
        return free
    return max(0, min(free, most - taken))


def _devices() -> list[torch.device]:
    import torch

    gpus = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    return [torch.device("cpu"), *gpus]


def _kernels() -> Iterable[Check]:
    from incrlt.kernels.selfcheck import check_backends

    for device in _devices():
        yield from check_backends(device)


def _step() -> Iterable[Check]:
    gpus = [device for device in _devices() if device.type == "cuda"]
    if not gpus:
        yield Check("captured step", "absent", "graphs need a CUDA device")
    for device in gpus:
        yield check_step(lambda step, device=device: trained(step, device))  # type: ignore[misc]


def check_step(train: Callable[[str], list[torch.Tensor]]) -> Check:
    """Compare a captured step with the eager one: a few steps from the same weights on the same images.

    Args:
        train: Trains with a value of ``training.step`` and returns the weights; a test's stand-in.
    """
    title = "captured step"
    try:
        eager = train("eager")
        begun = time.perf_counter()
        captured = train("graph")
        seconds = time.perf_counter() - begun
        if [weight.shape for weight in captured] != [weight.shape for weight in eager]:
            return Check(title, "wrong", f"trains other weights than the eager step; {_REPORT}")
        pairs = zip(captured, eager, strict=True)
        largest = max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-3)) for a, b in pairs)
    except Exception as error:  # out of memory, a capture that fails, a driver
        return Check(title, "wrong", f"{type(error).__name__}: {short(error)}; {_REPORT}")
    if not largest <= SAME_STEP:
        return Check(title, "wrong", f"its weights are off by {largest:.1e}; {_REPORT}")
    return Check(title, "ok", f"weights within {largest:.1e}", seconds)


_REPORT: Final = "set training.step: eager, and report this with the output of --json"


def trained(step: str, device: torch.device) -> list[torch.Tensor]:
    """Train the embedded digits for a few steps and return the weights in fp64 on the CPU."""
    from incrlt.benchmarks import protocols, streams
    from incrlt.experiment import schema
    from incrlt.runner.build import build_strategy, load_data

    experiment = schema.parse({**TINY, "training": {**TINY["training"], "step": step}})
    data = load_data(experiment)
    resolved = protocols.resolve(experiment.protocol(), data.train_labels.numpy())
    strategy = build_strategy(experiment, data.train_images.shape[1], device, [])
    strategy.model.normalisation = {"mean": list(data.mean), "std": list(data.std)}
    for experience in streams.build(data, resolved).train_stream:
        strategy.train(experience)
    return [parameter.detach().double().cpu() for parameter in strategy.model.parameters()]
