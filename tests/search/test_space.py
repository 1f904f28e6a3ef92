from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from onnxslim_tk.graph.model import to_stored
from onnxslim_tk.measure.samples import Samples
from onnxslim_tk.passes import PASSES
from onnxslim_tk.pipeline.attempt import Workshop
from onnxslim_tk.pipeline.following import following
from onnxslim_tk.pipeline.options import Options
from onnxslim_tk.plan.knapsack import alternatives
from onnxslim_tk.plan.proposal import Proposal
from onnxslim_tk.plan.recipe import parse_recipe
from onnxslim_tk.search.cargo import pack_up
from onnxslim_tk.search.evaluate import measure, scout
from onnxslim_tk.search.space import Decoder, Space, ordered
from tests.models import CONTEXT, opened, residual_cnn

# A step that small layers reach, and no start that two thin layers would pay twice.
FINE = replace(
    CONTEXT.target,
    channel_step=4,
    floats={kind: replace(speed, start=0.0) for kind, speed in CONTEXT.target.floats.items()},
)
ALL = """
name: all
stages:
  fuse: [fuse]
  structure: [{channels: {keep: 0.5}}, {factorize: {max_error: 0.9}}]
  share: [share]
  numbers: [quantize, dynamic_int8]
"""


@pytest.fixture(scope="module")
def shop() -> Workshop:
    """A small residual network, opened with samples."""
    model = opened(residual_cnn())
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((1, 3, 16, 16)).astype(np.float32)} for _ in range(12)]

    return Workshop(
        Path("net.onnx"),
        to_stored(model),
        model,
        (),
        parse_recipe(ALL, "all", PASSES),
        Samples(feeds),
        Options(target=FINE),
    )


@pytest.fixture(scope="module")
def space(shop: Workshop) -> Space:
    return scout(shop)[0]


def test_every_stage_with_a_choice_has_genes(space: Space) -> None:
    assert {gene.stage for gene in space.genes} == {"structure", "share", "numbers"}
    methods = {option.method for gene in space.genes for option in gene.options}
    assert {"channels", "share", "quantize"} <= methods


def test_options_go_from_mild_to_strong(space: Space) -> None:
    for gene in space.genes:
        errors = [option.error for option in gene.options]
        assert errors == sorted(errors)


def test_the_untouched_genome_loses_nothing(shop: Workshop, space: Space) -> None:
    attempt = shop.attempt(Decoder(space, space.untouched), 0)
    assert all(row.error == 0 for stage in attempt.plan.stages for row in stage.rows)


def test_any_genome_is_a_legal_plan_that_gives_the_same_bytes_again(
    shop: Workshop, space: Space
) -> None:
    rng = np.random.default_rng(1)
    for _ in range(5):
        genome = space.clipped(rng.integers(space.sizes).tolist())
        attempt = shop.attempt(Decoder(space, genome), 0)
        for stage in attempt.plan.stages:
            assert all(len(group) == 1 for group in alternatives(stage.rows))
            for row in stage.rows:
                others = {t for o in stage.rows if o.method != row.method for t in o.targets}
                assert others.isdisjoint(row.targets)
        assert shop.attempt(following(attempt.plan), 0).data == attempt.data


def test_choices_of_one_gene_show_in_its_layer_alone(shop: Workshop, space: Space) -> None:
    k = next(k for k, gene in enumerate(space.genes) if gene.stage == "share")
    genome = space.clipped([space.sizes[k] - 1 if n == k else 0 for n in range(len(space.sizes))])
    attempt = shop.attempt(Decoder(space, genome), 0)
    lossy = [row for stage in attempt.plan.stages for row in stage.rows if row.error > 0]
    assert [row.targets for row in lossy] == [space.genes[k].targets]
    assert lossy[0].setting == space.genes[k].options[-1].setting


def test_parts_of_a_split_layer_follow_the_gene_of_the_whole(shop: Workshop, space: Space) -> None:
    split = [k for k, g in enumerate(space.genes) if g.options[0].method == "factorize"]
    assert split
    targets = {target for k in split for target in space.genes[k].targets}
    genome = [0] * len(space.genes)
    for k, gene in enumerate(space.genes):
        if k in split or (gene.stage == "numbers" and set(gene.targets) <= targets):
            genome[k] = 1
    attempt = shop.attempt(Decoder(space, tuple(genome)), 0)
    rows = {row.targets[0] for row in attempt.plan.stages[-1].rows if row.error > 0}
    factors = {row for row in rows if row.endswith(":a")}
    assert factors


def test_measured_errors_take_the_place_of_expected_ones(shop: Workshop, space: Space) -> None:
    k = next(k for k, gene in enumerate(space.genes) if len(gene.options) > 2)
    errors = measure(shop, space, [k])
    told = space.with_errors(errors).genes[k].options
    assert told[0].measured
    assert told[-1].measured
    assert told[0].error == errors[k, 1] != space.genes[k].options[0].error
    # The others scale with what was expected of them.
    assert told[1].error != space.genes[k].options[1].error


def test_options_that_another_beats_in_everything_are_left_out() -> None:
    good = Proposal(("a",), "share", 4, bytes_saved=90, error=0.1)
    beaten = Proposal(("a",), "share", 8, bytes_saved=80, error=0.2)
    mild = Proposal(("a",), "share", 16, bytes_saved=70, error=0.01)
    assert ordered([beaten, good, mild]) == (mild, good)


def test_what_travels_tells_models_and_settings_apart(shop: Workshop) -> None:
    assert pack_up(shop).key == pack_up(shop).key
    other = Workshop(
        shop.source,
        shop.data,
        shop.model,
        (),
        shop.recipe,
        shop.samples,
        Options(target=FINE, seed=1),
    )
    assert pack_up(other).key != pack_up(shop).key
    again = pack_up(shop).opened()
    assert again.data == shop.data
    assert again.parts is not None
