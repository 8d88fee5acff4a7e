"""The tables. Times are microseconds since 1970 in UTC, so that every database keeps them alike."""

from __future__ import annotations

from sqlalchemy import BigInteger, ForeignKey, Integer, LargeBinary, MetaData, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# Named, so that later migrations can alter them on every database.
_NAMES = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    """Base of all tables."""

    metadata = MetaData(naming_convention=_NAMES)


class WorkspaceRow(Base):
    """A workspace."""

    __tablename__ = "workspace"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    name: Mapped[str] = mapped_column(String(63), unique=True)
    created_us: Mapped[int] = mapped_column(BigInteger)


class ModelRow(Base):
    """A model."""

    __tablename__ = "model"
    __table_args__ = (UniqueConstraint("workspace_id", "name"),)
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    workspace_id: Mapped[int] = mapped_column(ForeignKey("workspace.id"))
    name: Mapped[str] = mapped_column(String(63))
    created_us: Mapped[int] = mapped_column(BigInteger)


class ModelVersionRow(Base):
    """A version of a model; exists once its content is in place."""

    __tablename__ = "model_version"
    model_id: Mapped[int] = mapped_column(ForeignKey("model.id"), primary_key=True)
    version: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    digest: Mapped[str] = mapped_column(String(64))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    file_name: Mapped[str] = mapped_column(Text)
    signatures: Mapped[bytes] = mapped_column(LargeBinary)
    created_us: Mapped[int] = mapped_column(BigInteger)


class PipelineRow(Base):
    """A pipeline. ``last_epoch`` only rises: an epoch is never used twice."""

    __tablename__ = "pipeline"
    __table_args__ = (UniqueConstraint("workspace_id", "name"),)
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    workspace_id: Mapped[int] = mapped_column(ForeignKey("workspace.id"))
    name: Mapped[str] = mapped_column(String(63))
    created_us: Mapped[int] = mapped_column(BigInteger)
    updated_us: Mapped[int] = mapped_column(BigInteger)
    last_epoch: Mapped[int] = mapped_column(BigInteger)
    deploy_error: Mapped[str] = mapped_column(Text)


class PipelineVersionRow(Base):
    """A version of a pipeline; ``spec`` is JSON."""

    __tablename__ = "pipeline_version"
    pipeline_id: Mapped[int] = mapped_column(ForeignKey("pipeline.id"), primary_key=True)
    version: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    spec: Mapped[str] = mapped_column(Text)
    created_us: Mapped[int] = mapped_column(BigInteger)


class SaltRow(Base):
    """The salt of a split: it stays with pipeline, step and arm names, whatever else is deployed in between."""

    __tablename__ = "split_salt"
    pipeline_id: Mapped[int] = mapped_column(ForeignKey("pipeline.id"), primary_key=True)
    step: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    arms: Mapped[str] = mapped_column(Text, primary_key=True)
    salt: Mapped[bytes] = mapped_column(LargeBinary)


class DeploymentRow(Base):
    """A pipeline version in force; there is no row while the pipeline is not deployed."""

    __tablename__ = "deployment"
    pipeline_id: Mapped[int] = mapped_column(ForeignKey("pipeline.id"), primary_key=True)
    version: Mapped[int] = mapped_column(BigInteger)
    uid: Mapped[str] = mapped_column(String(32), unique=True)
    weights: Mapped[str] = mapped_column(Text)
    slots: Mapped[str] = mapped_column(Text)
    salt: Mapped[bytes] = mapped_column(LargeBinary)
    epoch: Mapped[int] = mapped_column(BigInteger)
    bare_name: Mapped[str | None] = mapped_column(String(63), unique=True)
    deployed_us: Mapped[int] = mapped_column(BigInteger)


class CounterRow(Base):
    """Numbers that only rise, by name."""

    __tablename__ = "counter"
    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    value: Mapped[int] = mapped_column(BigInteger)
