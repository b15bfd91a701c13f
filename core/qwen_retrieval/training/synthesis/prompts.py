"""The two prompts of the Qwen3-Embedding report (arXiv 2506.05176, appendix A.1, "Synthetic Data"), and their answers.

The first asks who would look for a passage, with what type of question and how difficult a one; the second asks that
person for the query. The wording, its misspellings included, is the report's. What the report leaves out is ours: it
prints "..." for what each type and difficulty means, and placeholders for the examples.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

QUESTION_TYPES = {
    "keywords": "a few search terms, no sentence.",
    "acquire_knowledge": "a question about a fact, a reason or a procedure that the Passage explains.",
    "summary": "a request for an overview of what the Passage is about.",
    "yes_or_no": "a question that the Passage answers with yes or no.",
    "background": "a question about a situation of the Character that the Passage helps to understand.",
}
"""The report's types of questions; their meanings are ours."""

DIFFICULTIES = {
    "high_school": "everyday words, no prior knowledge.",
    "university": "terms of the field, which somebody who studies it knows.",
    "phd": "precise terms and relations, which an expert would use.",
}
"""The report's difficulties; their meanings are ours."""

VERSION = 1
"""Counts the changes of these prompts: answers to other prompts are not mixed with theirs."""

_CONFIGURATION = """\
Given a **Passage** and **Character**, select the appropriate option from three fields: Character, Question_Type, \
Difficulty, and return the output in JSON format.

First, select the Character who are likely to be interested in the Passage from the candidates. Then select the \
Question_Type that the Character might ask about the Passage; Finally, choose the Difficulty of the possible question \
based on the Passage, the Character, and the Question_Type.

Character: Given by input **Character**

Question_Type:
{types}

Difficulty:
{difficulties}

Here are some examples
{examples}

Now, generate the **output** based on the **Passage** and **Character** from user, the **Passage** will be in \
{language} language and the **Character** will be in English.

Ensure to generate only the JSON output with content in English.

**Passage**:
{passage}

**Character**:
{characters}"""

_QUERY = """\
Given a **Character**, **Passage**, and **Requirement**, generate a query from the **Character**'s perspective that \
satisfies the **Requirement** and can be used to retrieve the **Passage**. Please return the result in JSON format.

Here is an example:
{example}

Now, generate the **output** based on the **Character**, **Passage** and **Requirement** from user, the **Passage** \
will be in {corpus_language} language, the **Character** and **Requirement** will be in English.

Ensure to generate only the JSON output, with the key in English and the value in {queries_language} language.

**Character**
{character}

**Passage**
{passage}

**Requirment**
- Type: {type};
- Difficulty: {difficulty};
- Length: the length of the generated sentences should be {length} words;
- Languange: the language in which the results are generated should be {language} language;"""

_CONFIGURATION_EXAMPLES = """\
**Passage**: Sourdough rises because wild yeast feeds on the flour and gives off carbon dioxide. Below 18 °C it works \
slowly, and the dough needs a whole night.
**Character**:
1. A home baker whose bread stays flat in winter
2. A microbiologist who studies fermentation
{"Character": "A home baker whose bread stays flat in winter", "Question_Type": "acquire_knowledge", \
"Difficulty": "high_school"}

**Passage**: Courts apply the business judgment rule: a director who decides in good faith and on sufficient \
information is not liable for the outcome.
**Character**:
1. A lawyer who advises boards of directors
2. A gardener
{"Character": "A lawyer who advises boards of directors", "Question_Type": "yes_or_no", "Difficulty": "phd"}"""

_QUERY_EXAMPLE = """\
**Character**
A home baker whose bread stays flat in winter
**Passage**
Sourdough rises because wild yeast feeds on the flour and gives off carbon dioxide. Below 18 °C it works slowly, and \
the dough needs a whole night.
**Requirment**
- Type: acquire_knowledge;
- Difficulty: high_school;
- Length: the length of the generated sentences should be 10 words;
- Languange: the language in which the results are generated should be English language;
{"query": "why does my sourdough not rise in a cold kitchen"}"""

