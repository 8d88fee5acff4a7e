"""The control plane's store: SQLAlchemy tables, Alembic migrations, and the one class that uses them."""

from tiltyard.control.store.store import Store

__all__ = ["Store"]
