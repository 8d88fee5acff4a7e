"""The immutable route table."""

from collections.abc import Sequence
from typing import Any, Protocol, final

class _Key(Protocol):
    @property
    def number(self) -> int: ...
    @property
    def secret(self) -> bytes: ...

class _Metric(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def output(self) -> str: ...
    @property
    def index(self) -> int: ...
    @property
    def above(self) -> float | None: ...

class _Arm(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def backends(self) -> Sequence[str]: ...

class _Pipeline(Protocol):
    @property
    def key(self) -> str: ...
    @property
    def uid(self) -> str: ...
    @property
    def request_names(self) -> Sequence[str]: ...
    @property
    def arms(self) -> Sequence[_Arm]: ...
    @property
    def slots(self) -> Sequence[tuple[int, int]]: ...
    @property
    def epoch(self) -> int: ...
    @property
    def hash_key(self) -> str: ...
    @property
    def salt(self) -> bytes: ...
    @property
    def metrics(self) -> Sequence[_Metric]: ...
    @property
    def timeout_s(self) -> float: ...

class _Spec(Protocol):
    @property
    def revision(self) -> int: ...
    @property
    def pipelines(self) -> Sequence[_Pipeline]: ...
    @property
    def receipt_key(self) -> _Key | None: ...

@final
class RouteTable:
    """The routes of one revision as the core reads them: built whole, checked, never changed.

    Args:
        spec: a ``tiltyard.router.spec.RouteSpec``, or anything with its attributes.

    Raises:
        TypeError: an attribute has the wrong type.
        ValueError: the spec makes no sense; the message names the pipeline and says why.
        MemoryError: memory is out.
    """

    def __new__(cls, spec: _Spec) -> RouteTable: ...
    @property
    def revision(self) -> int:
        """The spec's revision.

        Raises:
            ValueError: the table was handed to a router before. (So do the other members.)
        """

    def __len__(self) -> int:
        """Number of pipelines."""

    def find(self, name: str) -> str | None:
        """The ``key`` of the pipeline that a request means by this name; ``None`` when nobody answers to it."""

    def describe(self, name: str) -> dict[str, Any]:
        """What the core will read of the pipeline of this request name, for people and tests.

        Raises:
            KeyError: nobody answers to the name.
        """
