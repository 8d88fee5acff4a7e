"""Predict through the router: what a client sends, what the backend gets, what comes back."""

from __future__ import annotations

import base64
import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from hyperframe.frame import SettingsFrame
from tiltyard.api.tfs.v1 import predict_pb2
from wirebench.backend import Call, Script, ScriptedBackend, echo, refuses, replies
from wirebench.benches import one_arm
from wirebench.client import Answer, RawClient
from wirebench.messages import (
    FAILED_PRECONDITION,
    FORCED,
    INTERNAL,
    INVALID_ARGUMENT,
    KEYED,
    NOT_FOUND,
    OK,
    PREDICT,
    RESOURCE_EXHAUSTED,
    UNAVAILABLE,
    UNIMPLEMENTED,
    UNKNOWN,
    answer,
    field,
    floats,
    grpc_frame,
    int64s,
    padded,
    request,
    spec,
    strings,
)
from wirebench.routers import KEY_NUMBER, SECRET, CoreRouter, arm, pipeline
from wirebench.wires import PROTOCOL_ERROR, Header, wait_until

core = pytest.importorskip("tiltyard_router.core", exc_type=ImportError)
pytestmark = pytest.mark.router

MIB = 1 << 20
LIMIT = 64 * MIB
SALT = b"salt"


class Arms:
    """A split of two arms, each with a backend of its own."""

    def __init__(self, champion: ScriptedBackend, challenger: ScriptedBackend, router: CoreRouter) -> None:
        self.backends = {"champion": champion, "challenger": challenger}
        self.router = router


@contextmanager
def two_arms(script: Script = echo, hash_key: str = "session_id") -> Iterator[tuple[Arms, RawClient]]:
    with ScriptedBackend(script) as one, ScriptedBackend(script) as two:
        table = pipeline(
            arm("champion", one.address, model="m-one", version=3),
            arm("challenger", two.address, model="m-two", version=7),
            weights=[2, 1],
            hash_key=hash_key,
            salt=SALT,
        )
        with CoreRouter(table) as router, RawClient(router.address) as client:
            yield Arms(one, two, router), client


def expected_arm(key: bytes) -> str:
    """By the published rule, in the router's own public function."""
    from tiltyard_router.split import arm_of

    _, _, index = arm_of([(6667, 0), (10000, 1)], SALT, key)
    return ("champion", "challenger")[index]


def refused(got: Answer, status: int, message: str) -> None:
    assert (got.status, got.message) == (status, message)
    assert got.get("tiltyard-inference-id") is None
    assert got.arm is None


# ---------------------------------------------------------------- an unchanged client


def test_an_unchanged_client_is_served() -> None:
    """grpcio and the messages of TensorFlow Serving; nothing of Tiltyard."""

    async def script(call: Call) -> None:
        asked = predict_pb2.PredictRequest.FromString(await call.request())
        reply = predict_pb2.PredictResponse(model_spec=asked.model_spec)
        reply.outputs["main"].CopyFrom(floats([0.25, 0.5]))
        await call.reply(reply.SerializeToString(), head=[("x-from", "backend")], tail=[("x-end", "1")])

    with two_arms(script) as (arms, _), grpc.insecure_channel(arms.router.address) as channel:
        predict: Any = channel.unary_unary(
            PREDICT,
            request_serializer=predict_pb2.PredictRequest.SerializeToString,
            response_deserializer=predict_pb2.PredictResponse.FromString,
        )
        asked = predict_pb2.PredictRequest.FromString(request(signature="sig"))
        got, call = predict.with_call(asked, timeout=20, metadata=[("session_id", "somebody")])
        assert list(got.outputs["main"].float_val) == [0.25, 0.5]
        metadata = dict(call.initial_metadata())
        assert metadata["x-from"] == "backend"
        assert dict(call.trailing_metadata()) == {"x-end": "1"}
        assert metadata["tiltyard-arm"] == expected_arm(b"somebody")
        model, version = {"champion": ("m-one", 3), "challenger": ("m-two", 7)}[metadata["tiltyard-arm"]]
        assert (got.model_spec.name, got.model_spec.version.value) == (model, version)
        assert got.model_spec.signature_name == "sig"
        with pytest.raises(grpc.RpcError) as caught:
            predict(predict_pb2.PredictRequest(model_spec=predict_pb2.ModelSpec(name="other")), timeout=20)
        error: Any = caught.value
        assert error.code() is grpc.StatusCode.NOT_FOUND


