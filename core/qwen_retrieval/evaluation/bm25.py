"""BM25, the baseline that every vector has to beat, for text in any script."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from qwen_retrieval.errors import needs_extra
from qwen_retrieval.types import FloatArray

if TYPE_CHECKING:
    import Stemmer

K1, B = 1.2, 0.75  # Lucene's defaults: org.apache.lucene.search.similarities.BM25Similarity

# Scripts that are written without spaces between words: Thai, Lao, Myanmar, Khmer, kana, Han; and Hangul, whose words
# carry particles. Lucene's CJKAnalyzer makes bigrams of the CJK ones among them.
_UNSPACED = re.compile(
    "([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff"
    "\U00020000-\U0003ffff]+)"
)


class BM25:
    """An index of documents by the words they contain (Robertson et al. 1994, in Lucene's form).

    Texts are normalised (NFKC) and folded to lower case; what stands between letters, marks and digits separates words.
    Words are stemmed. Scripts that do not separate words become overlapping pairs of characters. There are no stop
    words: rare words weigh more in any case.

    Args:
        documents: n texts.
        language: The Snowball stemmer, such as "english" (it leaves other scripts alone), or "none".
        k1: How soon further occurrences of a word count less.
        b: How much longer documents count less, from 0 to 1.

    Raises:
        ValueError: There is no stemmer of that name.
        MissingDependencyError: The extra ``evaluate`` is not installed.
    """

    def __init__(self, documents: Sequence[str], *, language: str = "english", k1: float = K1, b: float = B) -> None:
        with needs_extra("bm25s", "evaluate"):
            import bm25s
        self._stemmer = _stemmer(language)
        self._count = len(documents)
        words = [self.words(document) for document in documents]
        self._index = None
        if any(words):  # otherwise the average length, by which it divides, is 0
            self._index = bm25s.BM25(method="lucene", k1=k1, b=b)
            self._index.index(words, show_progress=False)

    def __len__(self) -> int:
        return self._count

    def words(self, text: str) -> list[str]:
        """The words of a text as they are indexed, in order."""
        words: list[str] = []
        for word in unicodedata.normalize("NFKC", text).casefold().translate(_SEPARATORS).split():
            words += [word] if word.isascii() else _pieces(word)
        return self._stemmer.stemWords(words) if self._stemmer else words

    def scores(self, query: str) -> FloatArray:
        """How well each document matches a query; a word that the query repeats counts as often.

        Args:
            query: The query.

        Returns:
            (n,) float32, at least 0, in the order of the documents; 0 for those without any word of the query.
        """
        words = self.words(query)
        if self._index is None:
            return np.zeros(self._count, dtype=np.float32)
        known = self._index.get_tokens_ids(words)
        return np.asarray(self._index.get_scores_from_ids(known), dtype=np.float32)


class _Separators(dict[int, int]):
    """For `str.translate`: what is no letter, mark or digit becomes a space. Filled as characters occur."""

    def __missing__(self, code: int) -> int:
        self[code] = code if unicodedata.category(chr(code))[0] in "LMN" else ord(" ")
        return self[code]


_SEPARATORS = _Separators()


def _pieces(word: str) -> list[str]:
    pieces: list[str] = []
    for number, piece in enumerate(_UNSPACED.split(word)):  # every second one is unspaced
        if number % 2 and len(piece) > 1:
            pieces += [piece[start : start + 2] for start in range(len(piece) - 1)]
        elif piece:
            pieces.append(piece)
    return pieces


def _stemmer(language: str) -> Stemmer.Stemmer | None:
    if language == "none":
        return None
    with needs_extra("Stemmer", "evaluate"):
        import Stemmer
    if language not in Stemmer.algorithms():
        known = ", ".join(sorted(Stemmer.algorithms()))
        raise ValueError(f"language must be none or one of {known}, but got {language!r}")
    return Stemmer.Stemmer(language)
