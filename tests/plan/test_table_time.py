from dataclasses import replace

import numpy as np
import pytest

from onnxslim_tk.graph.model import Model
from onnxslim_tk.measure.observe import observe, observed_shapes
from onnxslim_tk.passes.dynamic_int8 import DynamicInt8
from onnxslim_tk.passes.fuse import Fuse
from onnxslim_tk.passes.quantize import Quantize
from onnxslim_tk.plan.policy import asked_for
from onnxslim_tk.plan.proposal import Context
from onnxslim_tk.plan.table_time import table_time
from onnxslim_tk.plan.targets import ONNXRUNTIME_CPU, Speed, Target
from tests.models import SLOW_FLOATS, chain_cnn, mlp, normal, opened
from tests.rows import IMAGES, asked, rows_of

FEED = {"x": IMAGES["x"][:1]}


def time_of(model: Model, target: Target = ONNXRUNTIME_CPU) -> float:
    return table_time(model, observed_shapes(model, FEED), target)


def fused(target: Target) -> tuple[Model, Context]:
    model = opened(chain_cnn())
    context = Context(target)
    Fuse().apply(model, asked(model, context, Fuse()), context)
    found = observe(model, [IMAGES], frozenset({"range", "mean", "covariance"}), 0)
    return model, replace(context, statistics=found, shapes=found.shapes, feeds=[IMAGES])


def test_every_operator_takes_its_row_of_the_table() -> None:
    model, _ = fused(ONNXRUNTIME_CPU)
    shapes = observed_shapes(model, FEED)
    only = replace(ONNXRUNTIME_CPU, floats={"Gemm": Speed(7.0)}, integers={})
    assert table_time(model, shapes, only) == 7.0


def test_an_activation_behind_a_float_convolution_is_part_of_it() -> None:
    model, _ = fused(ONNXRUNTIME_CPU)
    relus = replace(ONNXRUNTIME_CPU, floats={"Relu": Speed(1.0)}, integers={})
    assert time_of(model, relus) == 0
    before = opened(chain_cnn())
    assert time_of(before, relus) == 2


def test_fusing_saves_what_the_table_says() -> None:
    assert time_of(fused(ONNXRUNTIME_CPU)[0]) < time_of(opened(chain_cnn()))


def test_integer_kernels_hold_the_changes_of_numbers_between_them() -> None:
    model, context = fused(SLOW_FLOATS)
    Quantize().apply(model, asked_for(rows_of(model, context, Quantize())), context)
    changes = {"QuantizeLinear": Speed(1.0), "DequantizeLinear": Speed(100.0)}
    kernels = dict.fromkeys(("Conv", "narrow", "GlobalAveragePool", "Gemm"), Speed(10_000.0))
    target = replace(SLOW_FLOATS, floats={}, integers={**kernels, **changes})
    time = time_of(model, target)
    # Two convolutions, the mean and the product; the borders are at the input and at the end.
    assert time in (40_001.0, 40_101.0)


def test_products_with_ranges_found_in_each_run_take_one_row() -> None:
    model = opened(mlp())
    feed = {"x": normal(1, 4, 32)}
    context = Context(SLOW_FLOATS, shapes=observed_shapes(model, feed))
    method = DynamicInt8(least_macs=0)
    rows = asked(model, context, method)
    assert rows
    method.apply(model, rows, context)
    target = replace(SLOW_FLOATS, floats={}, integers={}, dynamic={"MatMul": Speed(3.0)})
    assert table_time(model, observed_shapes(model, feed), target) == 3.0 * len(rows)


def test_work_of_another_batch_takes_longer() -> None:
    model = opened(chain_cnn())
    shapes = [observed_shapes(model, {"x": np.repeat(FEED["x"], n, 0)}) for n in (1, 4)]
    short, long = (table_time(model, s, ONNXRUNTIME_CPU) for s in shapes)
    assert 2 * short < long
    assert long == pytest.approx(4 * short, rel=0.3)
