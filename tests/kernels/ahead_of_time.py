"""Compilation of the Triton kernels for GPUs that are not here; :mod:`test_aot` runs this in a process of its own.

The launches are those the backend would make, on tensors of the device ``meta``, which have shapes and no memory.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import triton
from kernels.broken_kernel import last_tile_sum
from kernels.cases import EVERY, LUCIR, NCL, RIDE, SHIKE
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompilationError

from incrlt.kernels import triton_backend
from incrlt.kernels.spec import TermSpec
from incrlt.kernels.tensors import TermTensors

assert os.environ.get("TRITON_INTERPRET", "0") == "0", "interpreted kernels do not compile; see test_aot.py"

GENERATIONS = [75, 80, 86, 89, 90, 100, 120]
"""Turing, Ampere (two), Ada, Hopper, Blackwell (two): compute capability times 10."""
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int64: "*i64"}


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


def compiled(launch: triton_backend.Launch, generation: int, folder: Path) -> Compiled:
    """Compile a launch as Triton would at its first call, all pointers aligned to 16 bytes."""
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


METHODS = {
    "plain": (TermSpec(classification=1.0), ()),
    "balanced": (TermSpec(classification=1.0), ("prior",)),
    "ncl": (NCL, ("prior",)),
    "ride": (RIDE, ("margins", "scales", "class_weights", "temperatures")),
    "shike": (SHIKE, ()),
    "shike-balanced": (SHIKE, ("prior",)),
    "lucir": (LUCIR, ()),
    "lucir-ncl": (replace(NCL, distillation=1.0), ("prior",)),
    "every": (EVERY, ("prior", "margins", "scales", "class_weights", "temperatures")),
}


def launches(
    method: str,
    num_experts: int,
    num_classes: int,
    dtype: torch.dtype = torch.float32,
    gradient: bool = True,
    rescale: bool = False,
) -> dict[str, triton_backend.Launch]:
    """Return the launches of a call by kernel."""
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


# ------------------------------------------------------------------------------------------- every GPU generation


@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_generation(generation, tmp_path):
    """A row in registers, a row in tiles and half precision; the small kernels on the oldest and the newest."""
    wanted = {
        "in registers": launches("ncl", 3, 112)["expert_loss"],
        "in tiles": launches("ride", 3, 8144, torch.bfloat16)["expert_loss"],
    }
    if generation in (GENERATIONS[0], GENERATIONS[-1]):
        wanted |= launches("lucir", 1, 1008, torch.bfloat16)
    for name, launch in wanted.items():
        assert compiled(launch, generation, tmp_path).stack == 0, name


@pytest.mark.parametrize("generation", [75, 90])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_rescaling_compiles(generation, dtype, tmp_path):
    launch = launches("shike", 3, 1008, dtype, rescale=True)["expert_loss"]
    assert compiled(launch, generation, tmp_path).stack == 0


# ----------------------------------------------------------------------------------------- sizes chosen by the rules

RULES = [
    # method, experts, classes, one tile, registers
    ("plain", 1, 112, True, 64),
    ("balanced", 3, 8144, True, 128),
    ("ncl", 3, 4096, True, 128),
    ("ncl", 3, 8144, False, 128),
    ("ncl", 6, 1008, True, 224),
    ("ride", 3, 112, True, 128),
    ("ride", 6, 2032, True, 128),
    ("shike", 3, 4096, False, 128),
    ("shike-balanced", 3, 112, True, 160),
    ("lucir", 1, 4096, True, 64),
    ("lucir-ncl", 3, 112, True, 192),
    ("every", 3, 1008, True, 255),
]


@pytest.mark.parametrize(("method", "experts", "classes", "one_tile", "registers"), RULES)
def test_no_spills_and_wide_accesses(method, experts, classes, one_tile, registers, tmp_path):
    """Classes padded to a multiple of 16. Two programs of 8 warps share a multiprocessor up to 128 registers."""
    launch = launches(method, experts, classes)["expert_loss"]
    assert (launch.arguments["BLOCK"] == launch.arguments["WHOLE"]) == one_tile
    code = compiled(launch, 90, tmp_path)
    assert code.stack == 0
    assert code.registers <= registers
    assert code.count("ld") >= experts and code.count("st") >= experts


def test_classes_that_are_not_padded_cost_the_wide_accesses(tmp_path):
    code = compiled(launches("ncl", 3, 100)["expert_loss"], 90, tmp_path)
    assert code.count("ld") == code.count("st") == 0


def test_without_a_gradient_less_is_needed(tmp_path):
    full = compiled(launches("ncl", 3, 1008)["expert_loss"], 90, tmp_path)
    less = compiled(launches("ncl", 3, 1008, gradient=False)["expert_loss"], 90, tmp_path)
    assert less.count("st") == 0 and less.registers < full.registers


def test_growing_within_a_power_of_two_compiles_nothing_new():
    """One experience adds classes, O and the first new class move: the same machine code serves."""

    def key(classes):
        launch = launches("every", 3, classes)["expert_loss"]
        kernel = triton_backend.kernel("expert_loss")
        specialized = {
            parameter.name: launch.arguments[parameter.name]
            for parameter in kernel.params
            if parameter.is_constexpr
        }
        divisible = {
            parameter.name: launch.arguments[parameter.name] % 16 == 0
            for parameter in kernel.params
            if type(launch.arguments[parameter.name]) is int
            and not parameter.is_constexpr
            and not parameter.do_not_specialize
        }
        return specialized, divisible, launch.warps

    assert key(80) == key(96) == key(128)


# ------------------------------------------------------------------------------------------------------ by contrast


def test_the_compiler_refuses_what_the_interpreter_accepts():
    signature = {"numbers": "*fp32", "result": "*fp32", "N": "i32", "BLOCK": "constexpr"}
    source = ASTSource(last_tile_sum, signature, {(3,): 16})
    with pytest.raises(CompilationError, match="tile"):
        triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": True})


def test_too_large_a_tile_is_noticed(tmp_path):
    """The check of spills can fail: 24k logits of all terms in registers."""
    launch = launches("ncl", 3, 8144)["expert_loss"]
    launch = replace(launch, arguments={**launch.arguments, "BLOCK": launch.arguments["WHOLE"]}, warps=16)
    assert compiled(launch, 90, tmp_path).stack > 0
