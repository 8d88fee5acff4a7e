"""What is tested, said at the start of a run; and no run that quietly tests something else.

``make test`` sets ``TILTYARD_INSTALLED``: Tiltyard must then come from the environment's site-packages, so that the
source tree cannot hide a file missing from the wheel. With ``CI`` set, no part may be missing either.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import signal
import sysconfig
from pathlib import Path

import pytest

PARTS = ("tiltyard", "tiltyard_router.core", "tensorflow")


def _origin(module: str) -> Path | None:
    """The file a module would be loaded from; the module itself is not imported."""
    try:
        spec = importlib.util.find_spec(module)
    except ImportError:
        return None
    return Path(spec.origin) if spec is not None and spec.origin is not None else None


def pytest_configure(config: pytest.Config) -> None:
    # A run in the background of a script has SIGINT ignored, and its children inherit that: Ctrl-C tests need it back.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if os.environ.get("TILTYARD_SANITIZED"):
        # Modules made by one version of Cython share the types of the first that is loaded, for instance generators.
        # Were that the core, its code would run on stacks that greenlet moves, which AddressSanitizer takes for errors.
        with contextlib.suppress(ImportError):
            importlib.import_module("sqlalchemy.ext.asyncio")
    if not os.environ.get("TILTYARD_INSTALLED"):
        return
    site = Path(sysconfig.get_path("platlib"))
    origins = {module: _origin(module) for module in PARTS}
    strays = [f"{module} ({origin})" for module, origin in origins.items() if origin and site not in origin.parents]
    if strays:
        raise pytest.UsageError(f"not the installed package: {', '.join(strays)}")
    missing = [module for module, origin in origins.items() if origin is None]
    if os.environ.get("CI") and missing:
        raise pytest.UsageError(f"not installed, so their tests would be skipped: {', '.join(missing)}")


def pytest_report_header(config: pytest.Config) -> list[str]:
    return [f"{module}: {_origin(module) or 'missing'}" for module in PARTS]
