from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from onnxslim_tk.errors import RecipeError
from onnxslim_tk.graph.model import Model
from onnxslim_tk.measure.fidelity import OutputFidelity
from onnxslim_tk.measure.samples import Samples
from onnxslim_tk.passes import PASSES
from onnxslim_tk.passes.clean import Clean
from onnxslim_tk.pipeline import Options, apply, optimize, plan
from onnxslim_tk.pipeline.run import open_workshop
from onnxslim_tk.pipeline.within_budget import WithinBudget
from onnxslim_tk.plan.budget import Budget
from onnxslim_tk.plan.proposal import Context, Proposal, Refusal
from onnxslim_tk.plan.recipe import parse_recipe
from onnxslim_tk.report.outcome import Report
from tests.models import model_of, normal
from tests.pipeline.conftest import Write


@pytest.fixture
def wide(write: Write) -> Path:
    """A network of wide layers, for the bytes of codes to matter: ``x (N, 32)``."""
    text = """<ir_version: 8, opset_import: ["": 17]>
    wide (float[N, 32] x) => (float[N, 8] y) {
        m1 = MatMul(x, w1)
        r1 = Relu(m1)
        m2 = MatMul(r1, w2)
        r2 = Relu(m2)
        m3 = MatMul(r2, w3)
        r3 = Relu(m3)
        y = MatMul(r3, w4)
    }"""
    shapes = [(32, 128), (128, 256), (256, 128), (128, 8)]
    weights = {
        f"w{k + 1}": normal(k, *shape, scale=shape[0] ** -0.5) for k, shape in enumerate(shapes)
    }
    return write(model_of(text, weights), "wide.onnx")


def outputs_in(report: Report) -> Sequence[OutputFidelity]:
    assert report.validation.faithfulness is not None
    return report.validation.faithfulness.outputs


def sizes(path: Path, result: Path) -> float:
    return result.stat().st_size / path.stat().st_size


def test_a_size_in_parts_of_the_original_is_kept_whatever_it_loses(
    wide: Path, samples: Samples, tmp_path: Path
) -> None:
    errors = []
    for limit in ("22%", "12%"):
        result = tmp_path / f"{limit}.onnx"
        report = optimize(
            wide, result, "small", Options(calibration=samples, budget=Budget(max_size=limit))
        )
        assert report.holds
        assert float(limit[:-1]) / 100 * 0.8 < sizes(wide, result) <= float(limit[:-1]) / 100
        assert [check.figure for check in report.checks] == ["bytes"]
        errors.append(min(o.sqnr_db for o in outputs_in(report)))
    assert errors[0] > errors[1] + 3


def test_a_size_that_cannot_be_reached_gives_the_smallest_and_says_so(
    wide: Path, samples: Samples, tmp_path: Path
) -> None:
    result = tmp_path / "result.onnx"
    options = Options(calibration=samples, budget=Budget(max_size=300))
    report = optimize(wide, result, "small", options)
    assert not report.holds
    assert sizes(wide, result) < 0.13
    (check,) = report.checks
    assert (check.figure, check.limit, check.value) == ("bytes", 300, result.stat().st_size)


def test_a_size_needs_no_samples(wide: Path, tmp_path: Path) -> None:
    result = tmp_path / "result.onnx"
    assert optimize(wide, result, "small", Options(budget=Budget(max_size="20%"))).holds
    assert 0.1 < sizes(wide, result) <= 0.2


def test_a_size_that_a_recipe_has_no_settings_for_is_refused_in_one_sentence(
    wide: Path, samples: Samples, tmp_path: Path
) -> None:
    result = tmp_path / "result.onnx"
    options = Options(calibration=samples, budget=Budget(max_size="10%"))
    with pytest.raises(RecipeError, match="no method in it trades bytes for error"):
        optimize(wide, result, "balanced", options)
    assert not result.exists()
    options = replace(options, budget=Budget(max_size="90%"))
    assert optimize(wide, result, "balanced", options).holds


def test_a_limit_of_loss_is_used_up(wide: Path, samples: Samples, tmp_path: Path) -> None:
    result, reached = tmp_path / "result.onnx", []
    for limit in (25.0, 10.0):
        options = Options(calibration=samples, budget=Budget(min_sqnr_db=limit, min_agreement=0))
        report = optimize(wide, result, "small", options)
        assert report.holds
        reached.append(sizes(wide, result))
    assert reached[0] > reached[1] + 0.02


def test_a_result_much_nearer_than_enough_gives_up_bytes_and_stays_near(
    wide: Path, samples: Samples, tmp_path: Path
) -> None:
    result, found = tmp_path / "result.onnx", {}
    for enough in ("null", "12", "90"):
        text = f"""
            stages: {{clean: [clean], share: [{{share: 64}}]}}
            budget: {{enough_db: {enough}}}"""
        report = optimize(
            wide, result, parse_recipe(text, "mine", PASSES), Options(calibration=samples)
        )
        found[enough] = sizes(wide, result), min(o.sqnr_db for o in outputs_in(report))
    assert found["90"] == found["null"]
    assert found["12"][0] < 0.9 * found["null"][0]
    # Other samples judge than those it was chosen by.
    assert 10 < found["12"][1] < found["null"][1] - 3


