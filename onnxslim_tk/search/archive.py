"""The archive: every evaluation, in an optuna study that machines may share."""

import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Final

from onnxslim_tk.errors import RecipeError
from onnxslim_tk.search.evaluate import Evaluation
from onnxslim_tk.search.extra import optuna
from onnxslim_tk.search.goal import Figures
from onnxslim_tk.search.space import Genome, Space

_STUDY: Final = "onnxslim"
_JOURNAL: Final = b'{"op_code":'
"""What every line of a journal begins with."""
_FIGURES: Final = ("bytes", "macs", "latency", "error")


class Archive:
    """Evaluations of one model's genomes, kept by optuna.

    ``storage`` is the URL of a database (``sqlite:///study.db``), or the path of a journal file.
    ``key`` tells the model, the samples and the settings; a study of others is refused with a
    RecipeError. ``run`` tells this search from others that share the study.
    """

    def __init__(self, storage: str, key: str, run: str, space: Space) -> None:
        self._space, self._run = space, run
        self._study = _opened(storage, key)
        self._seen: set[int] = set()
        self.known: dict[Genome, Evaluation] = {}
        self._foreign: list[Evaluation] = []
        self._read()
        self.resumed = len(self.known)

    def record(self, evaluation: Evaluation) -> None:
        """Keep an evaluation, written through before this returns."""
        if evaluation.genome in self.known:
            return
        self.known[evaluation.genome] = evaluation
        self._study.add_trial(_trial(evaluation, self._space, self._run))

    def news(self) -> list[Evaluation]:
        """What others found since the last look, in the order of the study."""
        self._read()
        found, self._foreign = self._foreign, []
        return found

    def _read(self) -> None:
        for run, number, evaluation in self._trials():
            if number in self._seen:
                continue
            self._seen.add(number)
            if evaluation.genome not in self.known:
                self.known[evaluation.genome] = evaluation
                if run != self._run:
                    self._foreign.append(evaluation)

    def _trials(self) -> Iterator[tuple[str, int, Evaluation]]:
        for trial in self._study.get_trials(deepcopy=False):
            text = trial.user_attrs.get("evaluation")
            if isinstance(text, str):
                yield str(trial.user_attrs.get("run")), trial.number, _evaluation(json.loads(text))


def _opened(storage: str, key: str) -> Any:
    library = optuna()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if "://" in storage:
                kept: Any = storage
            else:
                _check_journal(Path(storage))
                journal = library.storages.journal
                lock = journal.JournalFileOpenLock(storage)
                _mend(Path(storage), lock)
                kept = library.storages.JournalStorage(
                    journal.JournalFileBackend(storage, lock_obj=lock)
                )
            study = library.create_study(
                storage=kept,
                study_name=_STUDY,
                directions=["minimize"] * len(_FIGURES),
                load_if_exists=True,
            )
        except RecipeError:
            raise
        except Exception as error:
            # Each kind of database has errors of its own.
            first = " ".join(str(error).split())[:200]
            raise RecipeError(f"search: the study {storage} cannot be opened: {first}") from error
    other = study.user_attrs.get("key", key)
    if other != key:
        raise RecipeError(
            f"search: {storage} holds a search of another model, other samples or settings; "
            "take another folder, or remove it"
        )
    study.set_user_attr("key", key)
    return study


def _check_journal(path: Path) -> None:
    """Raise RecipeError for a file that is something else: what is no journal stays untouched."""
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            start = file.read(len(_JOURNAL))
        # What a kill left of the first line is the beginning of one.
        if not _JOURNAL.startswith(start):
            raise RecipeError(f"search: {path} is no journal of a search; name another file")


def _mend(path: Path, lock: Any) -> None:
    """Take off the half line that a killed writer left: the next one would be lost behind it."""
    if not path.exists():
        return
    lock.acquire()
    try:
        with path.open("rb+") as file:
            whole = file.read().rfind(b"\n") + 1
            file.truncate(whole)
    finally:
        lock.release()


def _trial(evaluation: Evaluation, space: Space, run: str) -> Any:
    library = optuna()
    sizes = space.sizes
    names = [space.name(k) for k in range(len(sizes))]
    ranges = [library.distributions.IntDistribution(0, size - 1) for size in sizes]
    attributes = {"evaluation": json.dumps(_data(evaluation)), "run": run}
    params = dict(zip(names, evaluation.genome, strict=True))
    figures = evaluation.figures
    state = library.trial.TrialState
    return library.create_trial(
        state=state.FAIL if figures is None else state.COMPLETE,
        values=None if figures is None else [float(getattr(figures, n)) for n in _FIGURES],
        params=params,
        distributions=dict(zip(names, ranges, strict=True)),
        user_attrs=attributes,
    )


def _data(evaluation: Evaluation) -> dict[str, Any]:
    return asdict(evaluation)


def _evaluation(data: Mapping[str, Any]) -> Evaluation:
    known = {field.name for field in fields(Figures)}
    figures = data["figures"]
    return Evaluation(
        genome=tuple(int(level) for level in data["genome"]),
        figures=None if figures is None else Figures(**{n: figures[n] for n in known}),
        sha256=str(data["sha256"]),
        seconds=float(data["seconds"]),
        trouble=str(data["trouble"]),
    )


def journal(folder: Path) -> str:
    """Where a run folder keeps its own study."""
    return str(folder / "study.journal")
