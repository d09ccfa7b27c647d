"""Compilation of the Triton kernels for GPUs that are not here; :mod:`test_aot` runs this in a process of its own.

Registers, accesses and launches are also compared with a baseline: what grew is named.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest
import torch
import triton
from kernels.broken_kernel import last_tile_sum
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompilationError

from incrlt.kernels import triton_backend
from perf import counts, gate
from perf.aot import compiled, launches

assert os.environ.get("TRITON_INTERPRET", "0") == "0", "interpreted kernels do not compile; see test_aot.py"

GENERATIONS = [75, 80, 86, 89, 90, 100, 120]
"""Turing, Ampere (two), Ada, Hopper, Blackwell (two): compute capability times 10."""

# ------------------------------------------------------------------------------------------- every GPU generation


# The oldest, the newest and the one that the counts are of; a few seconds each, so that the others are for the soak.
ALWAYS = (GENERATIONS[0], 90, GENERATIONS[-1])
CHOSEN = [one if one in ALWAYS else pytest.param(one, marks=pytest.mark.soak) for one in GENERATIONS]


@pytest.mark.parametrize("generation", CHOSEN)
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


# ----------------------------------------------------------------------------------------------- against the baseline


@pytest.fixture(scope="module")
def baseline():
    """Skips before anything is compiled where it is of other versions."""
    baseline = json.loads(counts.BASELINE.read_text())
    try:
        gate.check_alike(baseline["machine"], counts.versions())
    except gate.NotAlikeError as reason:
        pytest.skip(f"the baseline is of other versions: {reason}")
    return baseline


def against(baseline, found):
    return gate.compare(baseline, {"machine": counts.versions(), "counts": found})


def test_no_kernel_needs_more_than_the_baseline(baseline, tmp_path):
    """``python -m perf.counts`` renews it, where a change is meant."""
    lines, compared = against(baseline, {"kernels": counts.of_kernels(tmp_path)})
    assert not lines, "\n".join(lines)
    assert compared == 5 * len(counts.KERNELS)


def test_no_closed_form_makes_more_passes_than_the_baseline(baseline):
    lines, compared = against(baseline, {"closed_form": counts.of_closed_form()})
    assert not lines, "\n".join(lines)
    assert compared > 0