def test_fields_in_any_order_and_unknown_ones_arrive_as_they_were() -> None:
    head = field(1, spec("p"))
    inputs = field(2, field(1, b"x") + field(2, floats([1.0]).SerializeToString()))
    fields = [head, inputs, field(3, b"main"), field(900, b"from the future"), b"\x68\x7f"]  # field 13, a varint
    with one_arm() as (backend, _, client):
        for order in itertools.permutations(fields):
            assert client.call(b"".join(order)).status == OK
            rest = b"".join(part for part in order if part is not head)
            assert backend.calls[-1].message == field(1, spec("model-a", version=1)) + rest


def test_several_model_specs_are_merged_as_protobuf_does() -> None:
    known = field(1, spec("p", signature="one")) + field(3, b"main")
    second = field(1, spec(signature="two") + field(77, b"kept"))
    third = field(1, spec("", label="a"))
    inputs = field(2, field(1, b"x") + field(2, floats([1.0]).SerializeToString()))
    with one_arm() as (backend, _, client):
        got = client.call(known + inputs + second + third)
        assert got.status == OK
        assert got.receipt.flags == FORCED  # the label of the third
        message = backend.calls[0].message
        sent = predict_pb2.PredictRequest.FromString(message)
        assert (sent.model_spec.name, sent.model_spec.version.value, sent.model_spec.signature_name) == (
            "model-a",
            1,
            "two",
        )
        assert field(77, b"kept") in message
        assert message.endswith(field(3, b"main") + inputs)
        assert client.call(field(1, spec("other")) + field(1, spec("p")) + inputs).status == OK  # the last name counts


@pytest.mark.parametrize(
    ("message", "status", "text"),
    [
        (request("nobody"), NOT_FOUND, "no pipeline 'nobody' is deployed; deploy it or check model_spec.name"),
        (
            field(1, spec("p", version=3)),
            INVALID_ARGUMENT,
            "pipeline 'p' chooses the version; name an arm by version_label, or leave both empty",
        ),
        (
            field(1, spec("p", version=0)),
            INVALID_ARGUMENT,
            "pipeline 'p' chooses the version; name an arm by version_label, or leave both empty",
        ),
        (
            request(label="nope"),
            INVALID_ARGUMENT,
            "pipeline 'p' has no arm 'nope'; name an arm by version_label, or leave it empty",
        ),
        (
            request(""),
            INVALID_ARGUMENT,
            "the request has no model_spec.name; set it to the name of a pipeline",
        ),
        (b"", INVALID_ARGUMENT, "the request has no model_spec.name; set it to the name of a pipeline"),
        (
            b"\x0a\xff",
            INVALID_ARGUMENT,
            "the request is no valid tensorflow.serving.PredictRequest",
        ),
        (
            request() + b"\x12\x05ab",
            INVALID_ARGUMENT,
            "the request is no valid tensorflow.serving.PredictRequest",
        ),
    ],
)
def test_requests_that_mean_no_arm_are_refused_and_say_why(message: bytes, status: int, text: str) -> None:
    with one_arm() as (backend, _, client):
        refused(client.call(message), status, text)
        assert backend.calls == []


def test_an_oneof_of_version_and_label_goes_to_the_last_one() -> None:
    with one_arm() as (_, _, client):
        got = client.call(field(1, spec("p", version=3)) + field(1, spec(label="a")))
        assert (got.status, got.receipt.flags) == (OK, FORCED)
        assert client.call(field(1, spec("p", label="a")) + field(1, spec(version=3))).status == INVALID_ARGUMENT
        assert client.call(field(1, spec("p", label=""))).receipt.flags == 0  # an empty label is none


