"""One run and its folder: from a checked experiment to results, checkpoints and the report."""
