import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import checker

from onnxslim_tk.errors import CalibrationError, ModelError, RecipeError, SessionError
from onnxslim_tk.graph.layers import layers
from onnxslim_tk.measure.metrics import METRICS
from onnxslim_tk.measure.runtime import Session, running_operators
from onnxslim_tk.measure.samples import Samples, split
from onnxslim_tk.passes import PASSES
from onnxslim_tk.pipeline import Options, apply, load, optimize, plan, validate
from onnxslim_tk.plan.budget import Budget
from onnxslim_tk.plan.plan import read_plan, write_plan
from onnxslim_tk.plan.recipe import Recipe, parse_recipe
from tests.models import SLOW_FLOATS, mlp, model_of, normal

from .conftest import Write


def recipe(text: str) -> Recipe:
    return parse_recipe(text, "test", PASSES)


SHARING = recipe("stages: {tidy: [clean, fuse], sharing: [{share: 4}], numbers: [quantize]}")
EASY = Budget(min_sqnr_db=15, min_agreement=0)


def options(samples: Samples | None, budget: Budget | None = None, seed: int = 0) -> Options:
    usual = None if samples is None else EASY
    return Options(calibration=samples, budget=budget or usual, target=SLOW_FLOATS, seed=seed)


def test_compresses_with_samples_and_keeps_what_the_file_says(
    model: Path, samples: Samples, tmp_path: Path
) -> None:
    before = model.read_bytes()
    result = tmp_path / "out.onnx"
    report = optimize(model, result, "balanced", options(samples))
    assert model.read_bytes() == before
    assert report.holds
    assert not report.warnings
    assert (report.steps_back, report.only_tidied) == (0, False)
    assert report.validation.result.file_bytes == result.stat().st_size < len(before) / 2
    assert report.result_sha256 == hashlib.sha256(result.read_bytes()).hexdigest()
    assert report.source_sha256 == hashlib.sha256(before).hexdigest()
    assert running_operators(result)["QGemm"] == 3 == report.validation.integer_formed
    assert report.samples is not None
    assert (report.samples.calibrate, report.samples.choose, report.samples.judge) == (20, 10, 10)
    original, made = onnx.load(model), onnx.load(result)
    checker.check_model(made, full_check=True)
    assert list(made.graph.input) == list(original.graph.input)
    assert list(made.graph.output) == list(original.graph.output)
    assert made.producer_name == "a vendor"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "out.onnx"]


