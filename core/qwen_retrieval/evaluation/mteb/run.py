"""Whole tables of benchmarks: the embedder, then the reranker on its best hundred."""

from __future__ import annotations

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
from qwen_retrieval.specs import resolve_model

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask
    from mteb.cache import ResultCache

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
        model: The repository, folder or short name of the model.
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
        groups: dict[tuple[str, str, str], list[MtebScore]] = {}  # a demo pair has one name
        for score in self.scores:
            groups.setdefault((score.name, score.model, score.stage), []).append(score)
        return tuple(
            Measured(name, model, metric, value, len(scores))
            for (name, model, _), scores in groups.items()
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
        ValueError: A name is unknown, `names` is empty, or `top_k` is below 1.
        MissingDependencyError: mteb is not installed.
    """
    with needs_extra("mteb", "mteb"):
        import mteb
    check_count(top_k, name="top_k", none="100")
    if not names:
        raise ValueError("names must have at least one benchmark or task, but got none")
    benchmarks = [_tasks(name) for name in names]
    with _work_folder(folder) as work:
        stages = _Stages(embedder, reranker, top_k, work, keep=folder is not None, show_progress=show_progress)
        scores = [score for name, tasks in benchmarks for task in tasks for score in stages.run(name, task)]
    return MtebRun(tuple(scores), mteb.__version__)


class _Stages:
    """Embedding, then reranking, of one task after the other."""

    def __init__(
        self,
        embedder: Embedder,
        reranker: Reranker | None,
        top_k: int,
        work: Path,
        *,
        keep: bool,
        show_progress: bool,
    ) -> None:
        from mteb import ResultCache

        self._embedder = MtebEmbedder(embedder)
        self._reranker = None if reranker is None else MtebReranker(reranker)
        self._top_k = top_k
        self._cache: ResultCache | None = ResultCache(cache_path=work / "results") if keep else None
        first = self._embedder.mteb_model_meta
        # mteb names the candidates of a task after the task alone.
        self._candidates = work / "candidates" / _folder_name(str(first.model_name_with_experiment), first.revision)
        if self._reranker is not None and reranker is not None:
            settings: dict[str, str | int] = {"candidates": f"{first.name} {first.revision}", "top_k": top_k}
            self._reranker.mteb_model_meta = reranking_meta(reranker, settings)
        self._show_progress = show_progress

    def run(self, name: str, task: AbsTask) -> Iterator[MtebScore]:
        from mteb.abstasks import AbsTaskRetrieval

        candidates = task.metadata.type in _RETRIEVAL and self._reranker is not None
        yield self._score(name, task, self._embedder, self._candidates if candidates else None)
        if self._reranker is None or task.metadata.type not in _RETRIEVAL | _RERANKING:
            return
        if isinstance(task, AbsTaskRetrieval) and candidates:
            task = task.convert_to_reranking(self._candidates, top_k=self._top_k)
        yield self._score(name, task, self._reranker, None)

    def _score(
        self, name: str, task: AbsTask, model: MtebEmbedder | MtebReranker, candidates: Path | None
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
        if isinstance(model, MtebEmbedder):
            stage, repository = "embedder", resolve_model(model.embedder.spec.model, "embedding")
        else:
            stage, repository = "reranker", resolve_model(model.reranker.spec.model, "reranking")
        value = 100.0 * float(result.task_results[0].get_score())
        meta = task.metadata
        return MtebScore(name, meta.name, meta.type, meta.main_score, repository, stage, value)


def _tasks(name: str | AbsTask) -> tuple[str, list[AbsTask]]:
    """What was asked for, and its tasks."""
    import mteb

    if not isinstance(name, str):
        return name.metadata.name, [name]
    benchmark = BENCHMARKS.get(name)
    known = name if benchmark is None else benchmark.mteb_name or name
    try:
        tasks = list(mteb.get_benchmark(known).tasks)
    except KeyError:
        tasks = _single(known)
    if benchmark is not None and benchmark.task_types:
        tasks = [task for task in tasks if task.metadata.type in benchmark.task_types]
    return name, tasks


def _single(name: str) -> list[AbsTask]:
    import mteb

    try:
        return [mteb.get_task(name)]
    except KeyError as error:
        tables = ", ".join(BENCHMARKS)
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


def _folder_name(name: str, revision: str | None) -> str:
    return "".join(letter if letter.isalnum() or letter in "-._=" else "_" for letter in f"{name} {revision or ''}")
