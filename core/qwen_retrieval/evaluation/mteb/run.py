"""Whole tables of benchmarks: the embedder, then the reranker on its best hundred."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_retrieval.embedder import Embedder
from qwen_retrieval.errors import needs_extra
from qwen_retrieval.evaluation.mteb.models import MtebEmbedder, MtebReranker
from qwen_retrieval.evaluation.mteb.registry import reranking_meta
from qwen_retrieval.evaluation.published import BENCHMARKS, Comparison, Measured, compare
from qwen_retrieval.ranking import check_count
from qwen_retrieval.reranker import Reranker

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask, AbsTaskRetrieval

_RETRIEVAL = frozenset({"Retrieval", "InstructionRetrieval"})
_RERANKING = frozenset({"Reranking", "InstructionReranking"})


@dataclass(frozen=True, slots=True)
class MtebScore:
    """What one model reached in one task.

    Attributes:
        name: What was asked for: a benchmark, or the task itself.
        task: mteb's name of the task.
        task_type: mteb's type of the task, such as "Retrieval".
        metric: The main metric of the task, such as "ndcg_at_10".
        model: The repository of the model; of another checkpoint, its name in mteb.
        stage: "embedder", or "reranker" for the order of the embedder's candidates after reranking.
        value: The metric times 100, averaged over splits and subsets as mteb does it.
    """

    name: str
    task: str
    task_type: str
    metric: str
    model: str
    stage: str
    value: float


@dataclass(frozen=True, slots=True)
class MtebRun:
    """The results of a run.

    Attributes:
        scores: One entry for each model and task, in the order in which they ran.
        mteb_version: The version of mteb that computed them.
    """

    scores: tuple[MtebScore, ...]
    mteb_version: str

    def means(self) -> tuple[Measured, ...]:
        """What the published tables have: for each name and model, the means over tasks, over types, and of each type.

        "Mean (Task)" is the mean of all tasks, "Mean (Type)" that of the means of the types; all times 100.
        """
        groups: dict[tuple[str, str], list[MtebScore]] = {}
        for score in self.scores:
            groups.setdefault((score.name, score.model), []).append(score)
        return tuple(
            Measured(name, model, metric, value, len(scores))
            for (name, model), scores in groups.items()
            for metric, value in _means(scores).items()
        )

    def comparisons(self) -> tuple[Comparison, ...]:
        """The published figures of the names that were run beside what the run gives, then what has no such figure.

        Figures of models that did not run are marked so.
        """
        return compare(self.means(), benchmarks={score.name for score in self.scores})

    def as_json(self) -> dict[str, Any]:
        """All of it, for `json.dumps`."""
        return {
            "mteb_version": self.mteb_version,
            "scores": [asdict(score) for score in self.scores],
            "means": [asdict(mean) for mean in self.means()],
        }


def run_mteb(
    names: Sequence[str | AbsTask],
    embedder: Embedder,
    reranker: Reranker | None = None,
    *,
    top_k: int = 100,
    folder: Path | None = None,
    show_progress: bool = False,
) -> MtebRun:
    """Evaluate an embedder on benchmarks of mteb, and a reranker on what the embedder finds.

    The reranker judges, for each query of a retrieval task, the first `top_k` documents of the embedder; of a reranking
    task, the candidates that the task has. Other tasks are the embedder's alone. The published rerankers' figures are
    from the candidates of Qwen3-Embedding-0.6B, whatever the size of the reranker (paper, section 4, Table 4).

    Args:
        names: Names of the published tables (see `published.BENCHMARKS`), such as "MTEB-R"; of mteb's benchmarks, such
            as "MTEB(eng, v2)"; of mteb's tasks, such as "SciFact"; or tasks of your own.
        embedder: The embedder.
        reranker: The reranker, or None.
        top_k: How many documents of each query the reranker judges.
        folder: Keeps results and candidates, so that a run that was broken off goes on where it was; None for nowhere.
        show_progress: Show mteb's progress bars.

    Returns:
        The score of every task.

    Raises:
        ValueError: A name is unknown or there twice, `names` is empty, or `top_k` is below 1.
        MissingDependencyError: mteb is not installed.
    """
    with needs_extra("mteb", "mteb"):
        import mteb
    check_count(top_k, name="top_k", none="100")
    if not names:
        raise ValueError("names must have at least one benchmark or task, but got none")
    benchmarks = [benchmark_tasks(name) for name in names]
    asked = [name for name, _ in benchmarks]
    if len(set(asked)) < len(asked):
        raise ValueError(f"names must differ, but got {', '.join(asked)}")
    with _work_folder(folder) as work:
        stages = _Stages(embedder, reranker, top_k, work, show_progress=show_progress)
        scores = [score for name, tasks in benchmarks for task in tasks for score in stages.run(name, task)]
    return MtebRun(tuple(scores), mteb.__version__)


class _Stages:
    """Embedding, then reranking, of one task after the other."""

    def __init__(
        self, embedder: Embedder, reranker: Reranker | None, top_k: int, work: Path, *, show_progress: bool
    ) -> None:
        from mteb import ResultCache

        self._embedder = MtebEmbedder(embedder)
        self._reranker = None if reranker is None else MtebReranker(reranker)
        self._top_k = top_k
        self._cache = ResultCache(cache_path=work / "results")
        first = self._embedder.mteb_model_meta
        settings = f"{first.model_name_with_experiment} {first.revision}"
        # mteb names the file of candidates after the task alone, and a result after the model.
        self._candidates = work / "candidates" / _file_name(settings)
        if self._reranker is not None and reranker is not None:
            self._reranker.mteb_model_meta = reranking_meta(reranker, {"candidates": settings, "top_k": top_k})
        self._show_progress = show_progress

    def run(self, name: str, task: AbsTask) -> Iterator[MtebScore]:
        from mteb.abstasks import AbsTaskRetrieval

        task_type = task.metadata.type
        if self._reranker is None:
            yield self._score(name, task, self._embedder, "embedder", None)
        elif isinstance(task, AbsTaskRetrieval) and task_type in _RETRIEVAL:
            yield self._score(name, task, self._embedder, "embedder", self._candidates)
            found = _with_candidates(task, self._candidates, self._top_k)
            yield self._score(name, found, self._reranker, "reranker", None)
        else:
            yield self._score(name, task, self._embedder, "embedder", None)
            if task_type in _RERANKING:
                yield self._score(name, task, self._reranker, "reranker", None)

    def _score(
        self, name: str, task: AbsTask, model: MtebEmbedder | MtebReranker, stage: str, candidates: Path | None
    ) -> MtebScore:
        import mteb

        missing = candidates is not None and not (candidates / task.prediction_file_name).exists()
        result = mteb.evaluate(
            model,
            task,
            cache=self._cache,
            # A result alone is not enough where the reranker needs the candidates behind it.
            overwrite_strategy="always" if missing else "only-missing",
            prediction_folder=candidates,
            show_progress_bar=self._show_progress,
        )
        meta, model_meta = task.metadata, model.mteb_model_meta
        value = 100.0 * float(result.task_results[0].get_score())
        model_name = str(model_meta.adapted_from or model_meta.name)
        return MtebScore(name, meta.name, meta.type, meta.main_score, model_name, stage, value)


def _with_candidates(task: AbsTaskRetrieval, folder: Path, top_k: int) -> AbsTask:
    """The task with the first documents of an earlier run as candidates; the one that was given stays as it is."""
    found = copy.copy(task)
    if found.data_loaded:
        found.dataset = {
            subset: {split: data.copy() for split, data in splits.items()} for subset, splits in task.dataset.items()
        }
    return found.convert_to_reranking(folder, top_k=top_k)


def benchmark_tasks(name: str | AbsTask) -> tuple[str, list[AbsTask]]:
    """The tasks behind a name, which need not have been downloaded.

    Args:
        name: See `run_mteb`.

    Returns:
        The name, and the tasks in mteb's order. A task is called by its own name, and what the paper has a table for by
        the name of the table.

    Raises:
        ValueError: The name is unknown.
        MissingDependencyError: mteb is not installed.
    """
    with needs_extra("mteb", "mteb"):
        import mteb
    if not isinstance(name, str):
        return name.metadata.name, [name]
    whole = {table.mteb_name: table.name for table in BENCHMARKS.values() if not table.task_types}
    table = BENCHMARKS.get(whole.get(name, name))
    known = name if table is None else table.mteb_name or name
    try:
        tasks = list(mteb.get_benchmark(known).tasks)
    except KeyError:
        tasks = _single(known)
    if table is None:
        return name, tasks
    return table.name, [task for task in tasks if not table.task_types or task.metadata.type in table.task_types]


def _single(name: str) -> list[AbsTask]:
    import mteb

    try:
        return [mteb.get_task(name)]
    except KeyError as error:
        tables = ", ".join(name for name, benchmark in BENCHMARKS.items() if benchmark.mteb_name)
        raise ValueError(
            f"names must have published tables ({tables}), or benchmarks or tasks of mteb, but got {name!r}"
        ) from error


def _means(scores: Sequence[MtebScore]) -> dict[str, float]:
    types: dict[str, list[float]] = {}
    for score in scores:
        types.setdefault(score.task_type, []).append(score.value)
    each = {name: sum(values) / len(values) for name, values in types.items()}
    over_tasks = sum(score.value for score in scores) / len(scores)
    return {"Mean (Task)": over_tasks, "Mean (Type)": sum(each.values()) / len(each), **each}


@contextmanager
def _work_folder(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="qwen-retrieval-mteb-") as work:
        yield Path(work)


def _file_name(text: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-._=" else "_" for letter in text)
