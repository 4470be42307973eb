"""The one error that the boundary between files and models raises."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded, or a model that cannot be saved, as it stands."""


def one_line(error: BaseException) -> str:
    """Another library's error, short enough to stand inside a message of ours."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
