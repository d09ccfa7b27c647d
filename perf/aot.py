"""Compilation of the Triton kernels for GPUs that are not here, and what the machine code needs.

The launches are those the backend would make, on tensors of the device ``meta``, which have shapes and no memory.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from incrlt.kernels import TERMS, triton_backend
from incrlt.kernels.spec import TermSpec
from incrlt.kernels.tensors import TermTensors

POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int64: "*i64"}
ACCESS = re.compile(r"(ld|st)\.global(?:\.\w+(?:::\w+)*)*?(?:\.v(\d))?\.[bfsu](\d+)")
"""A load or store of PTX: how many values, of how many bits."""

NCL = TermSpec(classification=1.0, mutual=0.6, hard_classification=1.0, hard_mutual=0.6)
SHIKE = TermSpec(classification=1.0, mutual=0.02, transfer=0.1, mutual_prior=False)
METHODS: dict[str, tuple[TermSpec, tuple[str, ...]]] = {
    "plain": (TermSpec(classification=1.0), ()),
    "balanced": (TermSpec(classification=1.0), ("prior",)),
    "ncl": (NCL, ("prior",)),
    "ride": (
        TermSpec(classification=1.0, diversity=-0.45),
        ("margins", "scales", "class_weights", "temperatures"),
    ),
    "shike": (SHIKE, ()),
    "shike-balanced": (SHIKE, ("prior",)),
    "lucir": (TermSpec(classification=1.0, distillation=1.5, ranking=1.25), ()),
    "lucir-ncl": (replace(NCL, distillation=1.0), ("prior",)),
    "every": (
        TermSpec(**dict.fromkeys(TERMS, 1.0)),  # type: ignore[arg-type]
        ("prior", "margins", "scales", "class_weights", "temperatures"),
    ),
}
"""Terms, and the small tensors they are given."""


@dataclass(frozen=True)
class Compiled:
    """Machine code and what it needs.

    Attributes:
        ptx: Assembly.
        registers: Per thread.
        stack: Bytes per thread: what did not fit into registers.
    """

    ptx: str
    registers: int
    stack: int

    def count(self, access: str) -> int:
        """Count 16-byte accesses, ``ld`` or ``st``."""
        return len(re.findall(rf"{access}\.global(?:\.\w+(?:::\w+)*)*\.v4", self.ptx))

    def bytes_of(self, access: str) -> int:
        """Return bytes that the ``ld`` or ``st`` of the text move per thread; what is in a loop counts once."""
        found = [(number or 1, bits) for kind, number, bits in ACCESS.findall(self.ptx) if kind == access]
        return sum(int(number) * int(bits) // 8 for number, bits in found)


def compiled(launch: triton_backend.Launch, generation: int, folder: Path) -> Compiled:
    """Compile a launch as Triton would at its first call, all pointers aligned to 16 bytes.

    Args:
        launch: From :func:`launches`.
        generation: Compute capability times 10.
        folder: For a file in between.
    """
    kernel = triton_backend.kernel(launch.kernel)
    signature, constants, attributes = {}, {}, {}
    for place, parameter in enumerate(kernel.params):
        value = launch.arguments[parameter.name]
        general = parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1 and not general):
            signature[parameter.name], constants[(place,)] = "constexpr", value
            continue
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = POINTERS[value.dtype]
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
        if isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0 and not general):
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    code = triton.compile(source, target=GPUTarget("cuda", generation, 32), options=launch.options)
    return Compiled(code.asm["ptx"], *_resources(code.asm["cubin"], folder))


def _resources(cubin: bytes, folder: Path) -> tuple[int, int]:
    """Return registers and stack as the disassembler that comes with Triton reads them."""
    file = folder / "kernel.cubin"
    file.write_bytes(cubin)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    command = [str(tool), "--dump-resource-usage", str(file)]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (registers,) = re.findall(r"REG:(\d+)", usage)
    (stack,) = re.findall(r"STACK:(\d+)", usage)
    return int(registers), int(stack)


def launches(
    method: str,
    num_experts: int,
    num_classes: int,
    dtype: torch.dtype = torch.float32,
    gradient: bool = True,
    rescale: bool = False,
) -> dict[str, triton_backend.Launch]:
    """Return the launches of a call by kernel, in their order.

    Args:
        method: Key of :data:`METHODS`.
        num_experts: K.
        num_classes: C, about half of them old.
        dtype: Of the logits.
        gradient: With the gradient.
        rescale: Of the backward pass for an upstream other than ones.
    """
    spec, given = METHODS[method]
    num_old = num_classes // 32 * 16
    spec = replace(spec, num_hard=30, num_old=num_old, first_class=num_old)

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    shape = (num_experts, 256, num_classes)
    sizes = {"scales": num_experts}
    tensors = TermTensors(
        **{name: empty(sizes.get(name, num_classes)) for name in given},
        teacher_logits=empty(*shape[:2], num_old, dtype=dtype) if spec.distillation else None,
        cosines=empty(*shape, dtype=dtype) if spec.ranking else None,
    )
    number = len(spec.names)
    call = triton_backend._Call(
        empty(*shape, dtype=dtype),
        empty(shape[1], dtype=torch.int64),
        spec,
        tensors,
        empty(number) if rescale else None,
    )
    values = None if rescale else empty(number, shape[1])
    target = empty(*shape, dtype=dtype) if gradient else None
    found = [call.factors(), *call.main(values, target, rescale), *call.ranking(values, target, rescale)]
    found += [] if values is None else [call.sums(values, empty(number))]
    return {launch.kernel: launch for launch in found}