def test_names_of_all_kinds_reach_the_refusal_readable() -> None:
    with one_arm() as (_, _, client):
        name = "größer 100%\n" + "x" * 300
        got = client.call(request(name))
        assert got.status == NOT_FOUND
        assert got.message.startswith("no pipeline 'größer 100%\nxxx")
        assert got.message.endswith("is deployed; deploy it or check model_spec.name")


# ---------------------------------------------------------------- the arm


def test_a_key_has_one_arm_however_it_comes() -> None:
    with two_arms() as (_, client):
        seen = set()
        for number in range(40):
            key = f"user/{number}"
            raw = base64.b64encode(key.encode()).decode()
            ways = [
                client.call(request(), [("session_id", key)]),
                client.call(request(), [("session_id-bin", raw)]),
                client.call(request(), [("session_id-bin", raw.rstrip("="))]),
                client.call(request(), [("session_id-bin", "AAAA," + raw)]),
                client.call(request(), [("session_id", "another"), ("session_id", key)]),
                client.call(request(inputs={"session_id": strings([key.encode()]), "x": floats([1.0])})),
                client.call(request(inputs={"session_id": strings([key.encode()] * 3), "x": floats([1.0])})),
                client.call(request(inputs={"session_id": strings([b"another"])}), [("session_id", key)]),
                client.call(request(inputs={"session_id": strings([key.encode()])}), [("session_id", "")]),
            ]
            assert {got.status for got in ways} == {OK}
            assert {got.arm for got in ways} == {expected_arm(key.encode())}
            assert {got.receipt.flags for got in ways} == {KEYED}
            assert len({got.receipt.bucket for got in ways}) == 1
            seen |= {got.arm for got in ways}
        assert seen == {"champion", "challenger"}


def test_an_integer_key_is_its_decimal_text() -> None:
    with two_arms() as (_, client):
        for number in (0, 7, -1, 2**63 - 1, -(2**63), 1234567890123):
            text = str(number)
            ways = [
                client.call(request(inputs={"session_id": int64s([number])})),
                client.call(request(), [("session_id", text)]),
            ]
            assert {got.arm for got in ways} == {expected_arm(text.encode())}, number


def test_without_a_key_the_draw_is_random() -> None:
    with two_arms() as (_, client):
        nothing: list[list[Header]] = [[], [("session_id", "")], [("session_idx", "a")], [("session-id", "a")]]
        for metadata in nothing:
            arms = set()
            for _ in range(60):
                got = client.call(request(), metadata)
                assert got.receipt.flags == 0
                arms.add(got.arm)
            assert arms == {"champion", "challenger"}
        got = client.call(request(inputs={"session_id": strings([b""])}))
        assert got.receipt.flags == 0


@pytest.mark.parametrize(
    ("message", "metadata", "text"),
    [
        (
            request(inputs={"session_id": floats([1.0])}),
            [],
            "input 'session_id' is the pipeline's key: it must be a string or an integer",
        ),
        (
            request(inputs={"session_id": strings([b"a", b"b"])}),
            [],
            "input 'session_id' is the pipeline's key: it must hold one value, or the same in every row",
        ),
        (
            request(inputs={"session_id": strings([b"k" * 1025])}),
            [],
            "the key 'session_id' is longer than 1024 bytes",
        ),
        (request(), [("session_id", "k" * 1025)], "the key 'session_id' is longer than 1024 bytes"),
        (
            request(),
            [("session_id-bin", base64.b64encode(bytes(1025)).decode())],
            "the key 'session_id' is longer than 1024 bytes",
        ),
        (request(), [("session_id-bin", "not base64!")], "the key 'session_id' cannot be decoded"),
        (request(), [("session_id-bin", "AAAAA")], "the key 'session_id' cannot be decoded"),
    ],
)
def test_keys_that_are_no_identity_are_refused(message: bytes, metadata: list[Header], text: str) -> None:
    with two_arms() as (arms, client):
        refused(client.call(message, metadata), INVALID_ARGUMENT, text)
        assert not any(backend.calls for backend in arms.backends.values())


def test_a_key_of_1024_bytes_is_taken() -> None:
    with two_arms() as (_, client):
        key = "k" * 1024
        assert client.call(request(), [("session_id", key)]).arm == expected_arm(key.encode())
        assert client.call(request(inputs={"session_id": strings([key.encode()])})).arm == expected_arm(key.encode())


