import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxslim_tk.demo import CALIBRATION, MODEL
from onnxslim_tk.errors import RecipeError
from onnxslim_tk.graph.model import to_stored
from onnxslim_tk.passes.share import Share
from onnxslim_tk.pipeline import Cache, Options, apply, load, optimize, plan
from onnxslim_tk.pipeline.cache import Arrays, as_text, digest, from_text
from onnxslim_tk.pipeline.kept import model_arrays, model_of
from onnxslim_tk.plan.budget import Budget

KEY = "ab" * 32
PLAIN = Options(calibration=CALIBRATION, limit=8)


def told(arrays: Arrays) -> object:
    return from_text(arrays["told"])


def kept(cache: Cache) -> list[Path]:
    return sorted(path for path in cache.folder.glob("*/*") if path.is_file())


def made(folder: Path, options: Options, recipe: str = "small") -> bytes:
    result = folder / "result.onnx"
    optimize(MODEL, result, recipe, options)
    return result.read_bytes()


def with_cache(cache: Cache | None, budget: Budget | None = None, jobs: int = 1) -> Options:
    return Options(calibration=CALIBRATION, limit=8, cache=cache, budget=budget, jobs=jobs)


def test_an_entry_comes_back(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    assert cache.load(KEY, told) is None
    cache.save(KEY, {"told": as_text([1.5, "a"])})
    assert cache.load(KEY, told) == [1.5, "a"]


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", b"\x80\x04K\x01.", b"a" * 400])
def test_a_damaged_or_foreign_entry_is_none(tmp_path: Path, damage: bytes) -> None:
    cache = Cache(tmp_path)
    cache.save(KEY, {"told": as_text("x")})
    (place,) = kept(cache)
    place.write_bytes(damage)
    assert cache.load(KEY, told) is None
    np.savez(place, other=np.zeros(2))
    assert cache.load(KEY, told) is None
    np.savez(place, told=np.array([{}], dtype=object))
    assert cache.load(KEY, told) is None


def test_one_flipped_bit_is_noticed(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.save(KEY, {"told": as_text("x" * 100)})
    (place,) = kept(cache)
    data = bytearray(place.read_bytes())
    data[data.index(b"x" * 50) + 10] ^= 1
    place.write_bytes(data)
    assert cache.load(KEY, told) is None


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 13_000)
    keys = [f"{k:02x}" * 32 for k in range(5)]
    for k, key in enumerate(keys[:4]):
        cache.save(key, {"told": np.zeros(2900, np.uint8)})
        os.utime(next(tmp_path.glob(f"*/{key}.npz")), (k + 1, k + 1))
    assert cache.load(keys[0], lambda arrays: len(arrays["told"])) == 2900
    cache.save(keys[4], {"told": np.zeros(2900, np.uint8)})
    assert {path.stem for path in kept(cache)} == {keys[0], keys[2], keys[3], keys[4]}


def test_what_would_fill_the_folder_is_not_kept(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 1000)
    cache.save(KEY, {"told": np.zeros(251, np.uint8)})
    assert not cache.folder.exists()
    with pytest.raises(RecipeError, match="cache: its size must not be negative"):
        Cache(tmp_path, -1)


def test_a_folder_that_cannot_be_written_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    cache = Cache(tmp_path / "file")
    cache.save(KEY, {"told": as_text(1)})
    assert cache.load(KEY, told) is None


def test_samples_differ_by_names_types_shapes_and_values() -> None:
    base = np.arange(6, dtype=np.float32)
    feeds: list[dict[str, Any]] = [
        {"x": base},
        {"y": base},
        {"x": base.astype(np.float64)},
        {"x": base.reshape(2, 3)},
        {"x": base + 1},
        {"x": np.array(["a", "b"], dtype=object)},
        {"x": np.array(["a", "c"], dtype=object)},
    ]
    assert len({digest([feed]) for feed in feeds}) == len(feeds)


def test_a_model_comes_back_as_it_was() -> None:
    model = load(MODEL)
    model.fresh_name()
    back = model_of(model_arrays(model))
    assert to_stored(back).sha256 == to_stored(model.copy()).sha256
    assert (back.origins, back.taken, back.counter) == (model.origins, model.taken, model.counter)


def test_results_are_the_same_with_a_cold_a_warm_and_a_damaged_cache(tmp_path: Path) -> None:
    plain = made(tmp_path, PLAIN)
    cache = Cache(tmp_path / "cache")
    assert made(tmp_path, with_cache(cache)) == plain
    assert kept(cache)
    assert made(tmp_path, with_cache(cache)) == plain
    for path in kept(cache)[::2]:
        path.write_bytes(path.read_bytes()[:-30])
    assert made(tmp_path, with_cache(cache)) == plain


def test_another_budget_and_a_later_stage_use_what_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = Budget(max_size=60_000)
    apart = made(tmp_path, with_cache(None, budget))
    cache = Cache(tmp_path / "cache")
    made(tmp_path, with_cache(cache))
    calls = []
    propose = Share.propose

    def counted(self: Share, *given: object) -> object:
        calls.append(self)
        return propose(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Share, "propose", counted)
    assert made(tmp_path, with_cache(cache, budget)) == apart
    assert not calls


def test_the_number_of_threads_changes_no_byte(tmp_path: Path) -> None:
    assert made(tmp_path, with_cache(None, jobs=3)) == made(tmp_path, PLAIN)


def test_a_plan_is_what_optimize_does(tmp_path: Path) -> None:
    options = with_cache(Cache(tmp_path / "cache"))
    done = optimize(MODEL, tmp_path / "done.onnx", "small", options)
    planned = plan(MODEL, "small", options)
    assert planned.stages == done.plan.stages
    apply(MODEL, tmp_path / "again.onnx", planned, options)
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "done.onnx").read_bytes()
