"""Alembic migrations of the control plane's store; run when it opens."""