def test_a_label_forces_its_arm_whatever_the_key() -> None:
    with two_arms() as (arms, client):
        for label, backend in arms.backends.items():
            for number in range(10):
                got = client.call(request(label=label), [("session_id", f"user/{number}")])
                assert (got.status, got.arm, got.receipt.flags) == (OK, label, FORCED)
            sent = predict_pb2.PredictRequest.FromString(backend.calls[-1].message).model_spec
            assert len(backend.calls) == 10
            assert (sent.WhichOneof("version_choice"), sent.version_label) == ("version", "")


# ---------------------------------------------------------------- metadata


def test_metadata_passes_in_both_directions_but_ours_does_not() -> None:
    async def script(call: Call) -> None:
        await call.request()
        await call.reply(
            answer(),
            head=[("tiltyard-arm", "forged"), ("tiltyard-x", "1"), ("x-a", "1"), ("x-a", "2"), ("x-b-bin", "AAE")],
            tail=[("tiltyard-inference-id", "forged"), ("x-c", "3"), ("grpc-status-details-bin", "CAU")],
        )

    with one_arm(script) as (backend, _, client):
        mine: list[Header] = [
            ("session_id", "somebody"),
            ("x-one", "1"),
            ("x-one", "2"),
            ("x-raw-bin", "AP8"),
            ("tiltyard-arm", "forged"),
            ("tiltyard-inference-id", "forged"),
            ("tiltyard-", "forged"),
        ]
        got = client.call(request(), mine)
        sent = [pair for pair in backend.calls[0].headers if not pair[0].startswith(":")]
        assert [pair for pair in sent if pair[0].startswith(("x-", "session"))] == mine[:4]
        assert not any(name.startswith("tiltyard-") for name, _ in sent)
        assert backend.calls[0].get("user-agent") == "wirebench"
        assert backend.calls[0].get("te") == "trailers"
        assert backend.calls[0].get("content-type") == "application/grpc"
        assert [pair for pair in got.headers if pair[0].startswith("x-")] == [
            ("x-a", "1"),
            ("x-a", "2"),
            ("x-b-bin", "AAE"),
        ]
        assert [value for name, value in got.headers if name.startswith("tiltyard-")] == [
            "a",
            got.get("tiltyard-inference-id"),
        ]
        assert got.trailers == [("grpc-status", "0"), ("x-c", "3"), ("grpc-status-details-bin", "CAU")]


def test_too_much_metadata_is_refused_and_the_connection_lives() -> None:
    with one_arm() as (backend, _, client):
        fits: list[Header] = [("x-big", "v" * 12_000)]
        assert client.call(request(), fits).status == OK
        assert backend.calls[0].get("x-big") == "v" * 12_000
        many: list[Header] = [(f"x-{i}", "v") for i in range(130)]
        for metadata in ([("x-big", "v" * 16_384)], many):
            got = client.call(request(), metadata)
            assert (got.status, got.message) == (
                RESOURCE_EXHAUSTED,
                "the request's metadata is larger than 16384 bytes or 128 fields",
            )
        assert client.call(request(), [(f"x-{i}", "v") for i in range(110)]).status == OK
        assert len(backend.calls) == 2

        async def much(call: Call) -> None:
            await call.request()
            await call.reply(answer(), head=[("x-big", "v" * 17_000)])

        backend.script = much
        got = client.call(request())
        assert (got.status, got.message) == (
            RESOURCE_EXHAUSTED,
            "the answer's metadata is larger than 16384 bytes or 128 fields",
        )


# ---------------------------------------------------------------- the inference id


