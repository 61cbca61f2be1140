"""SentencePiece vocabulary with T5's sentinels: training, loading, export to Hugging Face.

Ids: the pieces of ``spiece.model`` (pad 0, eos 1, unk 2), followed by 100 sentinels. Sentinel k, <extra_id_k>, has id
``vocab_size - 1 - k``, where vocab_size = pieces + 100. A model pads this size to a multiple of 128.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from common.files import write_atomically
from data.config import RUN_PREPARE
from data.hugging_face import MODEL_FILE, describe_unfit, save
from data.span_corruption import NUM_SENTINELS

PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
# Models pad the vocabulary to a multiple of this, for the matrix multiplication of the output head.
VOCABULARY_MULTIPLE = 128
# SentencePiece silently skips longer sentences in training.
MAX_SENTENCE_BYTES = 16384
# The E-step sums over threads in order, so the vocabulary depends on their number: fix it on all machines.
TRAINING_THREADS = 4
MAKE_VOCABULARY = f"{RUN_PREPARE}, or set data.vocabulary"


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """Yield lines of the texts, cut to at most MAX_SENTENCE_BYTES (a character has at most 4 bytes)."""
    limit = MAX_SENTENCE_BYTES // 4
    for text in texts:
        for line in text.splitlines():
            for start in range(0, len(line), limit):
                yield line[start : start + limit]


def train_vocabulary(texts: Iterable[str], vocab_size: int, folder: Path) -> None:
    """Train a unigram SentencePiece model and write ``folder/spiece.model`` atomically.

    The same texts in the same order give the same file.

    Args:
        texts: documents.
        vocab_size: number of pieces, including pad, eos and unk, excluding the 100 sentinels.
        folder: created if missing.

    Raises:
        ValueError: vocab_size is too large or too small for the texts.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(texts),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            pad_id=PAD_ID,
            eos_id=EOS_ID,
            unk_id=UNK_ID,
            bos_id=-1,
            num_threads=TRAINING_THREADS,
            max_sentence_length=MAX_SENTENCE_BYTES,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(f"--vocab-size = {vocab_size}: {_explain(str(error))}") from error
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / MODEL_FILE, model.getvalue())


def _explain(error: str) -> str:
    """Return what a number of pieces lacks, from SentencePiece's error, and what to do."""
    most = re.search(r"Please set it to a value <= (\d+)", error)
    if most:
        return f"these texts support at most {most[1]} pieces: set --vocab-size {most[1]}, or give more text"
    least = re.search(r"smaller than required_chars\. \d+ vs (\d+)", error)
    if least:
        return f"the characters of these texts need at least {least[1]} pieces: set --vocab-size {least[1]} or more"
    return f"does not suit these texts ({' '.join(error.split())}): set another --vocab-size, or give more text"


