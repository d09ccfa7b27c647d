"""A class that breaks promises is told which, what was found, and what to do."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from incrlt.experts.single import Single
from incrlt.testing import BrokenPromiseError, check_expert_method


@dataclass(frozen=True)
class Bare(Single):
    """Returns a bare tensor where terms with names are wanted."""

    name = "bare"

    def loss(self, context, output, labels):
        return sum(super().loss(context, output, labels).values())


def test_a_broken_promise_says_what_was_promised_found_and_is_to_do():
    with pytest.raises(BrokenPromiseError) as caught:
        check_expert_method(Bare, partners=["finetune"])
    text = str(caught.value)
    assert text.startswith("1 of 20 promises broken\nFinetune with experts Bare breaks a promise")
    assert "promised: Half of the images of four classes are known after 16 epochs" in text
    assert "return named terms, such as" in text, "what the template said"
    assert "to do:    run it in a script" in text
