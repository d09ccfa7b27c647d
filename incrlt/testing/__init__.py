"""Checks for classes of your own: what our contract tests hold our classes to, in a call each.

On the embedded digits, without a download, some twenty seconds of one core for each partner; no test runner is needed.
Strategies, expert methods, stages (rebalancing ones and routers) and backbones each have one.
Each promise is a sentence, and a broken one says what was found and what to do. They cannot know whether the
mathematics is right: for that bring arrays of the official code, or a case worked out by hand.
"""

from __future__ import annotations

from incrlt.testing.backbones import check_backbone
from incrlt.testing.methods import check_expert_method, check_strategy
from incrlt.testing.promises import BrokenPromiseError
from incrlt.testing.stages import check_stage

__all__ = ["BrokenPromiseError", "check_backbone", "check_expert_method", "check_stage", "check_strategy"]
