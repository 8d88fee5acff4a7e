"""First schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "workspace",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_workspace"),
        sa.UniqueConstraint("name", name="uq_workspace_name"),
    )
    op.create_table(
        "counter",
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_counter"),
    )
    _models()
    _pipelines()


def _models() -> None:
    op.create_table(
        "model",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("workspace_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_model"),
        sa.ForeignKeyConstraint(["workspace_id"], ["workspace.id"], name="fk_model_workspace_id_workspace"),
        sa.UniqueConstraint("workspace_id", "name", name="uq_model_workspace_id"),
    )
    op.create_table(
        "model_version",
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("file_name", sa.Text(), nullable=False),
        sa.Column("signatures", sa.LargeBinary(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("model_id", "version", name="pk_model_version"),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"], name="fk_model_version_model_id_model"),
    )


def _pipelines() -> None:
    op.create_table(
        "pipeline",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("workspace_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("updated_us", sa.BigInteger(), nullable=False),
        sa.Column("last_epoch", sa.BigInteger(), nullable=False),
        sa.Column("deploy_error", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_pipeline"),
        sa.ForeignKeyConstraint(["workspace_id"], ["workspace.id"], name="fk_pipeline_workspace_id_workspace"),
        sa.UniqueConstraint("workspace_id", "name", name="uq_pipeline_workspace_id"),
    )
    op.create_table(
        "pipeline_version",
        sa.Column("pipeline_id", sa.Integer(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("pipeline_id", "version", name="pk_pipeline_version"),
        sa.ForeignKeyConstraint(["pipeline_id"], ["pipeline.id"], name="fk_pipeline_version_pipeline_id_pipeline"),
    )
    op.create_table(
        "split_salt",
        sa.Column("pipeline_id", sa.Integer(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("arms", sa.Text(), nullable=False),
        sa.Column("salt", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("pipeline_id", "step", "arms", name="pk_split_salt"),
        sa.ForeignKeyConstraint(["pipeline_id"], ["pipeline.id"], name="fk_split_salt_pipeline_id_pipeline"),
    )
    op.create_table(
        "deployment",
        sa.Column("pipeline_id", sa.Integer(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("uid", sa.String(32), nullable=False),
        sa.Column("weights", sa.Text(), nullable=False),
        sa.Column("slots", sa.Text(), nullable=False),
        sa.Column("salt", sa.LargeBinary(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("bare_name", sa.String(63), nullable=True),
        sa.Column("deployed_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("pipeline_id", name="pk_deployment"),
        sa.ForeignKeyConstraint(["pipeline_id"], ["pipeline.id"], name="fk_deployment_pipeline_id_pipeline"),
        sa.UniqueConstraint("uid", name="uq_deployment_uid"),
        sa.UniqueConstraint("bare_name", name="uq_deployment_bare_name"),
    )


def downgrade() -> None:
    """Drop the tables."""
    for table in (
        "deployment",
        "split_salt",
        "pipeline_version",
        "pipeline",
        "model_version",
        "model",
        "counter",
        "workspace",
    ):
        op.drop_table(table)
