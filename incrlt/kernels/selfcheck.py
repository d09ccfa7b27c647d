"""Backends show their values on this machine: terms and gradients of a small case against the readable mathematics."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import ModuleType
from typing import Final

import torch
from torch import Tensor

from incrlt.checks import Check
from incrlt.errors import UserError, short
from incrlt.kernels.backends import MODULES, backend_module
from incrlt.kernels.compared import Agreement, Distance, distance, exactly
from incrlt.kernels.spec import TermSpec
from incrlt.kernels.tensors import TermTensors

EXPERTS, BATCH, CLASSES, OLD = 3, 48, 100, 50
"""Size of the case: one block of classes is not full, and there are old classes and new ones."""
SPEC: Final = TermSpec(
    classification=1.0, mutual=0.6, hard_classification=0.5, hard_mutual=0.4, diversity=-0.2, transfer=0.3,
    distillation=0.7, ranking=0.8, num_hard=30, first_class=OLD, num_old=OLD,
)  # fmt: skip
ALLOWED: Final = Agreement(2e-5, {torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3})
"""fp32 leaves some 1e-6 of a term; a gradient is rounded to its type, once."""


def check_backend(
    name: str, device: torch.device, load: Callable[[str], ModuleType] = backend_module
) -> Check:
    """Compare a backend with the reference on a device, in every type it is used in there.

    Args:
        name: ``reference``, ``closed_form`` or ``triton``.
        device: Where to compute.
        load: Returns the backend; a test's stand-in.
    """
    title = f"kernels {name} on {device.type}"
    if name == "triton" and device.type != "cuda":
        return Check(title, "absent", "its kernels need a CUDA device")
    try:
        backend = load(name)
    except ImportError as error:
        missing = name == "triton" and (error.name or "").split(".")[0] == "triton"
        return Check(title, "absent" if missing else "wrong", f"cannot be imported: {short(error)}")
    types = [torch.float32] + ([torch.bfloat16] if device.type == "cuda" else [])
    details, seconds = [], 0.0
    for kind in types:
        try:
            found, seconds = _distance(backend, device, kind)
        except UserError as error:
            return Check(title, "wrong", f"refuses: {short(error)}", seconds)
        except Exception as error:  # a compiler, a driver or a stranger's code may raise anything
            return Check(title, "wrong", f"{type(error).__name__}: {short(error)}", seconds)
        if found.wrong:
            return Check(title, "wrong", f"{found.wrong} in {_type_name(kind)}; {_report(name)}", seconds)
        details.append(f"{_type_name(kind)} within {found.largest:.1e}")
    return Check(title, "ok", ", ".join(details), seconds)


def check_backends(device: torch.device, load: Callable[[str], ModuleType] = backend_module) -> list[Check]:
    """Check every backend but the reference itself."""
    return [check_backend(name, device, load) for name in MODULES if name != "reference"]


def _distance(backend: ModuleType, device: torch.device, kind: torch.dtype) -> tuple[Distance, float]:
    """Return how far a backend is from the reference in fp64, and the seconds of its second call."""
    logits, labels, tensors = _case(device, kind)
    right = exactly(logits, labels, SPEC, tensors)
    backend.terms_and_gradients(logits, labels, SPEC, tensors)
    _wait(device)
    begun = time.perf_counter()
    found = backend.terms_and_gradients(logits, labels, SPEC, tensors)
    _wait(device)
    seconds = time.perf_counter() - begun
    return distance(found, right, SPEC, kind, ALLOWED), seconds


def _case(device: torch.device, kind: torch.dtype) -> tuple[Tensor, Tensor, TermTensors]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    counts = torch.arange(CLASSES, 0, -1).float()
    # Grids that every type holds exactly and without ties in a row: no backend may choose another hardest class.
    cosines = torch.stack([_grid(generator) for _ in range(EXPERTS)]) / 64
    logits = _grid(generator) / 8 * torch.tensor([1.0, 0.5, 0.25]).view(-1, 1, 1)
    if kind == torch.float32:
        logits = 3 * normal(EXPERTS, BATCH, CLASSES)
    labels = torch.randint(CLASSES, (BATCH,), generator=generator)
    labels[0] = -1  # a row that is ignored
    tensors = TermTensors(
        prior=(counts / counts.sum()).log().to(device),
        temperatures=(1 + counts / CLASSES).to(device),
        teacher_logits=normal(EXPERTS, BATCH, OLD).to(kind).to(device),
        cosines=cosines.to(kind).to(device),
    )
    return logits.to(kind).to(device), labels.to(device), tensors


def _grid(generator: torch.Generator) -> Tensor:
    """Return whole numbers around 0 ``[B, C]``, each once in a row."""
    rows = [torch.randperm(CLASSES, generator=generator) for _ in range(BATCH)]
    return (torch.stack(rows) - CLASSES // 2).float()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _type_name(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")


def _report(name: str) -> str:
    return f"set training.kernels: closed_form, and report this with the output of --json ({name})"
