"""Parts of fpe_hf that need more packages than the core: the extras of `pyproject.toml`."""

from __future__ import annotations

from importlib.util import find_spec

from .errors import MissingExtraError

EXTRAS = {
    "recipes": "datasets evaluate jinja2 matplotlib PIL pydantic scipy sklearn yaml",
    "science": "markdown_it matplotlib scipy sklearn",
}
"""Extra -> the modules that it brings."""


def need(extra: str, what: str) -> None:
    """Makes sure that the packages of an extra are installed; none of them is imported.

    Args:
        extra: One of `EXTRAS`.
        what: What needs it, to start the message with.

    Raises:
        MissingExtraError: Some are not.
    """
    missing = [module for module in EXTRAS[extra].split() if not _is_there(module)]
    if missing:
        raise MissingExtraError(
            f"{what}: not installed are {', '.join(missing)}. Install the extra {extra!r}: pip "
            f"install 'fpe-hf[{extra}]', or pip install '.[{extra}]' in a clone of the repository."
        )


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False
