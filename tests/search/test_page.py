import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("plotly", reason="the extra search is not installed")
pytest.importorskip("optuna", reason="the extra search is not installed")

from onnxslim_tk.search.folder import Point
from onnxslim_tk.search.page import page
from tests.search.problems import problem, walk

HOSTILE = "<script>alert(1)</script></script><img src=x onerror=alert(2)>.onnx"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")


def made(name: str = "model.onnx") -> str:
    of = problem()
    known = walk("knapsack", of, 20)[0]
    points: list[Point] = []
    for evaluation in of.best(known):
        score = of.score(evaluation)
        assert score is not None
        points.append(Point(f"plan-{len(points)}", evaluation, *score, {"holds": True}))
    return page(points, known, of, name)


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)


def test_names_from_a_file_are_text_and_nothing_else() -> None:
    plain, hostile = Tags(), Tags()
    plain.feed(made())
    hostile.feed(made(HOSTILE))
    assert hostile.seen == plain.seen
    assert "img" not in hostile.seen


def test_nothing_is_loaded_from_elsewhere() -> None:
    tags = Tags()
    tags.feed(made())
    assert "link" not in tags.seen
    assert "<script src" not in made()


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")
def test_a_browser_draws_the_front(tmp_path: Path) -> None:
    place = tmp_path / "front.html"
    place.write_text(made(), encoding="utf-8")
    command = [
        str(BROWSER),
        *("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000"),
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
        place.as_uri(),
    ]
    drawn = subprocess.run(command, capture_output=True, text=True, check=True, timeout=180).stdout
    # Plotly writes these when the plot stands; the file itself has none of them.
    assert "scatterlayer" in drawn
    assert drawn.count('class="trace scatter') == 3
    assert "keeps the limits" in drawn