def test_metadata_say_how_the_result_was_made_without_paths(
    model: Path, samples: Samples, tmp_path: Path
) -> None:
    result = tmp_path / "out.onnx"
    optimize(model, result, SHARING, options(samples, seed=3))
    found = {entry.key: entry.value for entry in onnx.load(result).metadata_props}
    assert found["stride"] == "32"
    assert found["onnxslim_tk.seed"] == "3"
    assert found["onnxslim_tk.source_sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    made = json.loads(found["onnxslim_tk.recipe"])
    assert made["stages"]["sharing"][0]["share"]["clusters"] == 4
    assert not any(str(tmp_path) in value or "model.onnx" in value for value in found.values())
    # A second run names its own making only.
    again = tmp_path / "again.onnx"
    optimize(result, again, "light", options(None))
    keys = [entry.key for entry in onnx.load(again).metadata_props]
    assert len(keys) == len(set(keys))


def test_same_inputs_give_the_same_bytes_in_one_process(
    model: Path, samples: Samples, tmp_path: Path
) -> None:
    for name in ("a.onnx", "b.onnx"):
        optimize(model, tmp_path / name, SHARING, options(samples))
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    optimize(model, tmp_path / "c.onnx", SHARING, options(samples, seed=1))
    assert (tmp_path / "c.onnx").read_bytes() != (tmp_path / "a.onnx").read_bytes()


SCRIPT = """
import sys
from onnxslim_tk.pipeline import Options, optimize
from onnxslim_tk.plan.budget import Budget
budget = Budget(min_sqnr_db=15, min_agreement=0)
optimize(sys.argv[1], sys.argv[2], "small", Options(calibration=sys.argv[3], budget=budget))
"""


def test_same_inputs_give_the_same_bytes_in_two_processes(
    model: Path, samples: Samples, tmp_path: Path
) -> None:
    archive = tmp_path / "samples.npz"
    np.savez(archive, x=np.concatenate([feed["x"] for feed in samples.feeds]))
    found = set()
    for seed in ("1", "2"):
        result = tmp_path / f"{seed}.onnx"
        # Sets and dicts of text come in another order.
        env = os.environ | {"PYTHONHASHSEED": seed}
        arguments = [sys.executable, "-c", SCRIPT, str(model), str(result), str(archive)]
        subprocess.run(arguments, env=env, check=True)
        found.add(result.read_bytes())
    assert len(found) == 1


def test_a_plan_carried_out_gives_the_bytes_of_optimize(
    model: Path, samples: Samples, tmp_path: Path
) -> None:
    direct, carried, steps = (tmp_path / name for name in ("a.onnx", "b.onnx", "plan.json"))
    before = optimize(model, direct, SHARING, options(samples))
    made = plan(model, SHARING, options(samples))
    write_plan(made, steps)
    assert not carried.exists()
    report = apply(model, carried, steps, options(samples, seed=9))
    assert carried.read_bytes() == direct.read_bytes()
    assert report.seed == 0
    assert report.plan.stages == before.plan.stages
    apply(model, carried, read_plan(steps, PASSES), options(samples))
    assert carried.read_bytes() == direct.read_bytes()


def test_a_plan_of_another_model_is_refused(
    model: Path, samples: Samples, write: Write, tmp_path: Path
) -> None:
    other = write(mlp(seed=9), "other.onnx")
    made = plan(model, "light", options(samples))
    with pytest.raises(RecipeError, match="plan: it was made for a model with SHA-256"):
        apply(other, tmp_path / "out.onnx", made, options(samples))
    assert not (tmp_path / "out.onnx").exists()


def test_a_plan_in_integers_needs_its_samples(
    model: Path, samples: Samples, tmp_path: Path
) -> None:
    made = plan(model, "balanced", options(samples))
    with pytest.raises(RecipeError, match="quantize 'integer' cannot be done on 'm1'"):
        apply(model, tmp_path / "out.onnx", made, options(None))
    assert not (tmp_path / "out.onnx").exists()


def test_a_row_that_is_not_possible_is_refused(
    model: Path, samples: Samples, tmp_path: Path
) -> None:
    made = plan(model, "light", options(samples))
    stage = made.stages[-1]
    strange = replace(stage.rows[0], targets=("nowhere",))
    steps = replace(made, stages=(*made.stages[:-1], replace(stage, rows=(strange,))))
    with pytest.raises(RecipeError, match="cannot be done on 'nowhere' in stage"):
        apply(model, tmp_path / "out.onnx", steps, options(samples))


def test_a_plan_that_breaks_the_budget_is_written_only_by_force(
    model: Path, samples: Samples, tmp_path: Path
) -> None:
    made = plan(model, SHARING, options(samples))
    strict = options(samples, Budget(min_sqnr_db=60))
    result = tmp_path / "out.onnx"
    report = apply(model, result, made, strict)
    assert not report.holds
    assert not result.exists()
    assert not apply(model, result, made, strict, force=True).holds
    assert result.exists()


def test_steps_back_from_a_layer_that_takes_no_rounding(
    samples: Samples, write: Write, tmp_path: Path
) -> None:
    proto = mlp()
    # In every channel one weight that nothing excites hides all the others on the grid.
    weight = onnx.numpy_helper.to_array(proto.graph.initializer[2]).copy()
    bias = onnx.numpy_helper.to_array(proto.graph.initializer[1]).copy()
    weight[0], bias[0] = 100, -1000
    proto.graph.initializer[2].CopyFrom(onnx.numpy_helper.from_array(weight, "w2"))
    proto.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(bias, "b1"))
    model, result = write(proto), tmp_path / "out.onnx"
    report = optimize(model, result, "light", options(samples, Budget(min_sqnr_db=25)))
    assert report.holds
    assert report.steps_back > 0
    assert not report.only_tidied
    rows = [row.targets[0] for stage in report.plan.stages for row in stage.rows]
    assert "g2" not in rows
    assert {"m1", "y"} & set(rows)
    assert "steps back were needed" in report.warnings[0]


