"""The two scripts of examples/ run as they stand, shorter, and learn something."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def stream_accuracy(metrics: dict[str, float]) -> float:
    """The last accuracy on the test stream; the key's end depends on the benchmark's task labels."""
    return next(value for key, value in metrics.items() if key.startswith("Top1_Acc_Stream/eval_phase/test"))


def run(script: str, **arguments: int) -> float:
    return stream_accuracy(runpy.run_path(str(EXAMPLES / script))["main"](**arguments))


def test_lucir_in_an_avalanche_script(capsys):
    """Five experiences of two digits: without a memory only the last two of ten could be right."""
    assert run("lucir_in_avalanche.py", epochs=3) > 0.4
    assert "Top1_Acc_Stream" in capsys.readouterr().out


def test_our_memory_on_naive(capsys):
    """Ten exemplars of each digit beat one: the memory is what keeps the old digits."""
    few, many = (run("our_memory_on_naive.py", epochs=5, per_class=kept) for kept in (1, 10))
    assert many > few + 0.1
    assert many > 0.5
    shown = capsys.readouterr().out
    assert "exemplars kept per class" in shown
    last = [line for line in shown.splitlines() if line.startswith("last_accuracy/over_seen_images")]
    assert float(last[-1].split()[-1]) == pytest.approx(
        100 * many, abs=0.06
    )  # our metric and Avalanche's agree


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_every_example_is_tested(script):
    assert f'"{script.name}"' in Path(__file__).read_text()
