"""The one error that the boundary between files and models raises."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded, or a model that cannot be saved, as it stands."""