class Tokenizer:
    """Encodes text to ids and decodes ids to text.

    Args:
        folder: holds spiece.model.
        setting: config key or option that named the folder, for error messages.

    Attributes:
        num_pieces: pieces of the SentencePiece model.
        vocab_size: pieces and sentinels.
        first_sentinel_id: id of <extra_id_0>.
        fingerprint: hash of the model file, independent of its path.

    Raises:
        ValueError: ``folder`` has no spiece.model, the file is not a SentencePiece model, its pad, eos and unk ids are
            not 0, 1, 2, the ids above its pieces are not available for the 100 sentinels, or the exported tokenizer
            would read text otherwise (``data.hugging_face``).
    """

    num_sentinels = NUM_SENTINELS
    pad_id = PAD_ID
    eos_id = EOS_ID
    unk_id = UNK_ID

    def __init__(self, folder: str | Path, *, setting: str = "data.vocabulary") -> None:
        self.folder = Path(folder)
        self._where = f"{setting} = {str(folder)!r}"
        path = self.folder / MODEL_FILE
        try:
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ValueError(f"{self._where} has no {MODEL_FILE}: {MAKE_VOCABULARY}") from error
        except OSError as error:
            raise ValueError(f"{self._where}: {MODEL_FILE} cannot be read ({error.strerror}): mend it") from error
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            # An empty file loads without an error, as a model without pieces.
            self._processor.LoadFromSerializedProto(content)
            pieces = self._processor.get_piece_size() if content else 0
        except RuntimeError:
            pieces = 0
        if pieces == 0:
            raise ValueError(f"{self._where}: {MODEL_FILE} is not a SentencePiece model: {MAKE_VOCABULARY}")
        self.num_pieces: int = pieces
        self.vocab_size: int = pieces + self.num_sentinels
        self.first_sentinel_id: int = self.vocab_size - 1
        self.fingerprint: str = hashlib.sha256(content).hexdigest()[:16]
        self._check_special_ids()
        self._check_sentinels()
        unfit = describe_unfit(content)
        if unfit is not None:
            raise ValueError(
                f"{self._where} would be read otherwise by the exported tokenizer (T5Tokenizer), which is "
                f"Unigram without byte fallback and splits at white space: {unfit}: use a vocabulary of that kind (as "
                "`python -m data.prepare` trains)"
            )

    def _check_special_ids(self) -> None:
        found = (self._processor.pad_id(), self._processor.eos_id(), self._processor.unk_id())
        if found != (PAD_ID, EOS_ID, UNK_ID):
            raise ValueError(
                f"{self._where} has pad, eos, unk ids {found}, not {(PAD_ID, EOS_ID, UNK_ID)}"
                ": train it with pad_id=0, eos_id=1, unk_id=2, bos_id=-1 (`python -m data.prepare` does)"
            )

    def _check_sentinels(self) -> None:
        """Refuse sentinels among the pieces (as in mT5) and a tokenizer config that declares another number."""
        where = self._where
        inside = sum(self._processor.id_to_piece(i).startswith("<extra_id_") for i in range(self.num_pieces))
        if inside:
            raise ValueError(
                f"{where} has {inside} <extra_id_*> among its pieces, so the {self.num_sentinels} ids above them are "
                "not its sentinels: use a model trained without them (as `python -m data.prepare` does)"
            )
        path = self.folder / "tokenizer_config.json"
        try:
            config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        except ValueError as error:
            raise ValueError(f"{where}: tokenizer_config.json is not JSON: remove it or repair it") from error
        declared = config.get("extra_ids", self.num_sentinels) if isinstance(config, dict) else self.num_sentinels
        if declared != self.num_sentinels:
            raise ValueError(
                f"{where}: tokenizer_config.json declares extra_ids = {declared}, span corruption needs "
                f"{self.num_sentinels} sentinels: use a vocabulary with extra_ids = {self.num_sentinels}"
            )

    def check_fits(self, model_vocab_size: int) -> None:
        """Check that a model's embedding has a row for each id.

        Raises:
            ValueError: it does not; names ``model.vocab_size`` and the smallest multiple of 128 that fits.
        """
        if model_vocab_size < self.vocab_size:
            smallest = -(-self.vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
            raise ValueError(
                f"model.vocab_size = {model_vocab_size} is smaller than the vocabulary, {self.num_pieces} pieces + "
                f"{self.num_sentinels} sentinels = {self.vocab_size}: set model.vocab_size={smallest}"
            )

    def encode_batch(self, texts: list[str]) -> list[NDArray[np.int32]]:
        """Encode texts to ids.

        Args:
            texts: documents; sentinels written out in a text are plain text.

        Returns:
            One int32 [tokens] per text, without EOS.
        """
        # One thread: a node runs one such process per accelerator.
        ids: list[NDArray[np.int32]] = self._processor.encode(texts, return_type="numpy", num_threads=1)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Decode ids to text.

        Args:
            ids: list or 1-D array. Sentinels become <extra_id_k>; pad, eos and negative ids are dropped; ids above the
                vocabulary, which exist in a padded model vocabulary, decode as unknown.
        """
        texts: list[str] = []
        run: list[int] = []
        for i in map(int, ids):
            if self.num_pieces <= i < self.vocab_size:
                texts += [self._processor.decode(run), f"<extra_id_{self.first_sentinel_id - i}>"]
                run = []
            elif i >= self.vocab_size:
                run.append(UNK_ID)
            elif i > EOS_ID:
                run.append(i)
        texts.append(self._processor.decode(run))
        return " ".join(text for text in texts if text)

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """Return the piece of each id, of all kinds of ids; a piece that begins a word begins with ``▁``."""
        return [
            f"<extra_id_{self.first_sentinel_id - i}>"
            if self.num_pieces <= i < self.vocab_size
            else self._processor.id_to_piece(i if 0 <= i < self.num_pieces else UNK_ID)
            for i in map(int, ids)
        ]

    def save_hugging_face_tokenizer(self, folder: str | Path, longest: int | None = None) -> None:
        """Write the vocabulary as a ``transformers.T5Tokenizer``: spiece.model and its configuration files.

        Args:
            folder: created if missing.
            longest: ``model_max_length``, to which ``truncation=True`` cuts; None: no limit.

        Raises:
            ValueError: what was written reads the probe text otherwise; see ``data.hugging_face.save``.
        """
        save(self._processor.serialized_model_proto(), Path(folder), self.num_sentinels, longest)
