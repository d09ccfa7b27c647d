"""The Triton kernels on a CUDA device: all cases, full sizes, no wait of the host, graphs, streams, devices."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from kernels.agreement import check, run, tensors_of
from kernels.cases import CASES, EVERY, NCL, RIDE, Case, build

from incrlt import losses
from incrlt.kernels import TermSpec, TermTensors, choose_backend, closed_form, expert_loss, triton_backend
from incrlt.kernels._triton import heuristics

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
BY_NAME = {case.name: case for case in CASES}


def large(name: str, spec: TermSpec, shape: tuple[int, int, int], **changes: object) -> Case:
    num_old = shape[2] // 2
    spec = replace(spec, num_old=num_old, first_class=num_old, num_hard=min(100, shape[2]))
    return replace(BY_NAME["every"], name=name, spec=spec, shape=shape, num_old=num_old, **changes)  # type: ignore[arg-type]


LARGE = [
    large("ncl-cifar", NCL, (3, 128, 100)),
    large("every-1000", EVERY, (3, 32, 1000)),
    large("every-padded", EVERY, (3, 16, 8144), unseen=2),
    large("every-8142-bf16", EVERY, (3, 8, 8142), dtype=torch.bfloat16),
    large("every-k6-8142", EVERY, (6, 4, 8142), ignored="some"),
    large("every-k8-32768", EVERY, (8, 2, 32_768)),
    large("ride-k8-4096-fp16", RIDE, (8, 16, 4096), dtype=torch.float16),
]


@pytest.fixture
def no_wait():
    """Make every wait of the host for the device an error."""
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


# ----------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("case", [*CASES, *LARGE], ids=lambda case: case.name)
def test_terms_and_gradients(case):
    inputs = build(case, "cuda")
    before = [tensor.clone() for tensor in tensors_of(inputs)]
    found = run(triton_backend, inputs)
    check(case, inputs, found)
    assert all(torch.equal(*pair) for pair in zip(tensors_of(inputs), before, strict=True))
    again = run(triton_backend, inputs)
    for left, right in zip(found, again, strict=True):
        assert left is None or torch.equal(left, right), "sums in an order that changes"


@pytest.mark.skipif(
    shutil.which("compute-sanitizer") is None, reason="compute-sanitizer, of the CUDA toolkit, is not on PATH"
)
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_sanitizer_finds_nothing(tool):
    """No access out of bounds and no race, in rows that fill a block and rows that do not."""
    cases = ("ncl-cifar", "every-padded")
    nodes = [f"{__file__}::test_terms_and_gradients[{name}]" for name in cases]
    done = subprocess.run(
        [
            "compute-sanitizer",
            "--tool",
            tool,
            "--error-exitcode",
            "9",
            sys.executable,
            "-m",
            "pytest",
            "-q",
            *nodes,
        ],
        env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},  # else a neighbour's memory is no error
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert f"{len(cases)} passed" in done.stdout


@pytest.mark.parametrize("block", [64, 1024])
@pytest.mark.parametrize("name", ["every-1000", "ncl-cifar", "every-padded"])
def test_tiles_of_any_size(name, block, monkeypatch):
    monkeypatch.setattr(
        heuristics,
        "main_launch",
        lambda experts, classes, terms: heuristics.Launch(
            min(block, heuristics.power_of_two(classes)), heuristics.power_of_two(classes), 4
        ),
    )
    case = next(case for case in LARGE if case.name == name)
    inputs = build(case, "cuda")
    check(case, inputs, run(triton_backend, inputs))


def test_full_size_keeps_what_must_hold():
    """Softmax gradients of a row add up to nothing; agreement costs nothing; every element is written."""
    shape = (3, 4096, 8144)
    logits = 3 * torch.randn(shape, device="cuda")
    labels = torch.randint(0, 8142, shape[1:2], device="cuda")
    prior = torch.randn(8144, device="cuda")
    prior[8142:] = -torch.inf
    terms, gradient, _ = triton_backend.terms_and_gradients(logits, labels, NCL, TermTensors(prior=prior))
    assert gradient.sum(-1).abs().max() < 1e-5 * gradient.abs().sum(-1).max()
    assert not gradient[..., 8142:].any()
    rows = slice(0, 4096, 512)
    expected_terms, expected, _ = closed_form.terms_and_gradients(
        logits[:, rows].double(), labels[rows], NCL, TermTensors(prior=prior.double())
    )
    torch.testing.assert_close(512 * gradient[:, rows].double(), expected, rtol=1e-4, atol=1e-7)
    assert terms.isfinite().all()
    turned, *_ = triton_backend.terms_and_gradients(logits.flip(0), labels, NCL, TermTensors(prior=prior))
    torch.testing.assert_close(turned, terms, rtol=1e-5, atol=1e-6)
    same, *_ = triton_backend.terms_and_gradients(
        logits[:1].expand(shape),
        labels,
        replace(NCL, classification=0.0, hard_classification=0.0),
        TermTensors(),
    )
    assert same.abs().max() < 1e-5
    assert expected_terms.isfinite().all()


def test_less_forget():
    teacher = torch.randn(3, 512, 2048, device="cuda")
    features = (teacher + torch.randn_like(teacher)).requires_grad_()
    expected = losses.less_forget(features, teacher)
    expected.backward()
    loss, gradient = triton_backend.less_forget(features, teacher)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, features.grad, rtol=1e-4, atol=1e-9)


# -------------------------------------------------------------------------------------------------- through autograd


def _step(inputs, mixture, kernels):
    """Return the gradients of a mixture of terms."""
    logits = inputs.logits.detach().requires_grad_()
    cosines = inputs.tensors.cosines
    cosines = None if cosines is None else cosines.detach().requires_grad_()
    tensors = replace(inputs.tensors, cosines=cosines)
    terms = expert_loss(logits, inputs.labels, inputs.spec, tensors, kernels=kernels)
    total = (torch.stack(list(terms.values())) * mixture).sum()
    total.backward()
    return logits.grad, None if cosines is None else cosines.grad


@pytest.mark.parametrize(
    "name", ["ncl", "ride", "shike", "lucir", "lucir-ride", "ncl-100-bf16", "shike-fp16"]
)
@pytest.mark.parametrize("mixture", ["ones", "uniform", "mixed"])
def test_backward(name, mixture):
    inputs = build(BY_NAME[name], "cuda")
    number = len(inputs.spec.names)
    factors = {
        "ones": torch.ones(number),
        "uniform": torch.full((number,), 0.25),
        "mixed": torch.linspace(-1.0, 2.0, number),
    }[mixture].cuda()
    assert choose_backend("auto", inputs.logits) == "triton"
    loose = inputs.logits.dtype != torch.float32
    found, expected = (_step(inputs, factors, kernels) for kernels in ("triton", "closed_form"))
    for left, right in zip(found, expected, strict=True):
        if left is not None:
            torch.testing.assert_close(
                left, right, rtol=2e-2 if loose else 1e-4, atol=1e-3 if loose else 1e-6
            )


def test_a_second_backward_is_refused():
    inputs = build(BY_NAME["ncl"], "cuda")
    logits = inputs.logits.requires_grad_()
    total = sum(expert_loss(logits, inputs.labels, inputs.spec, inputs.tensors).values())
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


# --------------------------------------------------------------------------------------------------- waits and graphs


@pytest.mark.parametrize("name", ["every", "ncl", "ride", "shike", "lucir", "edge-all_ignored"])
def test_the_host_never_waits(name, no_wait):
    torch.cuda.set_sync_debug_mode("default")
    inputs = build(replace(BY_NAME[name], upstream=False), "cuda")
    mixture = torch.linspace(0.5, 2.0, len(inputs.spec.names), device="cuda")
    _step(inputs, mixture, "triton")  # compiles
    torch.cuda.set_sync_debug_mode("error")
    _step(inputs, mixture, "triton")
    run(triton_backend, inputs)
    triton_backend.less_forget(inputs.logits, inputs.logits)


def test_the_mode_notices_a_wait(no_wait):
    with pytest.raises(RuntimeError, match="synchroniz"):
        torch.ones(1, device="cuda").item()


@pytest.mark.parametrize("name", ["every", "lucir-ride", "ncl-100-bf16"])
def test_a_captured_graph_follows_its_inputs(name):
    """Forward and backward are captured once; logits, labels and upstream gradients change between replays."""
    inputs = build(BY_NAME[name], "cuda")
    mixture = torch.ones(len(inputs.spec.names), device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            _step(inputs, mixture, "triton")
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = _step(inputs, mixture, "triton")
    for seed in (1, 2, 3):
        torch.manual_seed(seed)
        inputs.logits.copy_(torch.randn_like(inputs.logits))
        inputs.labels.copy_(inputs.labels.roll(1))
        mixture.copy_(torch.full_like(mixture, seed) if seed < 3 else torch.linspace(0, 1, len(mixture)))
        graph.replay()
        for left, right in zip(captured, _step(inputs, mixture, "triton"), strict=True):
            assert left is None or torch.equal(left, right)


def test_another_stream_than_the_default():
    """Work of the stream before it, and nothing else, is waited for."""
    inputs = build(BY_NAME["every"], "cuda")
    expected = run(triton_backend, inputs)
    kept = inputs.logits.clone()
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        inputs.logits.fill_(torch.nan)
        torch.cuda._sleep(20_000_000)
        inputs.logits.copy_(kept)
        found = run(triton_backend, inputs)
    stream.synchronize()
    for left, right in zip(found, expected, strict=True):
        assert torch.equal(left, right)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_tensors_of_another_device_than_the_current_one():
    expected = run(triton_backend, build(BY_NAME["every"], "cuda:0"))
    with torch.cuda.device(0):
        found = run(triton_backend, build(BY_NAME["every"], "cuda:1"))
    for left, right in zip(found, expected, strict=True):
        assert left.device.index == 1
        assert torch.equal(left.cpu(), right.cpu())


def test_under_torch_compile():
    inputs = build(BY_NAME["ncl"], "cuda")

    def step(logits):
        return sum(expert_loss(logits, inputs.labels, inputs.spec, inputs.tensors).values())

    leaves = [inputs.logits.clone().requires_grad_() for _ in range(2)]
    step(leaves[0]).backward()
    torch.compile(step, fullgraph=True, backend="aot_eager")(leaves[1]).backward()
    torch.testing.assert_close(leaves[1].grad, leaves[0].grad)
