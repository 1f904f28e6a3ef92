"""Pitch of single notes: samples of real instruments, detuned by a known amount, in noise."""

import shutil
import struct
import subprocess
import tempfile
import wave
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.tasks.evaluation import Evaluation, Items, Run, Scorer, Split, mean_of
from onnxslim_tk.measure.runtime import Feed

SOUNDS: Final = Path("/usr/share/sounds/sf2/FluidR3_GM.sf2")
_PROGRAMS: Final = (0, 4, 11, 19, 24, 25, 40, 42, 56, 68, 71, 73, 52, 65, 60)
_RATE: Final = 16000
_FRAMES: Final = 20
"""Frames taken of each note of the test split."""
_CENTS: Final = np.arange(360) * 20 + 1997.3794084376191


class Pitch(Evaluation):
    """Share of frames within 50 cents; frames of one note are resampled together."""

    name = "pitch"
    metric = "raw pitch accuracy"
    agreement = "top-1 (20 cents)"
    test_items = 1000

    @classmethod
    def missing(cls) -> list[str]:
        """The synthesizer and its sounds."""
        lacking = [] if shutil.which("fluidsynth") else ["fluidsynth"]
        return lacking if SOUNDS.is_file() else [*lacking, "fluid-soundfont-gm"]

    def items(self, count: int, split: Split) -> Items:
        """Frames ``(1, 1024)`` of 16 kHz with mean 0 and deviation 1, and their pitch in Hz.

        Each frame for calibration is of a note of its own, which the test split doesn't play on
        that instrument.
        """
        tested = _sounds(19, _FRAMES)
        if split == "test":
            sounds, frames = tested, _FRAMES
        else:
            there = {sound.note for sound in islice(tested, -(-self.test_items // _FRAMES))}
            sounds, frames = (s for s in _sounds(18, 1) if s.note not in there), 1
        taken = list(islice(sounds, -(-count // frames)))
        feeds: list[Feed] = [{"frames": frame} for sound in taken for frame in sound.frames]
        truths = [sound.hertz for sound in taken for _ in sound.frames]
        groups = np.arange(count, dtype=np.int64) // frames
        return Items(feeds[:count], truths[:count], groups)

    def answer(self, run: Run, feed: Feed) -> tuple[int, float]:
        """The best bin, and the pitch in cents above 10 Hz from its neighbourhood."""
        scores = run(feed)[0][0]
        best = int(scores.argmax())
        near = slice(max(0, best - 4), best + 5)
        weight = scores[near].sum()
        return best, float((scores[near] * _CENTS[near]).sum() / weight)

    def scorer(self, answers: Sequence[Any], truths: Sequence[Any]) -> Scorer:
        """Hits within 50 cents."""
        cents = np.array([cents for _, cents in answers])
        return mean_of(np.abs(cents - 1200 * np.log2(np.array(truths) / 10)) < 50)

    def agree(self, original: Sequence[Any], result: Sequence[Any]) -> float:
        """The share of equal bins."""
        return super().agree([best for best, _ in original], [best for best, _ in result])


@dataclass(frozen=True, slots=True)
class _Sound:
    """A note by its key and its instrument, its pitch once detuned, and frames of it."""

    note: tuple[int, int]
    hertz: float
    frames: list[NDArray[np.float32]]


def _sounds(seed: int, frames: int) -> Iterator[_Sound]:
    """Notes without end, each with so many frames."""
    rng = np.random.default_rng(seed)
    while True:
        key, program = int(rng.integers(40, 84)), int(rng.choice(_PROGRAMS))
        sound = _note(key, program)
        detune = 2 ** (rng.uniform(-0.5, 0.5) / 12)
        places = np.arange(0, len(sound) - 2, detune)
        sound = np.interp(places, np.arange(len(sound)), sound)
        sound = sound / (np.abs(sound).max() + 1e-9)
        sound = sound + rng.normal(0, 10 ** rng.uniform(-3, -0.7), len(sound))
        found = []
        for start in rng.integers(2000, 15000, frames):
            frame = sound[start : start + 1024]
            frame = (frame - frame.mean()) / (frame.std() + 1e-9)
            found.append(frame[None].astype(np.float32))
        yield _Sound((key, program), 440 * 2 ** ((key - 69) / 12) * detune, found)


def _note(key: int, program: int) -> NDArray[np.float64]:
    with tempfile.TemporaryDirectory(prefix="onnxslim-") as folder:
        score, sound = Path(folder, "note.mid"), Path(folder, "note.wav")
        score.write_bytes(_midi(key, program))
        command = ["fluidsynth", "-ni", "-q", "-R", "0", "-C", "0", "-r", str(_RATE)]
        subprocess.run(
            [*command, "-F", str(sound), str(SOUNDS), str(score)], check=True, capture_output=True
        )
        with wave.open(str(sound)) as opened:
            content = opened.readframes(opened.getnframes())
    mono: NDArray[np.float64] = np.frombuffer(content, np.int16).reshape(-1, 2).mean(axis=1)
    return mono / 32768


def _midi(key: int, program: int) -> bytes:
    """One note of 1.2 seconds, 500 ticks a second."""
    start = bytes([0, 0xC0, program, 0, 0x90, key, 100])
    # 600 ticks, as MIDI writes numbers above 127.
    stop = bytes([600 >> 7 | 0x80, 600 & 0x7F, 0x80, key, 100])
    track = start + stop + bytes([0, 0xFF, 0x2F, 0])
    header = b"MThd" + struct.pack(">IHHH", 6, 0, 1, 250)
    return header + b"MTrk" + struct.pack(">I", len(track)) + track
