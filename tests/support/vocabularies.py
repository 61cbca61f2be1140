"""SentencePiece vocabularies of any kind."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sentencepiece


def write_vocabulary(folder: Path, texts: Sequence[str], **settings: Any) -> Path:
    """Train ``folder/spiece.model`` with T5's special ids unless the settings of the trainer say otherwise."""
    model = io.BytesIO()
    options: dict[str, Any] = {
        "vocab_size": 120,
        "hard_vocab_limit": False,
        "pad_id": 0,
        "eos_id": 1,
        "unk_id": 2,
        "bos_id": -1,
        "minloglevel": 2,
    } | settings
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(texts), model_writer=model, **options)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(model.getvalue())
    return folder
