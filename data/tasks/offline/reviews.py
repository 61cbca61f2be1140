"""sst2: sentences of film reviews with people's mean ratings, which ``vaderSentiment`` ships; SST-2's own test rows."""

import io
import re
import tarfile
import zipfile
from pathlib import Path

from data.archives.download import Archive
from data.sources.retry import DataError
from data.tasks.offline.evaluation import arrow_rows
from data.tasks.offline.splits import Splits, split_rows, without_near_duplicates
from data.tasks.sources.base import Row

REVIEWS = Archive(
    "pip-source", "vaderSentiment==0.5", "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a", 2.4
)
INNER_ARCHIVE = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
RATINGS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
CLEAR = 0.5  # of ratings from -4 to 4: sentences nearer to 0 are dropped
VALIDATION_ROWS = 500

MARK = re.compile(r"([^\w\s'-]|''|--)")
ENDING = re.compile(r"(n't|'(?:s|re|ve|ll|d|m))\b")


def sentiment_rows(reviews: Path, evaluation: Path) -> Splits:
    """Return training and validation rows out of the ratings, and SST-2's validation rows as test rows.

    Sentences that are near-duplicates of test rows are dropped: both come from the same reviews.

    Raises:
        DataError: an archive does not hold what it should.
    """
    test = arrow_rows(evaluation, "glue/sst2")
    rated = without_near_duplicates(rated_sentences(reviews), test, "sentence")
    return {**split_rows(rated, lambda row: str(row["sentence"]), 0, VALIDATION_ROWS), "test": test}


def rated_sentences(archive: Path) -> list[Row]:
    """Return the sentences whose mean rating is clear, written as SST-2 writes sentences."""
    try:
        with zipfile.ZipFile(archive) as outer, tarfile.open(fileobj=io.BytesIO(outer.read(INNER_ARCHIVE))) as inner:
            file = inner.extractfile(RATINGS)
            assert file is not None
            lines = file.read().decode("latin-1").split("\n")
    except (zipfile.BadZipFile, tarfile.TarError, KeyError) as error:
        raise DataError(f"{archive} does not hold {RATINGS}: remove it and run again") from error
    rows: list[Row] = []
    for line in lines:
        number, rating, sentence = [*line.rstrip("\r").split("\t", 2), "", ""][:3]
        if sentence and abs(float(rating)) > CLEAR:
            rows.append({"sentence": tokenized(sentence), "label": int(float(rating) > 0), "idx": int(number)})
    return rows


def tokenized(sentence: str) -> str:
    """Return a sentence in lower case, with spaces around marks and before endings such as ``n't``, as in SST-2."""
    return " ".join(MARK.sub(r" \1 ", ENDING.sub(r" \1", sentence.lower())).split()) + " "
