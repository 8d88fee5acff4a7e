"""What ``tiltyard up`` needs beyond the base package, looked for before anything starts."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping

from tiltyard.errors import UnsupportedError

__all__ = ["EXTRAS", "check_installed", "is_installed"]

EXTRAS: Mapping[str, tuple[str, ...]] = {
    "server": ("sqlalchemy", "alembic", "aiosqlite", "yaml"),
    "serve": ("tensorflow",),
}
"""The modules that tell whether an extra is installed."""

_ROUTER = "tiltyard_router.core"


def is_installed(module: str) -> bool:
    """Whether a module can be found; it is not imported, though its parent packages are."""
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def check_installed(found: Callable[[str], bool] = is_installed) -> None:
    """Refuse to start when a part is missing, naming what to install.

    Args:
        found: tells whether a module is there.

    Raises:
        UnsupportedError: something is missing.
    """
    lines = []
    lacking = [extra for extra, modules in EXTRAS.items() if not all(map(found, modules))]
    if lacking:
        modules = [module for extra in lacking for module in EXTRAS[extra] if not found(module)]
        lines.append(f"this installation lacks {', '.join(modules)}; run: pip install 'tiltyard[{','.join(lacking)}]'")
    if not found(_ROUTER):
        lines.append(
            "this installation has no compiled router (tiltyard_router): install a C compiler and the libraries libuv, "
            "libnghttp2, openssl, libxxhash and zlib (Debian: apt-get install gcc pkg-config libuv1-dev "
            "libnghttp2-dev libssl-dev libxxhash-dev zlib1g-dev), then install tiltyard again"
        )
    if lines:
        raise UnsupportedError("; and ".join(lines))
