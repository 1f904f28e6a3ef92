"""Every form that the package writes: it loads, runs as it does in onnxruntime, and learns."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra train isn't installed")

from onnxslim_tk.demo import MODEL, TEST
from onnxslim_tk.measure.runtime import Session
from onnxslim_tk.measure.samples import Samples
from onnxslim_tk.passes import PASSES
from onnxslim_tk.pipeline import Options
from onnxslim_tk.pipeline.attempt import Workshop
from onnxslim_tk.pipeline.files import load, parse, read_model, save, write_file
from onnxslim_tk.pipeline.stepping import Asking
from onnxslim_tk.plan.recipe import parse_recipe
from onnxslim_tk.train.module import GraphModule
from onnxslim_tk.train.write_back import write_back
from tests.models import Array

FORMS = {
    "int8 weights": "numbers: [{quantize: {activations: false}}]",
    "int8 arithmetic": "numbers: [{quantize: {ranges: minmax}}]",
    "codebooks in int8": "share: [{share: {clusters: 8, effort: quick}}], numbers: [quantize]",
    "int8 as it runs": "numbers: [dynamic_int8]",
    "fewer channels": "structure: [{channels: 0.5}]",
    "thinner layers": "structure: [{factorize: {keep: 0.5, max_error: 0.9}}]",
    "zeros": "sparsity: [{sparsify: 0.8}]",
    "codebooks": "share: [{share: {clusters: 8, effort: quick}}]",
    "rows of codebooks": "share: [{share: {clusters: 64, dimensions: 2, effort: quick}}]",
    "zeros and codebooks": "sparsity: [sparsify], share: [{share: {clusters: 8, effort: quick}}]",
}
ROUNDED = ("int8 arithmetic", "codebooks in int8", "int8 as it runs")


@pytest.fixture(scope="module")
def images() -> Array:
    with np.load(TEST) as held:
        found: Array = held["image"]
    return found


def written(form: str, images: Array, folder: Path) -> Path:
    """The demo's model in a form, as its recipe makes it."""
    text = FORMS[form]
    stages = f"stages: {{clean: [clean], fuse: [fuse], {text}}}"
    recipe = parse_recipe(stages, form, PASSES)
    samples = Samples([{"image": image[None]} for image in images[:24]])
    data = read_model(MODEL)
    options = Options(calibration=samples)
    shop = Workshop(MODEL, data, parse(data), Session(data).inputs, recipe, samples, options)
    path = folder / "form.onnx"
    write_file(shop.attempt(Asking(), 0).data, path)
    return path


def said(path: Path, feed: Any) -> Array:
    return Session(path, optimize=False).run(feed)["logits"]


def distance(found: Any, wanted: Array) -> float:
    gap = np.linalg.norm(np.asarray(found.detach()) - wanted) / np.linalg.norm(wanted)
    return float(gap)


@pytest.mark.parametrize("form", FORMS)
def test_a_form_runs_learns_and_stays_what_it_is(form: str, images: Array, tmp_path: Path) -> None:
    path = written(form, images, tmp_path)
    feed = {"image": images[64:128]}
    model = load(path)
    module = GraphModule(model, scales=True)
    assert not module.without_rule
    # Where activations are rounded, a value that lies on an edge may go either way.
    near = 0.02 if form in ROUNDED else 1e-5
    assert distance(module(feed)["logits"], said(path, feed)) < near

    teacher = torch.from_numpy(said(MODEL, feed))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1 + 0.2 * torch.randn_like(parameter))
    optimizer = torch.optim.Adam(module.parameters(), 3e-3)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = ((module(feed)["logits"] - teacher) ** 2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]

    write_back(module, model)
    trained = tmp_path / "trained.onnx"
    save(model, trained)
    assert distance(module(feed)["logits"], said(trained, feed)) < near
    assert trained.stat().st_size <= 1.02 * path.stat().st_size
