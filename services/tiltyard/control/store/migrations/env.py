"""Alembic's entry point: runs on the connection the store hands over, so it works with any driver."""

from __future__ import annotations

from alembic import context

from tiltyard.control.store.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
