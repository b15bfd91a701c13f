"""Which setting to use, and why: rules on the first measure, with their numbers in the words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median

import numpy as np

from qwen_retrieval.evaluation.results import Advice, Comparison, Setup, System
from qwen_retrieval.evaluation.significance import ALPHA, compare

TOLERANCE = 0.01
"""How much lower a mean may be and still count as good, besides not being significantly lower. Few queries make large
losses insignificant; those are losses all the same."""

FEWEST = 6
"""With fewer queries no p-value can be below 0.05: two-sided, it is at least 2^(1 - q)."""

Result = tuple[list[Advice], tuple[Comparison, ...]]


class _Advisor:
    """The systems of one evaluation, and how they are compared."""

    def __init__(self, systems: Sequence[System], setup: Setup) -> None:
        self.systems = {system.name: system for system in systems}
        self.base = self.systems[setup.base]
        self.metric = setup.metrics[0]
        self.no_instruction = {name for name, text in setup.instructions.items() if not text}
        self._resamples, self._seed = setup.resamples, setup.seed

    def mean(self, system: System) -> float:
        return system.means[self.metric]

    def best(self, systems: Sequence[System]) -> System:
        """The highest mean; of equal ones the first."""
        return max(systems, key=self.mean)

    def against(self, family: str, baseline: System, others: Sequence[System]) -> dict[str, Comparison]:
        values = {system.name: np.array(system.values) for system in (baseline, *others)}
        compared = compare(family, values, baseline.name, resamples=self._resamples, seed=self._seed)
        return {one.system: one for one in compared}


def advise(
    systems: Sequence[System], setup: Setup, table: Sequence[Comparison]
) -> tuple[tuple[Advice, ...], tuple[Comparison, ...]]:
    """Recommend settings by these rules, "significant" meaning a corrected p-value below 0.05.

    - data: how large a difference these queries can show; it comes first, because it qualifies the rest.
    - storage: of all dimensions and quantizations, the one with the fewest bytes in all that is neither significantly
      lower than the best nor more than 0.01 lower.
    - memory: the same by the bytes that are searched; only where it differs.
    - instruction: of those that are significantly better than none (or than the base, where none was not tried) and at
      most 0.01 lower than the best, the base's if it is among them, else the best.
    - reranking: the smallest depth that is significantly better than no reranking and at most 0.01 lower than the best
      depth; else not to rerank.
    - bm25: whether the base is significantly better than BM25.

    Args:
        systems: All systems.
        setup: What they were evaluated with.
        table: The comparisons with the baseline.

    Returns:
        The advice, and the comparisons that it stands on.
    """
    advisor = _Advisor(systems, setup)
    parts = [_storage(advisor), _instruction(advisor), _reranking(advisor), _bm25(advisor)]
    advice = [one for part, _ in parts for one in part]
    comparisons = tuple(one for _, compared in parts for one in compared)
    return (*_data(advisor, table), *advice), comparisons


def _storage(advisor: _Advisor) -> Result:
    grid = [
        system
        for system in advisor.systems.values()
        if system.kind == "embedder" and system.instruction == advisor.base.instruction
    ]
    if len(grid) < 2:
        return [], ()
    best = advisor.best(grid)
    compared = advisor.against("storage", best, [system for system in grid if system is not best])
    good = [system for system in grid if system is best or _as_good(compared[system.name])]
    kept = min(good, key=_order(advisor, lambda system: system.stored_bytes or 0))
    quick = min(good, key=_order(advisor, lambda system: system.searched_bytes or 0))
    found = _against_best(advisor, kept, best, compared) + (" No smaller one is as good." if kept is best else "")
    advice = [Advice("storage", kept.name, f"Use {kept.name}: {kept.stored_bytes:,} bytes per document. {found}")]
    if quick is not kept and quick.searched_bytes != kept.searched_bytes:
        found = _against_best(advisor, quick, best, compared)
        text = (
            f"If memory is scarcer than disk, use {quick.name}: a search looks through {quick.searched_bytes:,} bytes "
            f"per document, and {quick.stored_bytes:,} are kept. {found}"
        )
        advice.append(Advice("memory", quick.name, text))
    return advice, tuple(compared.values())


def _against_best(advisor: _Advisor, system: System, best: System, compared: Mapping[str, Comparison]) -> str:
    mean = f"Its {advisor.metric} is {advisor.mean(system):.3f}"
    if system is best:
        return f"{mean}, the best of all dimensions and quantizations."
    rival = f"{advisor.mean(best):.3f} of the best, {best.name} with {best.stored_bytes:,} bytes"
    return f"{mean}, against {rival}. {_difference(compared[system.name])}"


def _instruction(advisor: _Advisor) -> Result:
    base = advisor.base
    tried = [
        system
        for system in advisor.systems.values()
        if system.kind == "embedder"
        and (system.dimensions, system.quantization) == (base.dimensions, base.quantization)
    ]
    if len(tried) < 2:
        return [], ()
    reference = next((system for system in tried if system.instruction in advisor.no_instruction), base)
    compared = advisor.against("instruction", reference, [system for system in tried if system is not reference])
    best = advisor.best(tried)
    than = "none" if reference.instruction in advisor.no_instruction else f"{reference.instruction!r}"
    scale = f"{advisor.metric} {advisor.mean(best):.3f} against {advisor.mean(reference):.3f}"
    if best is reference:
        text = f"No instruction that was tried is better than {than} ({advisor.metric} {advisor.mean(best):.3f})."
        return [Advice("instruction", best.name, text)], tuple(compared.values())
    better = [s for s in tried if s is not reference and _is_better(compared[s.name])]
    good = [system for system in better if advisor.mean(system) >= advisor.mean(best) - TOLERANCE]
    if good:
        chosen = base if base in good else best if best in good else good[0]
        scale = f"{advisor.metric} {advisor.mean(chosen):.3f} against {advisor.mean(reference):.3f}"
        why = f"better than {than}, {scale}. {_difference(compared[chosen.name])}"
        text = f"Use the instruction {chosen.instruction!r}: {why}"
        return [Advice("instruction", chosen.name, text)], tuple(compared.values())
    found = compared[best.name]
    text = (
        f"The instruction makes no difference that these queries can show: the best, {best.instruction!r}, has {scale} "
        f"of {than}. {_difference(found)} It can be changed later: documents have none."
    )
    return [Advice("instruction", None, text)], tuple(compared.values())


def _reranking(advisor: _Advisor) -> Result:
    tried = [system for system in advisor.systems.values() if system.kind == "reranker"]
    if not tried:
        return [], ()
    compared = advisor.against("reranking", advisor.base, tried)
    best = advisor.best(tried)
    better = [system for system in tried if _is_better(compared[system.name])]
    good = [system for system in better if advisor.mean(system) >= advisor.mean(best) - TOLERANCE]
    chosen = min(good or [best], key=lambda system: system.rerank_depth or 0)
    scale = f"{advisor.metric} {advisor.mean(chosen):.3f} against {advisor.mean(advisor.base):.3f} without"
    cost = f"It took {chosen.rerank_seconds or 0:.3g} s per query here."
    difference = _difference(compared[chosen.name])
    if good:
        text = f"Rerank the first {chosen.rerank_depth}: {scale}. {difference} {cost}"
        return [Advice("reranking", chosen.name, text)], tuple(compared.values())
    harm = compared[chosen.name].p_holm < ALPHA
    text = (
        f"Do not rerank: {'it makes the order worse' if harm else 'no gain can be seen'}; the best depth, "
        f"{chosen.rerank_depth}, has {scale}. {difference} {cost}"
    )
    return [Advice("reranking", advisor.base.name, text)], tuple(compared.values())


def _bm25(advisor: _Advisor) -> Result:
    words = next((system for system in advisor.systems.values() if system.kind == "bm25"), None)
    if words is None:
        return [], ()
    found = advisor.against("bm25", words, [advisor.base])[advisor.base.name]
    scale = f"{advisor.metric} {advisor.mean(advisor.base):.3f} against {advisor.mean(words):.3f}"
    if found.p_holm >= ALPHA:
        chosen, verdict = None, "is not distinguishable from"
    else:
        chosen, verdict = (advisor.base, "is better than") if found.difference > 0 else (words, "is worse than")
    text = f"{advisor.base.name} {verdict} BM25 on this data: {scale}. {_difference(found)}"
    return [Advice("bm25", chosen.name if chosen else None, text)], (found,)


def _data(advisor: _Advisor, table: Sequence[Comparison]) -> list[Advice]:
    count = len(advisor.base.values)
    if count < FEWEST:
        queries = "query" if count == 1 else "queries"
        text = f"With {count} {queries} no difference can be significant; take at least 50, better 200."
        return [Advice("data", None, text)]
    widths = [(one.high - one.low) / 2 for one in table]
    if not widths:
        return []
    text = f"With {count} queries, differences below about {median(widths):.3f} cannot be told from chance."
    return [Advice("data", None, text)]


def _as_good(found: Comparison) -> bool:
    return found.difference >= -TOLERANCE and not (found.difference < 0 and found.p_holm < ALPHA)


def _is_better(found: Comparison) -> bool:
    return found.difference > 0 and found.p_holm < ALPHA


def _order(advisor: _Advisor, size: Callable[[System], int]) -> Callable[[System], tuple[int, float]]:
    """Fewest bytes first; of equal ones the better."""
    return lambda system: (size(system), -advisor.mean(system))


def _difference(found: Comparison) -> str:
    verdict = "significant" if found.p_holm < ALPHA else "not significant"
    interval = f"95 % interval {found.low:+z.3f} to {found.high:+z.3f}"
    return f"The difference is {found.difference:+z.3f} ({interval}), {verdict}."
