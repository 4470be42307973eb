"""The one error that a sweep's folder raises."""


class SweepError(ValueError):
    """A folder that holds another sweep, an unfinished one, or files that cannot be read."""
