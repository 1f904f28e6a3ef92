"""Voice activity: real speech, the telephone prompts of Asterisk, in noise at known times."""

import glob
import wave
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.signal import resample_poly
from scipy.stats import rankdata

from benchmarks.tasks.evaluation import (
    Evaluation,
    Items,
    Run,
    Scorer,
    Split,
    named,
    running,
    singly,
    split_of,
)
from onnxslim_tk.measure.runtime import Feed, Session

_PROMPTS: Final = "/usr/share/asterisk/sounds/*_f_*/**/*.wav"
_RATE: Final = 16000
_SECONDS: Final = 16
_FRAME: Final = 512
_CONTEXT: Final = 64
_CLIP_FEEDS: Final = 16
"""Feeds of one clip that calibration takes."""


class Voice(Evaluation):
    """Area under the ROC curve of frames that are clearly speech or clearly none."""

    name = "voice"
    metric = "AUC"
    agreement = "decisions"
    test_items = 30

    @classmethod
    def missing(cls) -> list[str]:
        """Prompts in five languages and one voice more."""
        voices = {Path(path).parts[5] for path in glob.glob(_PROMPTS, recursive=True)}
        wanted = ["asterisk-core-sounds-{en,es,fr,it,ru}-wav", "asterisk-prompt-it-menardi-wav"]
        return wanted if len(voices) < 5 else []

    def items(self, count: int, split: Split) -> Items:
        """Clips of 16 s at 16 kHz, and the share of speech in each of their frames."""
        rng = np.random.default_rng(10 if split == "calib" else 11)
        prompts = [
            path
            for path in map(Path, sorted(glob.glob(_PROMPTS, recursive=True)))
            if split_of(path.name) == split and 16000 < path.stat().st_size < 100000
        ]
        feeds: list[Feed] = []
        truths = []
        for _ in range(count):
            chosen = [prompts[k] for k in rng.integers(0, len(prompts), 8)]
            sound, speech = _clip(chosen, rng)
            feeds.append({"audio": sound})
            whole = len(speech) // _FRAME * _FRAME
            truths.append(speech[:whole].reshape(-1, _FRAME).mean(axis=1))
        return Items(feeds, truths, singly(count))

    def answer(self, run: Run, feed: Feed) -> NDArray[np.float64]:
        """The probability of speech in each frame."""
        probabilities: list[float] = []
        for _ in _frames(run, feed["audio"], probabilities):
            pass
        return np.array(probabilities)

    def scorer(self, answers: Sequence[Any], truths: Sequence[Any]) -> Scorer:
        """The area over the frames of the clips picked, pooled."""
        clear = [(truth < 0.1) | (truth > 0.9) for truth in truths]
        scores = [answer[keep] for answer, keep in zip(answers, clear, strict=True)]
        speech = [truth[keep] > 0.5 for truth, keep in zip(truths, clear, strict=True)]

        def area(picks: NDArray[np.int64]) -> float:
            positive = np.concatenate([speech[k] for k in picks])
            ranks = rankdata(np.concatenate([scores[k] for k in picks]))
            count = int(positive.sum())
            beaten = ranks[positive].sum() - count * (count + 1) / 2
            return float(beaten / (count * (len(positive) - count)))

        return area

    def agree(self, original: Sequence[Any], result: Sequence[Any]) -> float:
        """The share of frames on the same side of 0.5."""
        a, b = np.concatenate(original) > 0.5, np.concatenate(result) > 0.5
        return float(np.mean(a == b))

    def calibration(self, session: Session, count: int) -> list[Feed]:
        """Frames with the states that the original has there, spread over several clips."""
        clips = self.items(max(1, -(-count // _CLIP_FEEDS)), "calib")
        found: list[Feed] = []
        for clip in clips.feeds:
            frames = list(_frames(running(session), clip["audio"], []))
            places = np.linspace(0, len(frames) - 1, _CLIP_FEEDS).astype(int)
            found += [named(session, frames[k]) for k in places]
        return found[:count]


def _frames(run: Run, audio: NDArray[Any], probabilities: list[float]) -> Iterator[Feed]:
    """The model's feeds for a clip in order; what it says is appended to ``probabilities``."""
    state = np.zeros((2, 1, 128), np.float32)
    padded = np.concatenate([np.zeros(_CONTEXT, np.float32), audio])
    for start in range(0, len(audio) // _FRAME * _FRAME, _FRAME):
        window = padded[None, start : start + _FRAME + _CONTEXT]
        feed = {"input": window, "state": state, "sr": np.array(_RATE, np.int64)}
        yield feed
        probability, state = run(feed)[:2]
        probabilities.append(float(probability.reshape(-1)[0]))


def _clip(
    paths: Sequence[Path], rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    sound = np.zeros(_SECONDS * _RATE, np.float32)
    speech = np.zeros(len(sound), np.bool_)
    start = int(_RATE * rng.uniform(0.3, 1))
    for path in paths:
        prompt = _prompt(path)
        prompt = prompt / (np.abs(prompt).max() + 1e-6) * rng.uniform(0.1, 0.6)
        stop = start + len(prompt)
        if stop >= len(sound):
            continue
        width = _RATE // 50
        energy = np.convolve(prompt**2, np.ones(width) / width, "same")
        sound[start:stop] = prompt
        speech[start:stop] = energy > energy.max() * 1e-3
        start = stop + int(_RATE * rng.uniform(0.4, 1.8))
    noise = _noise(len(sound), rng)
    ratio = rng.uniform(-3, 15)
    noise *= np.sqrt((sound[speech] ** 2).mean() / (noise**2).mean()) * 10 ** (-ratio / 20)
    return (sound + noise).astype(np.float32).clip(-1, 1), speech


def _noise(count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Noise between white and nearly pink."""
    spectrum = np.fft.rfft(rng.normal(size=count))
    frequency = np.maximum(1, np.arange(count // 2 + 1))
    return np.fft.irfft(spectrum / frequency ** rng.uniform(0, 0.7), count)


def _prompt(path: Path) -> NDArray[np.float32]:
    with wave.open(str(path)) as opened:
        content = opened.readframes(opened.getnframes())
    samples = np.frombuffer(content, np.int16).astype(np.float32) / 32768
    return np.asarray(resample_poly(samples, _RATE, 8000), np.float32)