def test_the_inference_id_says_what_was_done() -> None:
    with two_arms() as (arms, client):
        before = int(time.time())
        receipts = []
        for number in range(60):
            kind = number % 3
            if kind == 0:
                got = client.call(request(), [("session_id", f"user/{number}")])
            elif kind == 1:
                got = client.call(request())
            else:
                got = client.call(request(label="challenger"))
            text = got.get("tiltyard-inference-id")
            assert text is not None
            assert ("tiltyard-inference-id", text) in got.headers
            one = got.receipt
            assert one.good(SECRET)
            assert not one.good(bytes(32))
            assert (one.version, one.key_number, one.zero, one.contest) == (1, KEY_NUMBER, 0, bytes(6))
            assert ("champion", "challenger")[one.arm] == got.arm
            assert one.share == {"champion": 6667, "challenger": 3333}[got.arm or ""]
            assert one.flags == (KEYED, 0, FORCED)[kind]
            assert (one.epoch, one.boot_id) == (1, arms.router.boot_id)
            assert before <= one.seconds <= int(time.time())
            receipts.append(one)
        assert [one.sequence for one in receipts] == list(range(1, 61))
        assert len({one.bucket for one in receipts}) > 20


def test_an_error_after_the_draw_carries_arm_and_inference_id() -> None:
    with one_arm(refuses(FAILED_PRECONDITION, "not loaded")) as (backend, _, client):
        got = client.call(request())
        assert (got.status, got.message, got.arm) == (FAILED_PRECONDITION, "not loaded", "a")
        assert got.receipt.good(SECRET)
        backend.die()
        wait_until(lambda: client.call(request()).status == UNAVAILABLE, "the backend to be down")
        got = client.call(request())
        assert (got.status, got.arm) == (UNAVAILABLE, "a")
        assert got.receipt.good(SECRET)


# ---------------------------------------------------------------- sizes


def test_the_largest_request_and_answer_arrive_byte_for_byte() -> None:
    with one_arm() as (backend, _, client):
        message = padded(request(), LIMIT)
        reply = padded(answer(), LIMIT)
        backend.script = replies(reply)
        got = client.call(message)
        assert got.status == OK
        assert got.body == reply
        sent = backend.calls[0].message
        assert sent[-1000:] == message[-1000:]
        shift = len(field(1, spec("model-a", version=1))) - len(field(1, spec("p")))
        assert len(sent) == LIMIT + shift
        assert sent[100 + shift :] == message[100:]


def test_one_byte_more_is_refused_in_both_directions() -> None:
    with one_arm() as (backend, router, client):
        got = client.call(padded(request(), LIMIT + 1))
        refused(got, RESOURCE_EXHAUSTED, "the request is larger than 67108864 bytes")
        backend.script = replies(padded(answer(), LIMIT + 1))
        got = client.call(request())
        assert (got.status, got.message) == (RESOURCE_EXHAUSTED, "the answer is larger than the router's limit")
        assert bytes(got.data) == b""
        wait_until(lambda: backend.calls[0].reset is not None, "the backend to be told")
        assert router.stats()["buffered_bytes"] == 0


def test_a_grpc_client_sends_and_gets_64_mebibytes() -> None:
    async def mirror(call: Call) -> None:
        await call.reply(padded(answer(), LIMIT) if len(await call.request()) > MIB else answer())

    unlimited = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
    with one_arm(mirror) as (_, router, _), grpc.insecure_channel(router.address, options=unlimited) as channel:
        predict: Any = channel.unary_unary(PREDICT, None, None)
        assert predict(padded(request(), LIMIT), timeout=60) == padded(answer(), LIMIT)
        with pytest.raises(grpc.RpcError) as caught:
            predict(padded(request(), LIMIT + 1), timeout=60)
        error: Any = caught.value
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


# ---------------------------------------------------------------- other calls


def test_a_compressed_request_is_unimplemented_and_says_what_is() -> None:
    with one_arm() as (backend, router, client):
        stream = client.open(PREDICT, [("grpc-encoding", "gzip")])
        client.data(stream, grpc_frame(request(), compressed=True), end=True)
        got = client.finish(stream)
        refused(got, UNIMPLEMENTED, "compressed messages are not supported; send them uncompressed (identity)")
        assert got.get("grpc-accept-encoding") == "identity"
        with grpc.insecure_channel(router.address) as channel:
            predict: Any = channel.unary_unary(PREDICT, None, None)
            with pytest.raises(grpc.RpcError) as caught:
                predict(bytes(10_000), timeout=20, compression=grpc.Compression.Gzip)
            error: Any = caught.value
            assert error.code() is grpc.StatusCode.UNIMPLEMENTED
        assert backend.calls == []


