"""Version of the package."""

__version__ = "0.2.0"


def is_outdated(version: object) -> bool:
    """Return whether folders of a version cannot be read any more.

    Example:
        >>> is_outdated("0.1.0"), is_outdated("0.2.0")
        (True, False)
    """
    return str(version).startswith("0.1.")
