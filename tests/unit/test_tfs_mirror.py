"""``tiltyard.api.tfs.v1`` against the messages of tensorflow-serving-api: same numbers, same wire types, same bytes."""

from __future__ import annotations

import importlib
import os
import random
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from tiltyard.api.tfs.v1 import config_pb2, metadata_pb2, predict_pb2, saved_model_pb2, status_pb2, tensor_pb2

pytestmark = pytest.mark.serve

PAIRS = [
    (tensor_pb2, "Tensor", "tensor", "TensorProto"),
    (tensor_pb2, "TensorShape", "tensor_shape", "TensorShapeProto"),
    (predict_pb2, "ModelSpec", "model", "ModelSpec"),
    (predict_pb2, "PredictRequest", "predict", "PredictRequest"),
    (predict_pb2, "PredictResponse", "predict", "PredictResponse"),
    (metadata_pb2, "SignatureDefMap", "get_model_metadata", "SignatureDefMap"),
    (metadata_pb2, "GetModelMetadataRequest", "get_model_metadata", "GetModelMetadataRequest"),
    (metadata_pb2, "GetModelMetadataResponse", "get_model_metadata", "GetModelMetadataResponse"),
    (status_pb2, "Status", "status", "StatusProto"),
    (status_pb2, "ModelVersionStatus", "get_model_status", "ModelVersionStatus"),
    (status_pb2, "GetModelStatusRequest", "get_model_status", "GetModelStatusRequest"),
    (status_pb2, "GetModelStatusResponse", "get_model_status", "GetModelStatusResponse"),
    (config_pb2, "FileSystemStoragePathSourceConfig", "path_source", "FileSystemStoragePathSourceConfig"),
    (config_pb2, "ModelConfig", "model_server_config", "ModelConfig"),
    (config_pb2, "ModelConfigList", "model_server_config", "ModelConfigList"),
    (config_pb2, "ModelServerConfig", "model_server_config", "ModelServerConfig"),
    (config_pb2, "Metric", "model_management", "Metric"),
    (config_pb2, "ReloadConfigRequest", "model_management", "ReloadConfigRequest"),
    (config_pb2, "ReloadConfigResponse", "model_management", "ReloadConfigResponse"),
    (saved_model_pb2, "SavedModel", "saved_model", "SavedModel"),
    (saved_model_pb2, "MetaGraphDef", "meta_graph", "MetaGraphDef"),
    (saved_model_pb2, "SignatureDef", "meta_graph", "SignatureDef"),
    (saved_model_pb2, "TensorInfo", "meta_graph", "TensorInfo"),
]


