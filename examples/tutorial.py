"""The A/B tutorial as a script, on the project's own demo models.

Start a Tiltyard first (``tiltyard up``), then, in a checkout:

    python examples/tutorial.py [127.0.0.1:8500]

Two models judge domain names: was this one made by malware? The challenger knows three malware families more than the
champion. Two thirds of the requests go to the champion and one third to the challenger, and requests of one session
always to the same one.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path

import tiltyard
from tiltyard.demo.data import INPUT, MAIN, encode_names, load_names
from tiltyard.object import EntityNotFoundError

HERE = Path(__file__).resolve().parent
WORKSPACE_NAME = "abtestworkspace"
PIPELINE_NAME = "randomsplitpipeline-demo"
REQUESTS = 1000


def get_workspace(wl: tiltyard.Client, name: str) -> tiltyard.Workspace:
    """The workspace of that name, made when there is none."""
    for workspace in wl.list_workspaces():
        if workspace.name() == name:
            return workspace
    return wl.create_workspace(name)


def deploy(wl: tiltyard.Client) -> tiltyard.Pipeline:
    """Upload both models and split the requests between them, 2 to 1."""
    wl.set_current_workspace(get_workspace(wl, WORKSPACE_NAME))
    control = wl.upload_model("dga-control", HERE / "dga" / "models" / "champion").configure("tensorflow")
    challenger = wl.upload_model("dga-challenger", HERE / "dga" / "models" / "challenger").configure("tensorflow")
    pipeline = (
        wl.build_pipeline(PIPELINE_NAME)
        .add_random_split([(2, control), (1, challenger)], "session_id")
        .add_metric("main", output=MAIN, above=0.5)
    )
    return pipeline.deploy()


def main() -> None:
    """Run the tutorial from upload to undeploy."""
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8500"
    names = load_names(HERE / "dga" / "heldout.csv")[:REQUESTS]
    rows = encode_names(name.name for name in names)
    with tiltyard.Client(address) as wl:
        experiment_pipeline = deploy(wl)

        # A single inference, five times: the name goes to either model.
        print(f"{names[0].name}, five times:")
        for _ in range(5):
            result = experiment_pipeline.infer({INPUT: rows[:1]})[0]
            print(" ", result.model(), f"main = {result.outputs()[MAIN].item():.6f}")

        # A batch: each name is one request, and its session decides which model judges it.
        responses: list[tiltyard.InferenceResult] = []
        for name, row in zip(names, rows, strict=True):
            responses.extend(experiment_pipeline.infer({INPUT: [row], "session_id": name.session_id}))
        print(f"\n{len(responses)} names by model:")
        for model, n in Counter(response.raw["model_name"] for response in responses).most_common():
            print(f"  {model:16} {n}")

        # What the tutorial compares: how often each model says "malware". Outputs come in alphabetical order of their
        # names, and `main` is the eighth. The labels tell more: how often it was right.
        print("\nshare of names judged to be malware's, and judged rightly:")
        for model in ("dga-control", "dga-challenger"):
            mine = [
                (name, response.raw["outputs"][7]["Float"]["data"][0])
                for name, response in zip(names, responses, strict=True)
                if response.raw["model_name"] == model
            ]
            if mine:
                positive = sum(score > 0.5 for _, score in mine) / len(mine)
                right = sum(name.correct(score) for name, score in mine) / len(mine)
                print(f"  {model:16} {positive:.3f}  {right:.3f}")

        # The same first number, counted by the router as the answers passed; it is there within a second or two.
        print("\nwhat the router counted:")
        print(wait_for_counts(experiment_pipeline, 5 + len(responses)))
        print("\n(These are counts, not a verdict: a difference this size may or may not be chance.)")

        experiment_pipeline.undeploy()
        print(f"\n{experiment_pipeline.status()['status']}")


def wait_for_counts(pipeline: tiltyard.Pipeline, requests: int, timeout_s: float = 20.0) -> tiltyard.Report:
    """The report once it holds ``requests`` requests.

    Raises:
        TimeoutError: they were not counted in time.
    """
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        try:
            report = pipeline.report()
        except EntityNotFoundError:  # the first counts are still on their way
            pass
        else:
            if sum(arm.live.completed for arm in report.arms) >= requests:
                return report
        time.sleep(0.1)
    raise TimeoutError(f"the {requests} requests were not counted within {timeout_s:g} s; is the outcomes service up?")


if __name__ == "__main__":
    main()