def test_where_nothing_holds_the_result_is_the_original(
    model: Path, samples: Samples, tmp_path: Path
) -> None:
    result = tmp_path / "out.onnx"
    report = optimize(model, result, "small", options(samples, Budget(min_sqnr_db=150)))
    assert report.only_tidied
    assert report.holds
    before, after = Session(model), Session(result)
    for feed in samples.feeds[:5]:
        np.testing.assert_array_equal(before.run(feed)["y"], after.run(feed)["y"])
    assert result.stat().st_size <= model.stat().st_size
    assert "no compressed model kept the budget" in report.warnings[0]


def test_a_budget_that_even_the_original_breaks_is_told(
    model: Path, samples: Samples, tmp_path: Path
) -> None:
    report = optimize(
        model, tmp_path / "out.onnx", "light", options(samples, Budget(min_sqnr_db=999))
    )
    assert report.only_tidied
    assert not report.holds


def test_without_samples_weights_alone_are_compressed_with_a_warning(
    model: Path, tmp_path: Path
) -> None:
    result = tmp_path / "out.onnx"
    report = optimize(model, result, "balanced", options(None))
    assert report.holds
    assert report.checks == ()
    assert report.samples is None
    assert report.warnings[0].startswith("no samples: only methods that need none were used")
    assert result.stat().st_size < model.stat().st_size / 2
    assert "QGemm" not in running_operators(result)
    assert report.validation.integer_meant == 0
    assert report.validation.result.macs == report.validation.original.macs
    x = samples_of_zero()
    np.testing.assert_allclose(Session(result).run(x)["y"], Session(model).run(x)["y"], atol=0.2)


def test_says_that_zeros_save_no_time(model: Path, samples: Samples, tmp_path: Path) -> None:
    zeros = recipe("stages: {tidy: [clean, fuse], zeros: [{sparsify: {scope: measured}}]}")
    report = optimize(model, tmp_path / "out.onnx", zeros, options(samples, Budget()))
    assert {row.method for row in report.plan.stages[-1].rows} == {"sparsify"}
    assert any(text.startswith("zeros save bytes, not time") for text in report.warnings)


def samples_of_zero() -> dict[str, np.ndarray]:
    return {"x": np.zeros((2, 32), np.float32)}


def test_says_why_a_model_of_large_inputs_is_not_timed_without_samples(
    write: Write, tmp_path: Path
) -> None:
    wide = model_of(
        """<ir_version: 8, opset_import: ["": 17]>
        wide (float[4096, 8192] x) => (float[4096, 4] y) { y = MatMul(x, w) }""",
        {"w": normal(0, 8192, 4)},
    )
    source, result = write(wide), tmp_path / "out.onnx"
    report = optimize(source, result, "balanced", options(None))
    assert report.validation.latency is None
    assert report.warnings[0].endswith("give --calibration PATH")
    assert report.warnings[1] == (
        "no made-up input runs, so nothing is timed: samples: input 'x' must have at most "
        "16777216 elements to be made up, its shape is (4096, 8192)"
    )
    assert result.stat().st_size < source.stat().st_size


def test_few_samples_serve_three_times_and_that_is_said(
    model: Path, samples: Samples, tmp_path: Path
) -> None:
    report = optimize(model, tmp_path / "out.onnx", "light", options(samples.take([0, 1])))
    assert report.samples is not None
    assert report.samples.overlaps
    assert any("too few to split" in warning for warning in report.warnings)


def test_a_metric_needs_labels_and_is_reported(
    model: Path, samples: Samples, tmp_path: Path
) -> None:
    choices = replace(options(samples), metric=METRICS["accuracy"])
    with pytest.raises(CalibrationError, match="metric: accuracy needs samples with labels"):
        optimize(model, tmp_path / "out.onnx", "light", choices)
    session = Session(model)
    labels = np.array([session.run(feed)["y"].argmax() for feed in samples.feeds])
    labelled = replace(choices, calibration=Samples(samples.feeds, labels))
    report = optimize(model, tmp_path / "out.onnx", "light", labelled)
    assert report.validation.faithfulness is not None
    assert report.validation.faithfulness.metric == "accuracy"


def test_validation_judges_by_all_samples_and_changes_nothing(
    model: Path, samples: Samples, tmp_path: Path
) -> None:
    result = tmp_path / "out.onnx"
    optimize(model, result, "balanced", options(samples))
    before = result.read_bytes()
    report = validate(model, result, options(samples))
    assert report.holds
    assert report.samples is not None
    assert (report.samples.judge, report.samples.overlaps) == (40, False)
    assert report.validation.integer_formed == 3
    assert result.read_bytes() == before
    assert report.plan.stages == ()


