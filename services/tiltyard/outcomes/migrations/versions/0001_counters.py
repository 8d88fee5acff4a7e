"""Counters by router boot, and the deployments they belong to."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go to this revision."""
    op.create_table(
        "boots",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("boot_id", sa.LargeBinary, nullable=False, unique=True),
        sa.Column("router", sa.String, nullable=False),
        sa.Column("heard", sa.Float, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("closed_through", sa.BigInteger, nullable=False),
        sa.Column("final", sa.Boolean, nullable=False),
        sa.Column("uncounted", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "deployments",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("pipeline", sa.String, nullable=False),
        sa.Column("uid", sa.String, nullable=False),
        sa.UniqueConstraint("pipeline", "uid"),
    )
    op.create_table(
        "blocks",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("boot", sa.Integer, sa.ForeignKey("boots.id"), nullable=False, index=True),
        sa.Column("deployment", sa.Integer, sa.ForeignKey("deployments.id"), nullable=False, index=True),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("arm", sa.String, nullable=False),
        sa.Column("arm_index", sa.Integer, nullable=False),
        sa.Column("share_slots", sa.Integer, nullable=False),
        sa.Column("metrics", sa.String, nullable=False),
        sa.Column("cells", sa.LargeBinary, nullable=False),
        sa.Column("sequences", sa.LargeBinary, nullable=False),
        sa.Column("changed", sa.Float, nullable=False),
        sa.UniqueConstraint("boot", "deployment", "epoch", "arm", "arm_index", "share_slots", "metrics"),
    )


def downgrade() -> None:
    """Go back to nothing."""
    op.drop_table("blocks")
    op.drop_table("deployments")
    op.drop_table("boots")