@pytest.mark.parametrize(
    "path",
    [
        "/tensorflow.serving.PredictionService/GetModelMetadata",
        "/tensorflow.serving.ModelService/HandleReloadConfigRequest",
        "/tensorflow.serving.PredictionService/Predict/",
        "/tensorflow.serving.PredictionService/predict",
        "/tiltyard.api.router.v1.RouteService/WatchRoutes",
        "/tiltyard.api.controlx.v1.PipelineService/GetPipeline",
        "/tiltyard.api.control",
        "/",
    ],
)
def test_other_methods_are_unimplemented(path: str) -> None:
    with one_arm() as (backend, _, client):
        got = client.call(request(), path=path)
        refused(
            got,
            UNIMPLEMENTED,
            f"this router does not serve {path}; it serves tensorflow.serving.PredictionService/Predict, "
            "grpc.health.v1.Health and tiltyard.api.*",
        )
        assert backend.calls == []


def test_what_is_no_grpc_gets_http_statuses() -> None:
    with one_arm() as (_, _, client):
        usual = {":method": "POST", ":scheme": "http", ":path": PREDICT, ":authority": "r"}
        get = client.open(headers=list((usual | {":method": "GET"}).items()), end=True)
        assert client.finish(get).get(":status") == "405"
        json = client.open(headers=list((usual | {"content-type": "application/json"}).items()))
        client.data(json, b"{}", end=True)
        assert client.finish(json).get(":status") == "415"
        proto = client.open(headers=list((usual | {"content-type": "application/grpc+proto"}).items()))
        client.data(proto, grpc_frame(request()), end=True)
        assert client.finish(proto).status == OK


def test_without_a_table_nothing_is_served() -> None:
    with CoreRouter(table=False) as router, RawClient(router.address) as client:
        got = client.call(request())
        refused(got, UNAVAILABLE, "the router has no route table yet; it waits for the control plane")
        router.apply()
        assert client.call(request()).status == NOT_FOUND


# ---------------------------------------------------------------- answers of all kinds


@pytest.mark.parametrize("status", range(1, 17))
@pytest.mark.parametrize("after_message", [False, True])
def test_a_backends_status_and_message_are_the_clients(status: int, after_message: bool) -> None:
    text = "100%25 g%C3%B6ne %0A over"  # encoded as it is sent

    async def script(call: Call) -> None:
        await call.request()
        if after_message:
            await call.reply(answer(), status=status, text=text)
        else:
            call.only_trailers(status, text, [("x-more", "1")])

    with one_arm(script) as (_, _, client):
        got = client.call(request())
        assert (got.status, got.get("grpc-message")) == (status, text)
        assert got.get("x-more") == (None if after_message else "1")


def http(status: str, content: str = "text/html") -> Script:
    async def script(call: Call) -> None:
        await call.request()
        call.head(headers=[(":status", status), ("content-type", content)])
        await call.data(b"<html>", end=True)

    return script


async def no_status(call: Call) -> None:
    await call.request()
    call.head()
    await call.data(grpc_frame(answer()))
    call.tail(None)


async def no_trailers(call: Call) -> None:
    await call.request()
    call.head()
    await call.data(grpc_frame(answer()), end=True)


async def no_message(call: Call) -> None:
    await call.request()
    call.head()
    call.tail()


async def half_a_message(call: Call) -> None:
    await call.request()
    call.head()
    await call.data(grpc_frame(answer())[:-3])
    call.tail()


async def two_messages(call: Call) -> None:
    await call.request()
    call.head()
    await call.data(grpc_frame(answer()) * 2)
    call.tail()


async def only_trailers_and_ok(call: Call) -> None:
    await call.request()
    call.only_trailers(0)


async def bad_status(call: Call) -> None:
    await call.request()
    call.head()
    await call.data(grpc_frame(answer()))
    call.tail(None, extra=[("grpc-status", "zero")])