@pytest.fixture(scope="module")
def real() -> SimpleNamespace:
    """The modules of the real messages."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"  # for whatever else this process uses TensorFlow for
    serving = ("get_model_metadata", "get_model_status", "model", "model_management", "predict", "status")
    paths = {name: f"tensorflow_serving.apis.{name}_pb2" for name in serving}
    for name in ("tensor", "tensor_shape", "types"):
        paths[name] = f"tensorflow.core.framework.{name}_pb2"
    for name in ("meta_graph", "saved_model"):
        paths[name] = f"tensorflow.core.protobuf.{name}_pb2"
    paths["model_server_config"] = "tensorflow_serving.config.model_server_config_pb2"
    paths["path_source"] = "tensorflow_serving.config.file_system_storage_path_source_pb2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("tensorflow_serving", reason="needs the [serve] extra")
        return SimpleNamespace(**{name: importlib.import_module(path) for name, path in paths.items()})


def _types(real: SimpleNamespace, pair: tuple[Any, str, str, str]) -> tuple[type[Message], type[Message]]:
    ours, our_name, module, their_name = pair
    return getattr(ours, our_name), getattr(getattr(real, module), their_name)


def _compare(ours: Any, theirs: Any, path: str, seen: set[str]) -> None:
    """Every field of ours is a field of theirs with the same number and wire form, down through all messages."""
    if ours.full_name in seen:
        return
    seen.add(ours.full_name)
    for field in ours.fields:
        where = f"{path}.{field.name}"
        their: Any = theirs.fields_by_number.get(field.number)
        assert their is not None, where
        assert field.name == their.name, where
        assert field.is_repeated == their.is_repeated, where
        assert field.is_packed == their.is_packed, where
        assert field.has_presence == their.has_presence, where
        assert _oneof(field) == _oneof(their), where
        if field.type != their.type:  # gRPC's status codes are no enum of ours: buf wants 0 to mean nothing
            assert (field.type, their.type) == (FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_ENUM), where
            assert where.endswith(("Status.error_code", "status.error_code")), where
        if field.message_type is not None and not field.message_type.full_name.startswith("google."):
            assert field.message_type.GetOptions().map_entry == their.message_type.GetOptions().map_entry, where
            _compare(field.message_type, their.message_type, where, seen)


def _oneof(field: FieldDescriptor) -> str:
    oneof = field.containing_oneof
    return "" if oneof is None or oneof.name.startswith("_") else oneof.name


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[1])
def test_fields_have_the_numbers_and_types_of_the_real_ones(
    real: SimpleNamespace, pair: tuple[Any, str, str, str]
) -> None:
    ours, theirs = _types(real, pair)
    assert ours.DESCRIPTOR.fields or ours.DESCRIPTOR.nested_types
    _compare(ours.DESCRIPTOR, theirs.DESCRIPTOR, pair[1], set())
    for nested in ours.DESCRIPTOR.nested_types:
        _compare(nested, theirs.DESCRIPTOR.nested_types_by_name[nested.name], f"{pair[1]}.{nested.name}", set())


def test_the_tensor_leaves_out_only_what_is_never_sent(real: SimpleNamespace) -> None:
    ours = set(tensor_pb2.Tensor.DESCRIPTOR.fields_by_name)
    theirs = set(real.tensor.TensorProto.DESCRIPTOR.fields_by_name)
    assert theirs - ours == {"resource_handle_val", "variant_val"}


def test_every_message_of_ours_is_compared() -> None:
    modules = (config_pb2, metadata_pb2, predict_pb2, saved_model_pb2, status_pb2, tensor_pb2)
    ours = {message.name for module in modules for message in module.DESCRIPTOR.message_types_by_name.values()}
    assert ours == {pair[1] for pair in PAIRS}


def test_data_types_have_the_real_numbers(real: SimpleNamespace) -> None:
    ours = {name.removeprefix("DATA_TYPE_"): number for name, number in tensor_pb2.DataType.items()}
    theirs = {
        name.removeprefix("DT_"): number for name, number in real.types.DataType.items() if not name.endswith("_REF")
    }
    assert (ours.pop("UNSPECIFIED"), theirs.pop("INVALID")) == (0, 0)
    # An older TensorFlow knows fewer types, a newer one perhaps more than we do.
    assert all(ours.get(name) == number for name, number in theirs.items() if number <= max(ours.values()))
    assert {"FLOAT", "INT64", "STRING", "BFLOAT16"} <= ours.keys() & theirs.keys()


def test_states_have_the_real_numbers(real: SimpleNamespace) -> None:
    ours = {name.removeprefix("STATE_"): number for name, number in status_pb2.ModelVersionStatus.State.items()}
    theirs = dict(real.get_model_status.ModelVersionStatus.State.items())
    ours["UNKNOWN"] = ours.pop("UNSPECIFIED")
    assert ours == theirs


# Round trips.


def _value(field: FieldDescriptor, rng: random.Random) -> Any:
    kinds = FieldDescriptor
    if field.enum_type is not None:
        return rng.choice(field.enum_type.values).number
    if field.type == kinds.TYPE_STRING:
        return rng.choice(["", "x", "naïve", "n" * 200])
    if field.type == kinds.TYPE_BYTES:
        return rng.randbytes(rng.randrange(20))
    if field.type == kinds.TYPE_BOOL:
        return rng.random() < 0.5
    if field.type in (kinds.TYPE_FLOAT, kinds.TYPE_DOUBLE):
        return rng.choice([0.0, -0.0, 0.5, -3.25, float("inf")])
    if field.type in (kinds.TYPE_UINT32, kinds.TYPE_UINT64, kinds.TYPE_FIXED32, kinds.TYPE_FIXED64):
        return rng.choice([0, 1, 300, 2**32 - 1])
    limit = 2**31 if field.type == kinds.TYPE_INT32 else 2**63
    return rng.choice([0, 1, -1, 300, limit - 1, -limit])


def _fill(message: Any, rng: random.Random, depth: int = 4) -> None:
    """Set about half of the fields, at random, down to ``depth``."""
    for field in message.DESCRIPTOR.fields:
        if rng.random() < 0.5 or depth == 0:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            for _ in range(rng.randrange(3)):
                value = field.message_type.fields_by_name["value"]
                key = _value(field.message_type.fields_by_name["key"], rng)
                if value.message_type is None:
                    getattr(message, field.name)[key] = _value(value, rng)
                else:
                    _fill(getattr(message, field.name)[key], rng, depth - 1)
        elif field.message_type is not None and field.is_repeated:
            for _ in range(rng.randrange(3)):
                _fill(getattr(message, field.name).add(), rng, depth - 1)
        elif field.message_type is not None:
            getattr(message, field.name).SetInParent()
            _fill(getattr(message, field.name), rng, depth - 1)
        elif field.is_repeated:
            getattr(message, field.name).extend(_value(field, rng) for _ in range(rng.randrange(4)))
        else:
            setattr(message, field.name, _value(field, rng))


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[1])
def test_messages_survive_the_way_through_the_other_side(
    real: SimpleNamespace, pair: tuple[Any, str, str, str]
) -> None:
    """Both ways; fields that one side does not know come back unharmed."""
    rng = random.Random(pair[1])
    ours, theirs = _types(real, pair)
    filled = 0
    for first, second in ((ours, theirs), (theirs, ours)) * 100:
        message = first()
        _fill(message, rng)
        sent = message.SerializeToString(deterministic=True)
        filled += bool(sent)
        passed_on = second.FromString(sent).SerializeToString(deterministic=True)
        assert first.FromString(passed_on) == message
        assert len(passed_on) == len(sent)
    assert filled > 50


def test_values_mean_the_same_on_both_sides(real: SimpleNamespace) -> None:
    request = real.predict.PredictRequest(output_filter=["main", "other"])
    request.model_spec.name = "fraud"
    request.model_spec.version.value = 7
    request.inputs["x"].dtype = real.types.DT_FLOAT
    request.inputs["x"].float_val.extend([1.5, 2.5])
    request.inputs["x"].tensor_shape.dim.add().size = 2
    ours = predict_pb2.PredictRequest.FromString(request.SerializeToString())
    assert (ours.model_spec.name, ours.model_spec.version.value) == ("fraud", 7)
    assert ours.model_spec.WhichOneof("version_choice") == "version"
    assert ours.inputs["x"].dtype == tensor_pb2.DATA_TYPE_FLOAT
    assert list(ours.inputs["x"].float_val) == [1.5, 2.5]
    assert list(ours.output_filter) == ["main", "other"]
    assert not ours.DESCRIPTOR.file.name.startswith("tensorflow")