def test_targets_that_cannot_be_are_refused_before_any_work(model: Path, tmp_path: Path) -> None:
    before = model.read_bytes()
    link = tmp_path / "link.onnx"
    link.symlink_to(model)
    for target, message in (
        (model, "is the source itself"),
        (link, "is the source itself"),
        (tmp_path / "sub" / ".." / "model.onnx", "does not exist"),
        (tmp_path / "no" / "out.onnx", "does not exist"),
        (tmp_path, "is a folder"),
    ):
        with pytest.raises(ModelError, match=message):
            optimize(model, target, "light")
    assert model.read_bytes() == before


def test_sources_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"\x08\x08\xff\xff")
    empty = tmp_path / "empty.onnx"
    empty.write_bytes(b"")
    for source, message in (
        (tmp_path / "missing.onnx", "cannot be read"),
        (tmp_path, "is a folder"),
        (broken, "not an ONNX file"),
        (empty, "not an ONNX file"),
    ):
        with pytest.raises(ModelError, match=message):
            optimize(source, tmp_path / "out.onnx", "light")
    assert not (tmp_path / "out.onnx").exists()


def test_patterns_that_match_no_layer_are_named(model: Path, tmp_path: Path) -> None:
    for text in ("exclude: [nope]", "layers: {nope: {quantize: false}}"):
        chosen = recipe(f"stages: {{numbers: [quantize]}}\n{text}")
        with pytest.raises(RecipeError, match="the pattern 'nope' matches no layer of this model"):
            optimize(model, tmp_path / "out.onnx", chosen)


def test_an_excluded_layer_stays_as_it_was(model: Path, samples: Samples, tmp_path: Path) -> None:
    chosen = recipe("stages: {sharing: [share], numbers: [quantize]}\nexclude: [g2]")
    report = optimize(model, tmp_path / "out.onnx", chosen, options(samples))
    assert "g2" not in {t for s in report.plan.stages for row in s.rows for t in row.targets}
    original = {t.name: t for t in onnx.load(model).graph.initializer}
    made = {t.name: t for t in onnx.load(tmp_path / "out.onnx").graph.initializer}
    assert made["w2"] == original["w2"]


def test_progress_is_told_and_ends(model: Path, samples: Samples, tmp_path: Path) -> None:
    seen: dict[str, tuple[int, int]] = {}

    def progress(step: str, done: int, total: int) -> None:
        assert done <= total
        seen[step] = (done, total)

    choices = replace(options(samples), progress=progress)
    optimize(model, tmp_path / "out.onnx", "balanced", choices)
    assert {"numbers: observe", "pack", "check", "judge", "time both models"} <= set(seen)
    assert all(done == total for done, total in seen.values())


