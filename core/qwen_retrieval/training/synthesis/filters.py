"""What is left out of the pairs: queries that are none, that are repeated, or that do not fit their document."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from qwen_retrieval.errors import needs_extra
from qwen_retrieval.training.filtering import THRESHOLD, FilteredPairs, TextEmbedder, filter_positives
from qwen_retrieval.types import FloatArray

IsLanguage = Callable[[str, str], bool]
"""Whether a text, given first, may be in the language of the English name given second."""

_PUNCTUATION = " \t\n?!.,;:\"'…¿¡。？！，؟«»“”"
_SURE = 0.8  # of 1: a language that is found with less does not count against a query
_CHUNK = 1024


@dataclass(frozen=True, slots=True)
class Pair:
    """A query and the document that it was made for.

    Attributes:
        query: The query.
        positive: The document.
        meta: How the query was made; "language" is its language.
    """

    query: str
    positive: str
    meta: dict[str, Any]


@dataclass(frozen=True, slots=True)
class FilterSettings:
    """Which pairs are left out.

    Attributes:
        min_characters: Shorter queries are left out.
        max_characters: Longer queries are left out.
        positive_cosine: Pairs whose query and document are not more alike are left out; the report's 0.7 is in the
            cosines of its own model. None leaves out none.
        duplicate_cosine: Queries that are more alike to one before are left out; ours. None leaves out none.
        is_language: Decides whether a query is in its language; None leaves out none.
    """

    min_characters: int = 3
    max_characters: int = 1000
    positive_cosine: float | None = THRESHOLD
    duplicate_cosine: float | None = 0.95
    is_language: IsLanguage | None = None


@dataclass(slots=True)
class Filtered:
    """The pairs that are left.

    Attributes:
        pairs: In the order given.
        dropped: Reason -> how many pairs were left out for it.
        positives: The cosines of queries and documents, if they were looked at.
    """

    pairs: list[Pair]
    dropped: Counter[str] = field(default_factory=Counter)
    positives: FilteredPairs | None = None

    def keep(self, reasons: Iterable[str]) -> None:
        """Leave out the pairs that have a reason; "" is none."""
        kept = []
        for pair, reason in zip(self.pairs, reasons, strict=True):
            if reason:
                self.dropped[reason] += 1
            else:
                kept.append(pair)
        self.pairs = kept


def filter_pairs(
    pairs: Sequence[Pair],
    settings: FilterSettings,
    *,
    embedder: TextEmbedder | None = None,
    instruction: str | None = None,
) -> Filtered:
    """Leave out pairs, the cheap reasons first.

    Args:
        pairs: n pairs.
        settings: Which are left out.
        embedder: Computes the vectors; without one, cosines are not looked at.
        instruction: The task of the queries, instead of the embedder's own.

    Returns:
        Those that are left, and how many were left out for being "empty", "too_short", "too_long",
        "contains_document", in another "language", a "duplicate", "unlike_document" or a "near_duplicate".
    """
    result = Filtered(list(pairs))
    result.keep([_fault(pair, settings) for pair in result.pairs])
    result.keep(_repeated(pair.query for pair in result.pairs))
    if embedder is None:
        return result
    queries = [pair.query for pair in result.pairs]
    if settings.positive_cosine is not None:
        documents = [pair.positive for pair in result.pairs]
        limit = settings.positive_cosine
        result.positives = filter_positives(embedder, queries, documents, threshold=limit, instruction=instruction)
        result.pairs = [
            replace(pair, meta=pair.meta | {"cosine": round(float(cosine), 4)})
            for pair, cosine in zip(result.pairs, result.positives.cosines, strict=True)
        ]
        result.keep("" if kept else "unlike_document" for kept in result.positives.kept)
    if settings.duplicate_cosine is not None and result.pairs:
        vectors = embedder.embed_queries([pair.query for pair in result.pairs], instruction=instruction)  # (n, d)
        alike = near_duplicates(vectors, settings.duplicate_cosine)
        result.keep("near_duplicate" if found else "" for found in alike)
    return result


def normalized(text: str) -> str:
    """`text` without differences of form, case, white space and punctuation at its ends."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(_PUNCTUATION)


def near_duplicates(vectors: FloatArray, limit: float) -> list[bool]:
    """Which vectors are too close to one before that is kept.

    Args:
        vectors: (n, d) of unit length.
        limit: A cosine; what is greater is too close.

    Returns:
        n values, in order; the first is never too close.
    """
    kept: list[int] = []
    found: list[bool] = []
    for start in range(0, len(vectors), _CHUNK):
        part = vectors[start : start + _CHUNK]  # (c, d)
        before = np.any(part @ vectors[kept].T > limit, axis=1)  # (c,)
        within = np.greater(part @ part.T, limit)  # (c, c)
        new: list[int] = []
        for row in range(len(part)):
            found.append(bool(before[row] or within[row, new].any()))
            if not found[-1]:
                new.append(row)
        kept += [start + row for row in new]
    return found


def language_check(languages: Iterable[str]) -> IsLanguage:
    """A check of languages by lingua, which is made for short texts.

    It tells apart only the languages given, and English and Chinese, which models fall back to: among 75 languages a
    query of three words is often taken for a wrong one.

    Args:
        languages: English names: those of the queries and that of the documents.

    Raises:
        ValueError: lingua does not know one of them.
        MissingDependencyError: lingua is not installed.
    """
    with needs_extra("lingua", "synthesize"):
        from lingua import Language, LanguageDetectorBuilder
    known = {language.name: language for language in Language.all()}
    names = {name.upper() for name in languages} | {"ENGLISH", "CHINESE"}
    if unknown := sorted(names - set(known)):
        raise ValueError(f"cannot tell whether a query is {unknown[0].title()}; leave the check of languages out")
    detector = LanguageDetectorBuilder.from_languages(*(known[name] for name in sorted(names))).build()

    def is_language(text: str, language: str) -> bool:
        best = detector.compute_language_confidence_values(text)[0]
        return bool(best.language.name == language.upper() or best.value < _SURE)

    return is_language


def _fault(pair: Pair, settings: FilterSettings) -> str:
    """Why a pair is left out, as far as that can be told from its texts; "" if there is no reason."""
    query = normalized(pair.query)
    if not query:
        return "empty"
    if len(pair.query) < settings.min_characters:
        return "too_short"
    if normalized(pair.positive) in query:
        return "contains_document"
    if len(pair.query) > settings.max_characters:
        return "too_long"
    if settings.is_language and not settings.is_language(pair.query, pair.meta["language"]):
        return "language"
    return ""


def _repeated(queries: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    reasons = []
    for query in map(normalized, queries):
        reasons.append("duplicate" if query in seen else "")
        seen.add(query)
    return reasons