_THINKING = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
_FENCE = re.compile(r"\A\s*```(?:json)?\s*\n(.*?)\n?```\s*\Z", re.DOTALL)


class MalformedAnswerError(ValueError):
    """The answer of the model is not what the prompt asked for; the message can be sent back to it."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """The answer of the first stage.

    Attributes:
        character: One of the candidates.
        question_type: A key of `QUESTION_TYPES`.
        difficulty: A key of `DIFFICULTIES`.
    """

    character: str
    question_type: str
    difficulty: str

    def as_dict(self) -> dict[str, str]:
        """The fields by name."""
        return asdict(self)


def configuration_prompt(passage: str, characters: Sequence[str], corpus_language: str) -> str:
    """The prompt of the first stage.

    Args:
        passage: The document.
        characters: Candidates; the report gives the five of Persona Hub that are most relevant to the document.
        corpus_language: English name of the language of the passage.
    """
    return _CONFIGURATION.format(
        types=_listed(QUESTION_TYPES),
        difficulties=_listed(DIFFICULTIES),
        examples=_CONFIGURATION_EXAMPLES,
        language=corpus_language,
        passage=passage,
        characters="\n".join(f"{number}. {character}" for number, character in enumerate(characters, start=1)),
    )


def query_prompt(passage: str, configuration: Configuration, *, corpus_language: str, language: str, words: int) -> str:
    """The prompt of the second stage.

    Args:
        passage: The document.
        configuration: What the first stage chose.
        corpus_language: English name of the language of the passage.
        language: English name of the language of the query.
        words: How long the query shall be.
    """
    return _QUERY.format(
        example=_QUERY_EXAMPLE,
        corpus_language=corpus_language,
        queries_language=language,
        character=configuration.character,
        passage=passage,
        type=configuration.question_type,
        difficulty=configuration.difficulty,
        length=words,
        language=language,
    )


def parse_configuration(answer: str, characters: Sequence[str]) -> Configuration:
    """Read the answer to `configuration_prompt`.

    Args:
        answer: What the model wrote. A leading ``<think>`` block and one code fence around everything are taken off.
        characters: The candidates that it was given.

    Raises:
        MalformedAnswerError: It is no JSON object of exactly these three fields, or a value is none of those offered.
    """
    fields = _fields(answer, ("Character", "Question_Type", "Difficulty"))
    known = {" ".join(character.split()): character for character in characters}
    character = known.get(" ".join(fields["Character"].split()))
    if character is None:
        raise MalformedAnswerError("Character must be one of the candidates, word for word and without its number")
    for name, options in (("Question_Type", QUESTION_TYPES), ("Difficulty", DIFFICULTIES)):
        if fields[name] not in options:
            raise MalformedAnswerError(f"{name} must be one of {', '.join(options)}, but is {fields[name][:80]!r}")
    return Configuration(character, fields["Question_Type"], fields["Difficulty"])


def parse_query(answer: str) -> str:
    """Read the answer to `query_prompt`; the same is taken off, and the same is raised, as by `parse_configuration`.

    Returns:
        The query without surrounding white space; may be empty.
    """
    return _fields(answer, ("query",))["query"].strip()


def _listed(options: dict[str, str]) -> str:
    return "\n".join(f"- {name}: {meaning}" for name, meaning in options.items())


def _fields(answer: str, names: tuple[str, ...]) -> dict[str, str]:
    """The object in `answer`, if it has exactly these fields and all are strings that can be encoded."""
    text = _THINKING.sub("", answer, count=1)
    fenced = _FENCE.match(text)
    try:
        value: Any = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError) as error:
        raise MalformedAnswerError(f"the answer must be one JSON object and nothing else ({error})") from None
    if not isinstance(value, dict) or set(value) != set(names):
        raise MalformedAnswerError(f"the answer must be one JSON object with exactly the keys {', '.join(names)}")
    for name in names:
        if not isinstance(value[name], str) or any("\ud800" <= letter <= "\udfff" for letter in value[name]):
            raise MalformedAnswerError(f"the value of {name} must be a string of valid Unicode")
    return value
