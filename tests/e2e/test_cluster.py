"""Each kind of process that tests and benchmarks can start, once: it serves, and it ends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiltyard.demo.data import INPUT, MAIN, NAME_LENGTH
from tiltyard.testing.cluster import (
    float_output,
    health,
    open_predict,
    predict_message,
    start_control,
    start_modelserver,
    start_outcomes,
    start_router,
)

MODELS = Path(__file__).resolve().parents[2] / "examples" / "dga" / "models"

ROUTES = """\
pipelines:
  - name: dga
    hash_key: session_id
    arms:
      - {{name: champion,   weight: 2, model: champion, version: 1, backends: ["{address}"]}}
      - {{name: challenger, weight: 1, model: champion, version: 1, backends: ["{address}"]}}
    metrics:
      - {{name: main, output: main, index: 0, above: 0.5}}
"""


@pytest.mark.serve
@pytest.mark.router
def test_a_router_in_front_of_a_model_server(tmp_path: Path) -> None:
    pytest.importorskip("tiltyard_router.core", exc_type=ImportError)
    base = tmp_path / "champion"
    base.mkdir()
    (base / "1").symlink_to(MODELS / "champion")
    flags = ("--model_name=champion", f"--model_base_path={base}")
    rows = np.full((3, NAME_LENGTH), 20, np.float32)
    with (
        start_modelserver(*flags, folder=tmp_path) as backend,
        start_router(ROUTES.format(address=backend.address), folder=tmp_path) as router,
        open_predict(backend.address) as ask_backend,
        open_predict(router.address) as ask_router,
    ):
        assert health(router.address) == "SERVING"
        direct, _ = ask_backend(predict_message("champion", {INPUT: rows}))
        routed, metadata = ask_router(predict_message("dga", {INPUT: rows}), metadata={"session_id": "a"})
        assert float_output(direct, MAIN).shape == (3,)
        assert (float_output(direct, MAIN) == float_output(routed, MAIN)).all()
        _, forced = ask_router(predict_message("dga", {INPUT: rows}, label="challenger"))
        assert metadata["tiltyard-arm"] in ("champion", "challenger")
        assert forced["tiltyard-arm"] == "challenger"
    assert (backend.returncode(), router.returncode()) == (0, 0)


def test_the_services_beside_the_path(tmp_path: Path) -> None:
    pytest.importorskip("sqlalchemy")
    with start_control(folder=tmp_path) as control, start_outcomes(folder=tmp_path) as outcomes:
        assert (tmp_path / "control" / "control-router.sock").is_socket()
        assert (tmp_path / "outcomes" / "outcomes.sock").is_socket()
        assert control.address != outcomes.address
    assert (control.returncode(), outcomes.returncode()) == (0, 0)
