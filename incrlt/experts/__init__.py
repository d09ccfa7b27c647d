"""The tail axis: how rare classes are served inside one experience; one file per method."""
