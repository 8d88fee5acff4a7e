"""What Tiltyard's processes need beyond the base package; `tiltyard up` looks for it before anything starts."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence

from tiltyard.errors import UnsupportedError

__all__ = ["EXTRAS", "check_installed", "is_installed", "what_to_install"]

EXTRAS: Mapping[str, tuple[str, ...]] = {
    "server": ("sqlalchemy", "alembic", "aiosqlite", "yaml"),
    "serve": ("tensorflow",),
}
"""The modules that tell whether an extra is installed."""

_ROUTER = "tiltyard_router.core"
_NO_ROUTER = (
    "this installation has no compiled router (tiltyard_router): install a C compiler and the libraries libuv, "
    "libnghttp2, openssl, libxxhash and zlib (Debian: apt-get install gcc pkg-config libuv1-dev libnghttp2-dev "
    "libssl-dev libxxhash-dev zlib1g-dev), then install tiltyard again"
)


def is_installed(module: str) -> bool:
    """Whether a module can be found; it is not imported, though its parent packages are."""
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def _lacks(modules: Sequence[str], extras: Sequence[str]) -> str:
    return f"this installation lacks {', '.join(modules)}; run: pip install 'tiltyard[{','.join(extras)}]'"


def what_to_install(module: str) -> str | None:
    """What to do about a module that could not be imported; None when no part of Tiltyard brings it."""
    package = module.partition(".")[0]
    if package == _ROUTER.partition(".")[0]:
        return _NO_ROUTER
    extras = [extra for extra, modules in EXTRAS.items() if package in modules]
    return _lacks([package], extras) if extras else None


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
        lines.append(_lacks(modules, lacking))
    if not found(_ROUTER):
        lines.append(_NO_ROUTER)
    if lines:
        raise UnsupportedError("; and ".join(lines))
