"""The packages that draw, which are the `views` extra of this one."""

from importlib.util import find_spec

PACKAGES = ("circuitsvis", "matplotlib")


def require_views() -> None:
    """Raise where circuitsvis or matplotlib is missing, with the way to install them.

    Raises:
        ImportError: one line.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"{' and '.join(missing)} not installed: views need pip install 'tl_bilinear[views]'"
        )
