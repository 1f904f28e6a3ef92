"""Similarity of news items, judged by people: 50 documents, 1225 pairs (Lee et al., 2005)."""

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.tasks.evaluation import Evaluation, Items, Run, Scorer, Split, singly
from onnxslim_tk.measure.runtime import Feed

_LONGEST: Final = 128
_NARROWEST: Final = 256


class Similarity(Evaluation):
    """Pearson's correlation of cosine and human rating over all pairs of documents."""

    name = "similarity"
    metric = "Pearson"
    agreement = "nearest neighbour"
    files: ClassVar = (
        "data/bert-tokenizer.json",
        "data/lee/lee.cor",
        "data/lee/lee_background.cor",
        "data/lee/similarities0-1.txt",
    )
    test_items = 50

    @classmethod
    def missing(cls) -> list[str]:
        """The tokenizer's package."""
        return [] if importlib.util.find_spec("tokenizers") else ["the Python package tokenizers"]

    def items(self, count: int, split: Split) -> Items:
        """Documents as ids, and to each the ratings of all documents beside it."""
        name = "lee_background" if split == "calib" else "lee"
        text = (self.data / f"data/lee/{name}.cor").read_text(encoding="latin-1")
        documents = text.strip().splitlines()[:count]
        tokenizers = importlib.import_module("tokenizers")
        tokenizer = tokenizers.Tokenizer.from_file(str(self.data / "data/bert-tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.enable_truncation(_LONGEST)
        feeds: list[Feed] = []
        for document in documents:
            ids = np.array([tokenizer.encode(document).ids], np.int64)
            feeds.append(
                {
                    "input_ids": ids,
                    "attention_mask": np.ones_like(ids),
                    "token_type_ids": np.zeros_like(ids),
                }
            )
        if split == "calib":
            return Items(feeds, [None] * len(feeds), singly(len(feeds)))
        ratings = np.loadtxt(self.data / "data/lee/similarities0-1.txt")
        ratings = np.maximum(ratings, ratings.T)
        return Items(feeds, list(ratings[: len(feeds), : len(feeds)]), singly(len(feeds)))

    def answer(self, run: Run, feed: Feed) -> NDArray[np.float64]:
        """The document's vector of norm 1: the mean of its tokens' states."""
        states = next(
            output
            for output in run(feed)
            if output.dtype.kind == "f" and output.ndim == 3 and output.shape[-1] >= _NARROWEST
        )
        vector = states[0].astype(np.float64).mean(axis=0)
        return vector / np.linalg.norm(vector)

    def scorer(self, answers: Sequence[Any], truths: Sequence[Any]) -> Scorer:
        """The correlation over the pairs of the documents picked, a document's own left out."""
        vectors, ratings = np.stack(answers), np.stack(truths)
        cosines = vectors @ vectors.T

        def correlation(picks: NDArray[np.int64]) -> float:
            first, second = np.triu_indices(len(picks), 1)
            a, b = picks[first], picks[second]
            a, b = a[a != b], b[a != b]
            return float(np.corrcoef(cosines[a, b], ratings[a, b])[0, 1])

        return correlation

    def agree(self, original: Sequence[Any], result: Sequence[Any]) -> float:
        """The share of documents with the same nearest neighbour."""
        return float(np.mean(_nearest(original) == _nearest(result)))


def _nearest(vectors: Sequence[Any]) -> NDArray[np.int64]:
    stacked = np.stack(vectors)
    cosines = stacked @ stacked.T
    np.fill_diagonal(cosines, -np.inf)
    return np.asarray(cosines.argmax(axis=1))
