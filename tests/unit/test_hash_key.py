"""One rule says which names a split's key may have, and all who take such a name say the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tiltyard.client.models import ModelVersion
from tiltyard.client.steps import split_step
from tiltyard.control.names import ModelRef, PipelineRef
from tiltyard.control.pipelines import ArmSpec, PipelineSpec, StepSpec, check
from tiltyard.errors import ConfigError, InvalidArgumentError
from tiltyard.hash_key import check_hash_key
from tiltyard.router.routes_file import parse_routes

TAKEN = [
    *("tiltyard-arm", "tiltyard-", "grpc-timeout", "grpc-x", "te", "content-type", "content-length", "host", "trailer"),
    *("connection", "transfer-encoding", "upgrade", "keep-alive", "proxy-connection"),
]
NO_NAME = ["Session", "a b", "a/b", "é", "x" * 65, ":path", "a\n"]


def in_a_routes_file(key: str) -> None:
    arms = "[{name: a, model: m, version: 1, backends: ['h:1']}]"
    quoted = '"' + key.replace("\n", "\\n") + '"'
    parse_routes(f"pipelines:\n  - name: p\n    hash_key: {quoted}\n    arms: {arms}\n", "r.yaml")


def in_the_control_plane(key: str) -> None:
    model = ModelRef("w", "m", 1)
    arms = tuple(ArmSpec(name, model, 1) for name in ("a", "b"))
    try:
        check(PipelineRef("w", "p"), PipelineSpec((StepSpec(split=True, arms=arms, hash_key=key),)), {model: {}})
    except InvalidArgumentError as error:
        if "has no signature" not in error.message:  # which is looked at after the names
            raise


def in_the_sdk(key: str) -> None:
    model = object.__new__(ModelVersion)
    for name, value in (("name", "m"), ("version", 1), ("id", "workspaces/w/models/m/versions/1")):
        object.__setattr__(model, name, lambda value=value: value)
    split_step([(1, model, "a"), (1, model, "b")], key)


PLACES = [check_hash_key, in_a_routes_file, in_the_control_plane, in_the_sdk]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("key", ["session_id", "x-user", "a.b", "k" * 64, "id-bin", "te2", "hosts", "tiltyard", "grpc"])
def test_names_that_requests_can_carry(place: Callable[[str], None], key: str) -> None:
    place(key)


@pytest.mark.parametrize("place", PLACES[1:])
@pytest.mark.parametrize("key", TAKEN + NO_NAME)
def test_the_others_are_refused_in_the_same_words(place: Callable[[str], None], key: str) -> None:
    with pytest.raises(InvalidArgumentError) as wanted:
        check_hash_key(key)
    assert f"hash_key {key!r}" in wanted.value.message
    assert ("never reaches the split" in wanted.value.message) == (key in TAKEN)
    with pytest.raises((ConfigError, InvalidArgumentError)) as caught:
        place(key)
    if key != "a\n" or place is not in_a_routes_file:  # the file's text may hold no control character at all
        assert caught.value.message.removeprefix("r.yaml:3: ") == wanted.value.message
