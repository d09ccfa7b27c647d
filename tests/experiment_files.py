"""The files of ``experiments/``, told apart by where their pictures come from."""

from __future__ import annotations

from pathlib import Path

from incrlt.benchmarks.facts import names
from incrlt.experiment import yamlfile
from incrlt.experiment.sections import FROM_FILES

FOLDER = Path(__file__).resolve().parent.parent / "experiments"
FILES = sorted(FOLDER.glob("*.yaml"))
# As they are written: what an experiment needs beyond its file, timm say, may be missing here.
_DATASETS = {path: yamlfile.read(path)["benchmark"]["dataset"] for path in FILES}

FROM_PICTURES = [path for path in FILES if _DATASETS[path] in FROM_FILES]
"""Those that look for pictures on the disk."""
OF_TENSORS = [path for path in FILES if path not in FROM_PICTURES]
LARGE = [path for path in FROM_PICTURES if _DATASETS[path] in names()]
"""Those on a large data set, and not on photographs of one's own."""
