"""The doctor is told lies by stand-ins, and does not believe them."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from incrlt import doctor as command
from incrlt.checks import Check
from incrlt.kernels import closed_form
from incrlt.kernels.selfcheck import SPEC, check_backend, check_backends
from incrlt.runner import doctor

CPU = torch.device("cpu")


def stand_in(change):
    """Return a loader of a backend that computes right and then changes its answer."""

    def terms_and_gradients(*arguments):
        return change(*closed_form.terms_and_gradients(*arguments))

    return lambda name: SimpleNamespace(terms_and_gradients=terms_and_gradients)


def scaled(tensor: torch.Tensor, place: tuple[int, ...], factor: float) -> torch.Tensor:
    out = tensor.clone()
    out[place] *= factor
    return out


def nan_in(tensor: torch.Tensor) -> torch.Tensor:
    out = tensor.clone()
    out.view(-1)[-1] = torch.nan
    return out


def row(gradient: torch.Tensor) -> torch.Tensor:
    out = gradient.clone()
    out[1, 7] = 0  # one row of one expert was left out
    return out


LIARS = {
    "a term": (lambda t, g, c: (scaled(t, (3,), 1.001), g, c), "its term hard_mutual is off by"),
    "a NaN": (lambda t, g, c: (nan_in(t), g, c), "its term ranking is off by nan"),
    "a term too few": (lambda t, g, c: (t[:-1], g, c), "it gives 7 terms for 8"),
    "a gradient": (lambda t, g, c: (t, g * 1.01, c), "its gradient of the logits is off by"),
    "the other gradient": (lambda t, g, c: (t, g, -c), "its gradient of the cosines is off by"),
    "a row": (lambda t, g, c: (t, row(g), c), "its gradient of the logits is off by"),
    "no gradient": (lambda t, g, c: (t, None, c), "its gradient of the logits is not there"),
    "a NaN in a gradient": (lambda t, g, c: (t, g, nan_in(c)), "its gradient of the cosines is off by nan"),
}


def test_backends_that_compute_right_are_told_so():
    found = {check.name: check for check in check_backends(CPU)}
    assert found["kernels closed_form on cpu"].state == "ok"
    assert found["kernels closed_form on cpu"].seconds > 0
    assert found["kernels triton on cpu"].state == "absent"
    assert check_backend("reference", CPU).state == "ok"
    assert len(SPEC.names) == 8  # every term takes part


@pytest.mark.parametrize("lie", LIARS)
def test_a_backend_that_lies_is_found_out(lie):
    change, reason = LIARS[lie]
    check = check_backend("closed_form", CPU, stand_in(change))
    assert check.state == "wrong" and check.detail.startswith(reason)
    assert "set training.kernels: closed_form, and report this" in check.detail


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (RuntimeError("PassManager::run failed\nlong text"), "RuntimeError: PassManager::run failed"),
        (torch.OutOfMemoryError("CUDA out of memory"), "OutOfMemoryError: CUDA out of memory"),
        (KeyError("sm_120"), "KeyError: 'sm_120'"),
    ],
)
def test_a_backend_that_raises_is_one_line(failure, said):
    def raises(*_):
        raise failure

    check = check_backend("closed_form", CPU, lambda name: SimpleNamespace(terms_and_gradients=raises))
    assert (check.state, check.detail) == ("wrong", said)


def test_a_backend_that_is_not_there():
    def missing(name):
        raise ModuleNotFoundError("No module named 'triton'", name="triton.language")

    def broken(name):
        raise ImportError("libcuda.so.1: cannot open shared object file")

    gpu = SimpleNamespace(type="cuda")
    assert check_backend("triton", gpu, missing).state == "absent"  # it is optional
    assert check_backend("closed_form", CPU, missing).state == "wrong"
    assert check_backend("triton", gpu, broken).state == "wrong"


# ------------------------------------------------------------------------------------ the captured step


def weights(shift: float = 0.0) -> list[torch.Tensor]:
    return [torch.ones(3, 2, dtype=torch.float64) + shift, torch.full((4,), -2.0, dtype=torch.float64)]


@pytest.mark.parametrize(
    ("captured", "state", "said"),
    [
        (lambda: weights(1e-4), "ok", "weights within 1.0e-04"),
        (lambda: weights(0.1), "wrong", "its weights are off by 1.0e-01; set training.step: eager"),
        (lambda: weights(float("nan")), "wrong", "its weights are off by nan"),
        (lambda: weights()[:1], "wrong", "trains other weights"),
        (lambda: (_ for _ in ()).throw(RuntimeError("operation not permitted when stream is capturing")), "wrong",
         "RuntimeError: operation not permitted when stream is capturing"),
    ],
)  # fmt: skip
def test_a_captured_step_is_compared_with_the_eager_one(captured, state, said):
    check = doctor.check_step(lambda step: weights() if step == "eager" else captured())
    assert (check.state, check.detail[: len(said)]) == (state, said)


def test_the_steps_that_are_compared_repeat_and_move_the_weights():
    """On the CPU there is no graph to compare with: eager with eager."""
    first = doctor.trained("eager", CPU)
    check = doctor.check_step(lambda step: first if step == "eager" else doctor.trained("eager", CPU))
    assert check.detail == "weights within 0.0e+00"
    norms = [weight for weight in first if weight.dim() == 1 and len(weight) == 8]  # they begin at 1 and 0
    assert norms and all(not torch.equal(weight, weight.round()) for weight in norms)


# ------------------------------------------------------------------------------------ disk, memory, packages


def test_memory_is_what_machine_and_container_leave(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal:  16000000 kB\nMemAvailable:  4000000 kB\nHugePages: 0\n")
    limit = tmp_path / "memory.max"
    place = str(tmp_path / "meminfo")
    assert doctor.available_memory(place, str(limit)) == 4_096_000_000
    limit.write_text("max\n")
    assert doctor.available_memory(place, str(limit)) == 4_096_000_000
    limit.write_text("2000000000\n")
    (tmp_path / "memory.current").write_text("500000000\n")
    assert doctor.available_memory(place, str(limit)) == 1_500_000_000
    assert doctor.available_memory(str(tmp_path / "none")) is None


def test_too_little_is_wrong():
    assert doctor.check_memory(2**29).detail == "512 MiB free; end other programs"
    assert [doctor.check_memory(free).state for free in (2**29, 2**31, None)] == ["wrong", "ok", "absent"]


def test_the_disk_is_that_of_a_folder_that_is_still_to_be_made(tmp_path, monkeypatch):
    assert doctor.check_disk(tmp_path / "not" / "yet").detail.endswith(f"free in {tmp_path}")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: SimpleNamespace(free=10_000))
    assert doctor.check_disk(tmp_path).state == "wrong"


def test_a_package_that_is_not_there_or_too_new_is_wrong(monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", ("numpy", "no-such-package"))
    (check,) = doctor.check_packages()
    assert (check.state, check.detail[:30]) == ("wrong", "not installed: no-such-package")
    monkeypatch.undo()
    (check,) = doctor.check_packages()
    assert check.state == "ok"


def test_damaged_data_are_wrong_and_missing_ones_are_not(tmp_path):
    (tmp_path / "cifar-100-python").mkdir()
    (tmp_path / "cifar-100-python" / "train").write_bytes(b"half")
    found = {check.name: check for check in doctor.check_data(str(tmp_path))}
    assert {name: check.state for name, check in found.items()} == {
        "data digits": "ok", "data cifar10": "absent", "data cifar100": "wrong",
    }  # fmt: skip
    assert f"run python -m incrlt.prepare cifar10 --data {tmp_path}" in found["data cifar10"].detail
    assert "train is damaged" in found["data cifar100"].detail and "\n" not in found["data cifar100"].detail


def test_a_look_that_raises_is_what_is_wrong():
    def raises():
        yield Check("a", "ok", "")
        raise OSError("libtorch.so: file too short")

    assert doctor.guarded("kernels", raises) == [
        Check("kernels", "wrong", "OSError: libtorch.so: file too short")
    ]


# ------------------------------------------------------------------------------------ the command


def test_it_ends_with_0_where_all_is_well(tmp_path, capsys):
    assert command.main(["--data", str(tmp_path), "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert text.rstrip().endswith("all is well")
    assert "kernels closed_form on cpu" in text and torch.__version__.split("+")[0] in text


def test_it_ends_with_1_and_says_as_json_what_is_wrong(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(doctor, "available_memory", lambda: 1000)
    monkeypatch.setattr(doctor, "check_data", lambda root: [Check("data digits", "ok", "1,300 images", 0.1)])
    assert command.main(["--json", "--out", str(tmp_path)]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["wrong"] == ["memory"]
    states = {check["name"]: check["state"] for check in found["checks"]}
    assert states["memory"] == "wrong" and states["kernels closed_form on cpu"] == "ok"
    assert found["versions"]["torch"] and found["machine"]["cores"]