@pytest.mark.parametrize(
    ("script", "status", "text"),
    [
        (http("503"), UNAVAILABLE, "the backend answered with HTTP status 503"),
        (http("502"), UNAVAILABLE, "the backend answered with HTTP status 502"),
        (http("429"), UNAVAILABLE, "the backend answered with HTTP status 429"),
        (http("404"), UNIMPLEMENTED, "the backend answered with HTTP status 404"),
        (http("400"), INTERNAL, "the backend answered with HTTP status 400"),
        (http("401"), 16, "the backend answered with HTTP status 401"),
        (http("403"), 7, "the backend answered with HTTP status 403"),
        (http("500"), UNKNOWN, "the backend answered with HTTP status 500"),
        (http("200"), INTERNAL, "the backend's answer is no gRPC (content-type)"),
        (no_status, INTERNAL, "the backend ended its answer without a grpc-status"),
        (no_trailers, INTERNAL, "the backend ended its answer without a grpc-status"),
        (no_message, INTERNAL, "the backend's answer ends before its message does"),
        (half_a_message, INTERNAL, "the backend's answer ends before its message does"),
        (two_messages, INTERNAL, "the backend's answer holds more than one message"),
        (only_trailers_and_ok, INTERNAL, "the backend answered OK without a message"),
        (bad_status, INTERNAL, "the backend ended its answer without a grpc-status"),
    ],
)
def test_answers_that_are_no_grpc_are_errors_that_say_so(script: Script, status: int, text: str) -> None:
    with one_arm(script) as (_, _, client):
        for _ in range(2):
            got = client.call(request())
            assert (got.status, got.message, got.arm) == (status, text, "a")


def test_an_answer_before_the_request_has_ended() -> None:
    """The backend answers at once; the client, still sending, gets the answer and is told to stop."""

    async def hasty(call: Call) -> None:
        call.only_trailers(FAILED_PRECONDITION, "no")

    with one_arm(hasty, backend={"credit": False}) as (_, _, client):
        got = client.call(padded(request(), 8 * MIB))
        assert (got.status, got.message) == (FAILED_PRECONDITION, "no")
        assert client.call(request()).status == FAILED_PRECONDITION


# ---------------------------------------------------------------- many at once


def test_hundreds_of_calls_in_flight_on_one_connection() -> None:
    async def all_at_once(call: Call) -> None:
        await call.request()
        await call.until(lambda: len(call.conn.backend.calls) >= 400)
        await call.reply(answer({"main": floats([call.number])}))

    with one_arm(all_at_once) as (backend, router, client):
        streams = [client.start(request()) for _ in range(400)]
        values = set()
        for got in client.finish_all(streams):
            assert got.status == OK
            values.add(predict_pb2.PredictResponse.FromString(got.body).outputs["main"].float_val[0])
        assert values == set(range(400))
        assert len(backend.connections) == 1
        assert router.stats()["connections"] == 1


def test_a_hundred_connections_at_once() -> None:
    async def all_at_once(call: Call) -> None:
        await call.request()
        await call.until(lambda: len(call.conn.backend.calls) >= 300)
        await call.reply(answer())

    with one_arm(all_at_once) as (_, router, _):
        clients = [RawClient(router.address) for _ in range(100)]
        try:
            streams = [(client, [client.start(request()) for _ in range(3)]) for client in clients]
            assert router.stats()["connections"] == 101
            for client, mine in streams:
                assert {got.status for got in client.finish_all(mine)} == {OK}
        finally:
            for client in clients:
                client.close()


def test_a_client_that_opens_more_streams_than_it_may_loses_its_connection() -> None:
    with one_arm() as (_, router, good), RawClient(router.address) as client:
        client.ping()
        limit = client.peer_settings[SettingsFrame.MAX_CONCURRENT_STREAMS]
        for _ in range(limit):
            client.open()
        client.ping()
        assert router.stats()["streams"] == limit
        client.open()
        client.wait_closed()
        assert [code for _, code in client.goaways] == [PROTOCOL_ERROR]
        wait_until(lambda: router.stats()["streams"] == 0, "its calls to end")
        assert good.call(request()).status == OK