def test_inputs_that_nothing_can_be_made_up_for_need_no_run(tmp_path: Path, write: Write) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (seq(float[N, 32]) s) => (float[A, B] y) {
        zero = Constant<value_int = 0>()
        x = SequenceAt(s, zero)
        y = MatMul(x, w)
    }"""
    model = write(model_of(text, {"w": normal(0, 32, 64)}))
    report = optimize(model, tmp_path / "out.onnx", "light")
    assert report.validation.latency is None
    assert report.validation.result.file_bytes < report.validation.original.file_bytes / 2


@pytest.mark.parametrize("details", [{"entries": ["a"]}, {"nothing": 1}, {"unit": "wide"}])
def test_details_of_another_kind_are_refused(
    details: dict[str, object], model: Path, samples: Samples, tmp_path: Path
) -> None:
    made = plan(model, SHARING, options(samples))
    stage = next(s for s in made.stages if any(row.method == "share" for row in s.rows))
    strange = replace(stage, rows=(replace(stage.rows[0], details=details),))
    steps = replace(made, stages=tuple(strange if s is stage else s for s in made.stages))
    with pytest.raises(RecipeError, match=r"plan: share on .*: detail .* must be like"):
        apply(model, tmp_path / "out.onnx", steps, options(samples))


def test_details_that_are_left_out_are_those_of_the_method(
    model: Path, samples: Samples, tmp_path: Path
) -> None:
    made = plan(model, SHARING, options(samples))
    bare = replace(
        made,
        stages=tuple(
            replace(s, rows=tuple(replace(row, details={}) for row in s.rows)) for s in made.stages
        ),
    )
    whole, short = tmp_path / "whole.onnx", tmp_path / "short.onnx"
    apply(model, whole, made, options(samples))
    apply(model, short, bare, options(samples))
    assert whole.read_bytes() == short.read_bytes()


def test_a_drop_without_a_metric_is_refused(model: Path, samples: Samples, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="max drop needs a metric"):
        optimize(model, tmp_path / "out.onnx", "light", options(samples, Budget(max_drop=0.01)))
    assert not (tmp_path / "out.onnx").exists()


def test_limits_without_samples_are_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="its limits need samples"):
        optimize(model, tmp_path / "out.onnx", "light", options(None, Budget(min_sqnr_db=20)))
    assert not (tmp_path / "out.onnx").exists()


def test_says_that_a_model_is_quantized_already(tmp_path: Path) -> None:
    source, once, twice = (tmp_path / f"{n}.onnx" for n in "abc")
    onnx.save(mlp(), source)
    first = optimize(source, once, "light")
    report = optimize(once, twice, "light")
    told = (
        f"in narrow numbers already (quantized weights alone x {len(first.plan.stages[-1].rows)})"
    )
    assert any(told in warning for warning in report.warnings)
    assert not any("narrow numbers" in warning for warning in first.warnings)


def picking() -> onnx.ModelProto:
    """A network ``x (1, 32)`` to ``y (1, 4)`` that fails where what it computes is no row."""
    model = model_of(
        """<ir_version: 8, opset_import: ["": 17]>
        pick (float[1, 32] x) => (float[1, 4] y) {
            h = MatMul(x, w)
            first = Gather <axis = 1> (h, zero)
            moved = Add(first, middle)
            row = Cast <to = 7> (moved)
            y = Gather <axis = 0> (table, row)
        }""",
        {
            "w": normal(3, 32, 64),
            "zero": np.int64(0),
            "middle": np.float32(3.5),
            "table": np.ones((8, 4), np.float32) + 0.001 * normal(4, 8, 4),
        },
    )
    checker.check_model(model, full_check=True)
    return model


def with_one(part: str, feed: np.ndarray) -> Samples:
    """Forty samples for the picking network, ``feed`` as one of those of a part of the split."""
    feeds = [{"x": normal(k, 1, 32, scale=0.02)} for k in range(40)]
    parts = split(Samples(feeds), 0)
    chosen = getattr(parts, part).feeds[0]["x"]
    return Samples([{"x": feed} if np.array_equal(f["x"], chosen) else f for f in feeds])


@pytest.mark.parametrize("part", ["calibrate", "choose", "judge"])
def test_samples_that_the_original_cannot_run_are_named_and_nothing_is_written(
    part: str, tmp_path: Path, write: Write
) -> None:
    bad = with_one(part, np.float32(100) * picking_weight(picking()).T)
    with pytest.raises(SessionError, match=r"session: .*Gather"):
        optimize(write(picking()), tmp_path / "out.onnx", SHARING, options(bad))
    assert not (tmp_path / "out.onnx").exists()


def picking_weight(model: onnx.ModelProto) -> np.ndarray:
    (weight,) = (t for t in model.graph.initializer if t.name == "w")
    return onnx.numpy_helper.to_array(weight)[:, :1]


@pytest.mark.parametrize("part", ["choose", "judge"])
def test_a_result_that_fails_where_the_original_runs_is_not_handed_over(
    part: str, tmp_path: Path, write: Write
) -> None:
    source, result = write(picking()), tmp_path / "out.onnx"
    sharing = recipe("stages: {sharing: [{share: 4}]}")
    fine = with_one(part, np.zeros((1, 32), np.float32))
    report = optimize(source, result, sharing, options(fine))
    assert report.steps_back == 0
    before = picking_weight(picking())[:, 0]
    (layer,) = layers(load(result))
    after = layer.weight[:, 0]
    # Row 7 is the last: the original finds it, the result looks for row 9.
    both = np.stack([before, after])
    fatal = np.linalg.lstsq(both, np.array([4.0, 6.0]), rcond=None)[0].astype(np.float32)
    report = optimize(source, result, sharing, options(with_one(part, fatal[None])))
    Session(result).run({"x": fatal[None]})
    assert report.holds
    assert report.steps_back > 0
    told = any("cannot run what the recipe makes of it" in warning for warning in report.warnings)
    assert told == (part == "judge")
