"""The tutorial's own models, which are Keras LSTMs that ``tf.saved_model.load`` cannot read."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest

if TYPE_CHECKING:
    from tests.modelserver.conftest import Client

pytestmark = [pytest.mark.serve, pytest.mark.aloha]

Refused = Callable[[Callable[[], Any]], tuple[grpc.StatusCode, str]]
FIRST_ROW = {"main": 0.99756402, "banjori": 0.0015195857, "corebot": 0.98291481, "suppobox": 1.3889951e-27}


@pytest.fixture(scope="module")
def data() -> Path:
    folder = os.environ.get("TILTYARD_ALOHA_DIR")
    if not folder:
        pytest.skip("TILTYARD_ALOHA_DIR does not name the folder of the tutorial's models")
    return Path(folder)


@pytest.fixture(scope="module")
def row(data: Path) -> np.ndarray[Any, Any]:
    return np.array(json.loads((data / "data-1.json").read_text())["text_input"], np.float32)


@pytest.fixture(scope="module")
def aloha(client: Client, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Client:
    root = tmp_path_factory.mktemp("aloha")
    configs = []
    for name in ("aloha-cnn-lstm", "aloha-cnn-lstm-new"):
        with zipfile.ZipFile(data / f"{name}.zip") as archive:
            archive.extractall(root / f"{name}-zip")
        (root / name).mkdir()
        (root / f"{name}-zip" / name).rename(root / name / "1")
        configs.append({"name": name, "base_path": root / name})
    client.reload(*configs)
    return client


@pytest.mark.parametrize("name", ["aloha-cnn-lstm", "aloha-cnn-lstm-new"])
def test_the_first_row_gets_the_tutorials_answer(aloha: Client, row: np.ndarray[Any, Any], name: str) -> None:
    outputs = aloha.predict(name, {"text_input": row}).outputs
    assert len(outputs) == 15
    got = {family: outputs[family].float_val[0] for family in FIRST_ROW}
    assert got == pytest.approx(FIRST_ROW, rel=1e-5, abs=0)


def test_a_tensor_of_rank_one_is_refused_and_the_server_lives(
    aloha: Client, row: np.ndarray[Any, Any], refused: Refused
) -> None:
    for shape in ((50,), (), (1, 1, 50)):
        code, text = refused(lambda shape=shape: aloha.predict("aloha-cnn-lstm", {"text_input": np.ones(shape, "f4")}))  # type: ignore[misc]
        assert code is grpc.StatusCode.INVALID_ARGUMENT, text
    assert aloha.predict("aloha-cnn-lstm", {"text_input": row}).outputs["main"].float_val[0] > 0.99


def test_the_signatures_width_is_not_checked(aloha: Client, row: np.ndarray[Any, Any]) -> None:
    outputs = aloha.predict("aloha-cnn-lstm", {"text_input": row[:, 1:]}).outputs
    assert 0 < outputs["main"].float_val[0] < 1


def test_numbers_of_another_type_are_refused(aloha: Client, row: np.ndarray[Any, Any], refused: Refused) -> None:
    code, text = refused(lambda: aloha.predict("aloha-cnn-lstm", {"text_input": row.astype(np.int64)}))
    assert (code, text) == (grpc.StatusCode.INVALID_ARGUMENT, "Expects arg[0] to be float but int64 is provided")


def test_three_thousand_rows_in_one_request(aloha: Client, row: np.ndarray[Any, Any], data: Path) -> None:
    rows = np.array([entry["text_input"][0] for entry in json.loads((data / "test_data.json").read_text())], np.float32)
    batch = np.tile(rows, (3, 1))[:3000]
    outputs = aloha.predict("aloha-cnn-lstm", {"text_input": batch}).outputs
    main = np.array(outputs["main"].float_val)
    assert main.shape == (3000,)
    assert [dim.size for dim in outputs["main"].tensor_shape.dim] == [3000, 1]
    assert np.array_equal(main[:1000], main[1000:2000])
    assert int((main[:1000] > 0.5).sum()) == 977
    assert main[0] == pytest.approx(FIRST_ROW["main"], rel=1e-5)