def test_the_plan_of_a_mix_gives_its_bytes(wide: Path, samples: Samples, tmp_path: Path) -> None:
    options = Options(calibration=samples, budget=Budget(max_size="14%"))
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    optimize(wide, first, "small", options)
    made = plan(wide, "small", options)
    assert len({row.setting for stage in made.stages for row in stage.rows}) > 3
    apply(wide, second, made, options)
    assert first.read_bytes() == second.read_bytes()


def test_what_an_earlier_attempt_began_alike_is_not_looked_at_again(
    wide: Path, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    propose = Clean.propose

    def counted(self: Clean, model: Model, context: Context) -> Iterator[Proposal | Refusal]:
        looks.append(1)
        return propose(self, model, context)

    monkeypatch.setattr(Clean, "propose", counted)
    recipe = parse_recipe(
        "{name: x, stages: {clean: [clean], share: [share], numbers: [quantize]}}", "x", PASSES
    )
    options = Options(calibration=samples, budget=Budget(max_size="12%"))
    shop = open_workshop(wide, recipe, options, None)
    found = WithinBudget(shop).best()
    assert len(looks) == 1
    alone = open_workshop(wide, recipe, replace(options), None)
    rows = {stage.stage: list(stage.rows) for stage in found.plan.stages}
    again = alone.attempt(lambda stage, proposals, model, context: rows[stage.name], 0)
    assert again.data == found.data


@pytest.mark.parametrize("recipe", ["balanced", "small"])
def test_multiplications_fall_to_their_limit_by_channels(
    wide: Path, samples: Samples, tmp_path: Path, recipe: str
) -> None:
    options = Options(calibration=samples, budget=Budget(max_macs="60%", max_params="60%"))
    report = optimize(wide, tmp_path / "result.onnx", recipe, options)
    assert report.holds
    shares = {check.figure: check.value for check in report.checks if check.subject == "layers"}
    assert set(shares) == {"share of macs", "share of parameters"}
    assert all(0.2 < share <= 0.6 for share in shares.values())
    figures = report.validation
    assert (figures.result.macs or 0) <= 0.6 * (figures.original.macs or 0)


def test_a_limit_that_no_pruning_meets_is_said_not_to_hold(
    wide: Path, samples: Samples, tmp_path: Path
) -> None:
    options = Options(calibration=samples, budget=Budget(max_macs="1%"))
    report = optimize(wide, tmp_path / "result.onnx", "light", options)
    assert not report.holds
    assert [c.figure for c in report.checks if not c.holds] == ["share of macs"]


def low_rank(write: Write) -> Path:
    """A network whose middle weight is of low rank, and whose channels are all needed."""
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 32] x) => (float[N, 96] y) {
        m1 = MatMul(x, w1)
        r1 = Relu(m1)
        m2 = MatMul(r1, w2)
        r2 = Relu(m2)
        y = MatMul(r2, w3)
    }"""
    thin = normal(1, 256, 16, scale=0.1) @ normal(2, 16, 256, scale=0.3)
    weights = {"w1": normal(0, 32, 256), "w2": thin.astype(np.float32), "w3": normal(3, 256, 96)}
    return write(model_of(text, weights), "low_rank.onnx")


def test_limits_are_met_by_whatever_method_costs_least(
    write: Write, samples: Samples, tmp_path: Path
) -> None:
    source, qualities = low_rank(write), []
    for text in (
        "stages: {clean: [clean], structure: [{factorize: {max_error: 0.5}}, {channels: 0.25}]}",
        "stages: {clean: [clean], structure: [{channels: 0.25}]}",
    ):
        recipe = parse_recipe(text, "mine", PASSES)
        options = Options(calibration=samples, budget=Budget(max_macs="67%"))
        report = optimize(source, tmp_path / "result.onnx", recipe, options)
        assert report.holds
        qualities.append((outputs_in(report)[0].sqnr_db, report.plan))
    assert qualities[0][0] > qualities[1][0] + 3
    rows = qualities[0][1].stages[1].rows
    assert {row.targets for row in rows if row.method == "factorize"} == {("m2",)}


def test_a_limit_alone_lets_all_methods_of_structure_have_a_part(
    write: Write, samples: Samples, tmp_path: Path
) -> None:
    options = Options(calibration=samples, budget=Budget(max_latency="80%"))
    report = optimize(low_rank(write), tmp_path / "result.onnx", "light", options)
    assert report.holds
    stage = next(stage for stage in report.plan.stages if stage.stage == "structure")
    assert {row.method for row in stage.rows} <= {"blocks", "operators", "factorize", "channels"}
    assert stage.rows


def test_channels_may_be_cut_twice(wide: Path, samples: Samples, tmp_path: Path) -> None:
    text = "stages: {first: [{channels: 0.75}], second: [{channels: 0.5}], then: [sparsify]}"
    recipe = parse_recipe(text, "twice", PASSES)
    options = Options(calibration=samples, budget=Budget(min_sqnr_db=-10, min_agreement=0))
    report = optimize(wide, tmp_path / "result.onnx", recipe, options)
    assert [bool(stage.rows) for stage in report.plan.stages] == [True, True, True]
