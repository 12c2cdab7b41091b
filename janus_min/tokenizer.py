"""Text to token ids and back, by SentencePiece (arXiv 1808.06226) and nothing else.

`tokenizer.model` is the definition of Mistral's ids. Only plain text goes through it: "</s>" in a
user's text stays text, and the ids of BOS and EOS are added by `chat.py`, in one place.
"""

from pathlib import Path

import sentencepiece

from janus_min.errors import UserError

FILE = "tokenizer.model"
BOS, EOS = 1, 2  # of every Mistral tokenizer


class Tokenizer:
    """The SentencePiece model of a model directory (or of the file itself)."""

    def __init__(self, path: Path | str):
        path = Path(path)
        self.path = path if path.is_file() else path / FILE
        if not self.path.is_file():
            raise UserError(
                f"{self.path} not found: a SentencePiece tokenizer.model is needed beside the "
                "weights (a tokenizer.json alone does not define Mistral's ids)"
            )
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(self.path))
        except (RuntimeError, OSError):
            raise UserError(f"{self.path} is not a SentencePiece model") from None
        self.vocab_size: int = self._model.vocab_size()
        special = self._model.bos_id(), self._model.eos_id()
        if special != (BOS, EOS):
            raise UserError(
                f"{self.path}: ids of BOS and EOS are {special}, needed is {(BOS, EOS)}"
            )

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text, without BOS and EOS; all texts at once, on all cores."""
        return self._model.encode(texts, num_threads=-1 if len(texts) > 64 else 1)

    def decode(self, ids: list[int]) -> str:
        """The text of a whole id list: one by one, tokens lose their spaces and split letters.

        Ids beyond the tokenizer's, which a padded vocabulary has, have no text.
        """
        return self._model.decode([int(i) for i in ids if i < self.vocab_size])

    def piece(self, token_id: int) -> str:
        """One token as it stands in the vocabulary, '▁' marking the start of a word."""
        return self._model.id_to_piece(int(token_id))
