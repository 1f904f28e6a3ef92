import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onnxslim_tk.errors import RecipeError
from onnxslim_tk.passes import PASSES
from onnxslim_tk.plan.plan import Plan, StagePlan, plan_data, read_plan, write_plan
from onnxslim_tk.plan.proposal import Proposal, Refusal
from onnxslim_tk.plan.recipe import parse_recipe

RECIPE = parse_recipe(
    """
    name: mine
    stages: {sharing: [{share: 4}], numbers: [quantize]}
    layers: {"head*": {quantize: false}, "c?": {share: {clusters: 8, effort: quick}}}
    exclude: [stem]
    budget: {min_sqnr_db: 12.5}
    """,
    "mine",
    PASSES,
)
ROWS = (
    Proposal(
        ("c1",),
        "share",
        4,
        {"entries": [-2.5, 1e-7, 3.0000000001], "unit": 0.1, "nested": {"é": [True, None]}},
        bytes_saved=1234,
        macs_saved=5,
        cost_saved=0.1 + 0.2,
        error=1 / 3,
        measured=True,
    ),
    Proposal(("a", "b"), "share", "256x4", {}, bytes_saved=-3),
)
STAGES = (
    StagePlan("sharing", ROWS, (Refusal("tiny", "share", "fewer than 512 weights"),)),
    StagePlan("numbers", (Proposal(("c1",), "quantize", "integer"),)),
)
PLAN = Plan("ab" * 32, RECIPE, 7, STAGES)


def test_reads_back_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_plan(PLAN, path)
    back = read_plan(path, PASSES)
    assert back.recipe == PLAN.recipe
    assert (back.source_sha256, back.seed) == (PLAN.source_sha256, PLAN.seed)
    assert [stage.rows for stage in back.stages] == [stage.rows for stage in PLAN.stages]
    write_plan(back, tmp_path / "again.json")
    assert read_plan(tmp_path / "again.json", PASSES).stages == back.stages


def test_is_json_that_any_reader_takes(tmp_path: Path) -> None:
    boundless = Proposal(("c1",), "share", 4, error=float("inf"))
    path = tmp_path / "plan.json"
    stages = (StagePlan("sharing", (boundless,)), StagePlan("numbers", ()))
    write_plan(Plan("ab", RECIPE, 0, stages), path)

    def refuse(text: str) -> Any:
        raise AssertionError(text)

    json.loads(path.read_text(), parse_constant=refuse)
    assert read_plan(path, PASSES).stages[0].rows[0].error == 1e9


DAMAGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "must be a plan of format 1": lambda d: d.update(format=2),
    "'stages' must be a list": lambda d: d.update(stages={}),
    "must be a mapping with 'stages'": lambda d: d.update(recipe=None),
    "no pass 'shrae' in stage": lambda d: d["recipe"]["stages"].update(sharing=["shrae"]),
    "clusters must be in [2, 256]": lambda d: d["recipe"]["stages"].update(sharing=[{"share": 1}]),
    "must be a whole number from 0 up, got -1": lambda d: d.update(seed=-1),
    "must be a whole number from 0 up, got True": lambda d: d.update(seed=True),
    "must be a whole number from 0 up, got '7'": lambda d: d.update(seed="7"),
    "'source_sha256' must be text, got None": lambda d: d.pop("source_sha256"),
    "stages must be those of its recipe: sharing, numbers": lambda d: d["stages"].pop(),
    "a stage must be a mapping that names one of": lambda d: d["stages"][0].update(stage="x"),
    "the rows of stage 'sharing' must be a list": lambda d: d["stages"][0].update(rows=None),
    "a row must be a mapping, got int": lambda d: d["stages"][0]["rows"].append(3),
    "a row's 'targets' must be a list": lambda d: d["stages"][0]["rows"][0].update(targets="c1"),
    "ids, got []": lambda d: d["stages"][0]["rows"][0].update(targets=[]),
    "no method 'shrae'; known:": lambda d: d["stages"][0]["rows"][0].update(method="shrae"),
    "no method ['share']": lambda d: d["stages"][0]["rows"][0].update(method=["share"]),
    "the setting of share on 'c1' is None": lambda d: d["stages"][0]["rows"][0].pop("setting"),
    "the details of share on 'c1'": lambda d: d["stages"][0]["rows"][0].update(details=[1]),
    "bytes_saved must be a finite": lambda d: d["stages"][0]["rows"][0].update(bytes_saved="1"),
    "error must be a finite": lambda d: d["stages"][0]["rows"][0].update(error=float("nan")),
    "macs_saved must be a finite": lambda d: d["stages"][0]["rows"][0].update(
        macs_saved=float("inf")
    ),
    "two rows of share for 'c1'": lambda d: d["stages"][0]["rows"].append(
        d["stages"][0]["rows"][0]
    ),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_a_damaged_plan_is_refused_in_one_line(message: str, tmp_path: Path) -> None:
    data = json.loads(json.dumps(plan_data(PLAN)))
    DAMAGES[message](data)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(data))
    with pytest.raises(RecipeError) as caught:
        read_plan(path, PASSES)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe\x00", b"[" * 100_000])
def test_what_is_no_plan_at_all_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match="plan"):
        read_plan(path, PASSES)
    with pytest.raises(RecipeError, match="is not a readable JSON file"):
        read_plan(tmp_path / "missing.json", PASSES)


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"plan: .* cannot be written"):
        write_plan(PLAN, tmp_path / "no" / "plan.json")
