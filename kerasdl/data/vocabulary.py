"""Text to ids and back inside the graph.

    words = WordVocabulary(build_vocabulary(texts, 20_000), max_words=400)
    words(tf.constant(["A fine film.", ""]))   # int32[2, 4], zero is padding
    names = WordVocabulary(build_vocabulary(names, 100, characters=True), characters=True)   # letters in place of words
    characters = CharacterVocabulary(characters_of(text))
    characters.encode_text(text)               # int32[length], for text generators: no padding, no unknown

Both vocabularies are TensorFlow operations throughout, so that an export takes strings.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import keras
import numpy as np
import tensorflow as tf

PADDING, UNKNOWN = 0, 1

# All that separates words, apart from the space: line breaks, also those of HTML, controls, invisible formatting.
_SEPARATOR = r"<br ?/?>|[^ \PZ]|[\p{Cc}\p{Cf}]"
# Scripts that are written without spaces: by Unicode's Line_Break lines may end between their letters (ID), between
# words that only a dictionary knows (SA), or between syllables (AK, AS). The newest are ranges (Dives Akuru, Kawi,
# Tulu-Tigalari), since an export may meet an older RE2, to which an unknown name is an error.
# Source: Unicode 16, LineBreak.txt; Unicode Standard Annex 14.
_UNSPACED = (
    r"\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Yi}\p{Tangut}\p{Nushu}"
    r"\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tai_Le}\p{New_Tai_Lue}\p{Tai_Tham}\p{Tai_Viet}\p{Ahom}"
    r"\p{Balinese}\p{Javanese}\p{Batak}\p{Cham}\p{Makasar}\p{Brahmi}\p{Grantha}"
    r"\x{11900}-\x{1193F}\x{11F02}-\x{11F33}\x{11380}-\x{113B7}"
)
# After these signs a letter is written below the one before: of Burmese, Khmer, Tai Tham, Balinese and Javanese.
_STACKED = r"[\x{1039}\x{17D2}\x{1A60}\x{1B44}\x{A9C0}]\p{L}"
_LETTER = rf"(?:[^\P{{L}}{_UNSPACED}]|\p{{M}}|\p{{N}})"
_TOKEN = rf"{_LETTER}+(?:'{_LETTER}+)*|\S(?:{_STACKED}|\p{{M}})*"


@keras.saving.register_keras_serializable(package="kerasdl")
class WordVocabulary(keras.layers.Layer):
    """Words as ids: 0 is padding, 1 an unknown word, 2 the first word of the vocabulary.

    A text is lower-cased and cut into words: runs of letters, marks, digits, and apostrophes between these (also the
    curly one, which becomes straight). Every other visible character is a word of its own, and so is every letter of
    a script without spaces, such as Chinese, Japanese, Thai, Lao, Khmer and Burmese; marks, and letters written below,
    stay with their character. `<br />` is a space. Any bytes give an answer: invalid UTF-8 counts as a space. Unicode
    is not normalized: a letter with an accent and the same letter composed of two characters differ. With `characters`
    each letter, and each space between words, is a word: for names, codes and other short strings.

    The lookup table is `table`, a resource: whoever saves a function that uses it has to keep this layer or the table
    as an attribute of what is saved.

    Args:
        words: in the order of their ids, without repetition; `build_vocabulary` makes them.
        max_words: of a longer text the first max_words // 2 words are kept and for the rest the last ones, since a
            review says most at its beginning and its end; None keeps all.
        characters: cut texts into characters.
        **kwargs: those of `keras.layers.Layer`.

    Raises:
        ValueError: there are no words, one stands twice, or max_words is below 1.
    Source: cut: Sun et al. 2019, arXiv:1905.05583, section 5.3.1 (head+tail); the rest own.
    """

    def __init__(
        self, words: Sequence[str], max_words: int | None = None, *, characters: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        _require_distinct(words, "words")
        if not words:
            raise ValueError(
                "words is empty, expected one or more: give build_vocabulary more texts, or a lower min_count"
            )
        if max_words is not None and max_words < 1:
            raise ValueError(f"max_words is {max_words}, expected 1 or more, or None for whole texts")
        self.words = tuple(words)
        self.max_words = max_words
        self.characters = characters
        self.supports_jit = False  # XLA knows no strings
        ids = tf.range(len(self.words), dtype=tf.int32) + (UNKNOWN + 1)
        self.table = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(tf.constant(self.words, tf.string, [len(self.words)]), ids), UNKNOWN
        )

    @property
    def size(self) -> int:
        """Number of ids, those of padding and the unknown word included."""
        return len(self.words) + UNKNOWN + 1

    @staticmethod
    def tokenize(strings: Any, *, characters: bool = False) -> tf.RaggedTensor:
        """Cuts texts into words, known or not.

        Args:
            strings: string[batch], or an array or list of str or bytes.
            characters: cut them into characters.

        Returns:
            Ragged string[batch, words], UTF-8.
        """
        text = tf.convert_to_tensor(strings, tf.string)
        # First of all: the lower-casing would end a text at a zero byte. Invalid bytes become a space, too.
        text = tf.strings.unicode_transcode(
            text, "UTF-8", "UTF-8", "replace", replacement_char=ord(" "), replace_control_characters=True
        )
        text = tf.strings.lower(text, encoding="utf-8")
        text = tf.strings.regex_replace(text, _SEPARATOR, " ")
        text = tf.strings.regex_replace(text, "’", "'")
        if characters:
            return tf.strings.unicode_split(tf.strings.strip(tf.strings.regex_replace(text, " +", " ")), "UTF-8")
        return tf.strings.split(tf.strings.regex_replace(text, _TOKEN, r"\0 "))

    def kept_words(self, strings: Any) -> tf.RaggedTensor:
        """The words that get an id, known or not: those of a longer text without its middle.

        Args:
            strings: string[batch], or an array or list of str or bytes.

        Returns:
            Ragged string[batch, words], UTF-8, at most max_words each.
        """
        words = self.tokenize(strings, characters=self.characters)
        if self.max_words is None:
            return words
        head = self.max_words // 2
        lengths = words.row_lengths()
        position = tf.ragged.range(lengths).values
        from_end = tf.repeat(lengths, lengths) - position
        kept = (position < head) | (from_end <= self.max_words - head)
        return tf.ragged.boolean_mask(words, words.with_values(kept))

    def ids(self, strings: Any) -> tf.RaggedTensor:
        """The ids without padding, for preparing a data set: about 10 MB of English a second on one core.

        Args:
            strings: string[batch], or an array or list of str or bytes.

        Returns:
            Ragged int32[batch, words], at most max_words each.
        """
        return self.table.lookup(self.kept_words(strings))

    def sequences(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, int32[words], for a data set of any size."""
        found: list[np.ndarray] = []
        for start in range(0, len(texts), 5000):  # a word takes much memory while it is a string
            ids = self.ids(texts[start : start + 5000])
            found += np.split(ids.values.numpy(), ids.row_splits.numpy()[1:-1])
        return found

    def call(self, strings: Any) -> Any:
        """Maps a tensor string[batch] to int32[batch, longest], padded with 0 at the end, at least one column.

        As of every layer of Keras the argument is a tensor; `ids` takes lists, too.
        """
        tokens = self.ids(strings).to_tensor(PADDING)
        return tf.pad(tokens, [[0, 0], [0, tf.cast(tf.shape(tokens)[1] == 0, tf.int32)]])

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        own = {"words": list(self.words), "max_words": self.max_words, "characters": self.characters}
        return {**super().get_config(), **own}


def build_vocabulary(
    texts: Iterable[str | bytes], size: int, *, min_count: int = 1, characters: bool = False
) -> list[str]:
    """The most frequent words, as `WordVocabulary.tokenize` cuts them.

    Args:
        texts: a list, an array, or anything else that gives str or bytes; all are read before the first is counted.
        size: at most so many words.
        min_count: words that occur less often are left out.
        characters: count characters in place of words.

    Returns:
        The words, the most frequent first; equally frequent ones in alphabetical order.

    Source: own.
    """

    def count(batch: list[str | bytes]) -> tuple[list[bytes], list[int]]:
        words, _, counts = tf.unique_with_counts(WordVocabulary.tokenize(batch, characters=characters).values)
        return words.numpy().tolist(), counts.numpy().tolist()

    total: Counter[bytes] = Counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # each of these operations keeps to one core
        for words, counts in pool.map(count, _batches(texts)):
            total.update(dict(zip(words, counts, strict=True)))
    frequent = [(-count, word.decode()) for word, count in total.items() if count >= min_count]
    return [word for _, word in sorted(frequent)[:size]]


def _batches(texts: Iterable[str | bytes], size: int = 1000) -> Iterator[list[str | bytes]]:
    remaining = iter(texts)
    while batch := list(islice(remaining, size)):
        yield batch


def _require_distinct(items: Sequence[str], name: str) -> None:
    repeated = [item for item, count in Counter(items).items() if count > 1]
    if repeated:
        raise ValueError(f"{name} holds {repeated[0]!r} twice, expected each once: an id has one meaning")


@keras.saving.register_keras_serializable(package="kerasdl")
class CharacterVocabulary(keras.layers.Layer):
    """Characters, or bytes, as ids 0, 1, ...; no id stands for padding or the unknown.

    Args:
        characters: in the order of their ids, one code point each, without repetition; `characters_of` makes them.
            Others are left out of an encoded text. None: the ids are the 256 values of a byte, and the text is its
            UTF-8, so that nothing is left out.
        **kwargs: those of `keras.layers.Layer`.

    Raises:
        ValueError: there are no characters, one is longer than a code point, or one stands twice.
    Source: bytes: Graves 2013, arXiv:1308.0850, section 3.2; the rest own.
    """

    def __init__(self, characters: Sequence[str] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_jit = False  # XLA knows no strings
        self.characters = None if characters is None else tuple(characters)
        if self.characters is None:
            return
        _require_distinct(self.characters, "characters")
        wrong = [character for character in self.characters if len(character) != 1]
        if wrong or not self.characters:
            raise ValueError(
                f"characters holds {repr(wrong[0]) if wrong else 'nothing'}, expected single code points; "
                "make them by characters_of(text)"
            )

    @property
    def size(self) -> int:
        """Number of ids."""
        return 256 if self.characters is None else len(self.characters)

    def encode(self, strings: Any) -> tf.RaggedTensor:
        """The ids of each text.

        Args:
            strings: string[batch], or an array or list of str or bytes; without `characters` any bytes, else UTF-8,
                whose invalid bytes count as U+FFFD.

        Returns:
            Ragged int32[batch, characters].
        """
        strings = tf.convert_to_tensor(strings, tf.string)
        if self.characters is None:
            split = tf.strings.bytes_split(strings)
            return split.with_values(tf.reshape(tf.cast(tf.io.decode_raw(split.values, tf.uint8), tf.int32), [-1]))
        code_points = np.array([ord(character) for character in self.characters], np.int32)
        order = np.argsort(code_points).astype(np.int32)
        split = tf.strings.unicode_decode(strings, "UTF-8")
        rank = tf.minimum(tf.searchsorted(code_points[order], split.values), self.size - 1)
        known = tf.gather(code_points[order], rank) == split.values
        return tf.ragged.boolean_mask(split.with_values(tf.gather(order, rank)), split.with_values(known))

    def decode(self, ids: Any) -> tf.Tensor:
        """The text of each row of ids.

        Args:
            ids: int32[batch, length], each in 0 ... size - 1.

        Returns:
            string[batch], valid UTF-8: what is none in a row of bytes becomes U+FFFD.
        """
        if self.characters is not None:
            return tf.strings.reduce_join(tf.gather(tf.constant(self.characters), ids), axis=-1)
        text = tf.strings.reduce_join(tf.gather(tf.constant([bytes([value]) for value in range(256)]), ids), axis=-1)
        return tf.strings.unicode_transcode(text, "UTF-8", "UTF-8", "replace")

    def call(self, strings: Any) -> tuple[Any, Any]:
        """Maps string[batch] to ids int32[batch, longest], zero behind the end, and mask bool[batch, longest].

        The mask tells the id 0 from padding. A batch of empty texts has no columns.
        """
        ids = self.encode(strings)
        return ids.to_tensor(0), tf.sequence_mask(ids.row_lengths())

    def encode_text(self, text: str) -> np.ndarray:
        """The ids of one long text, as `encode` gives them, outside the graph: tens of millions a second.

        Args:
            text: lone surrogates are left out.

        Returns:
            int32[length].
        """
        if self.characters is None:
            return np.frombuffer(text.encode("utf-8", "ignore"), np.uint8).astype(np.int32)
        id_of = np.full(0x110000, -1, np.int32)
        id_of[[ord(character) for character in self.characters]] = np.arange(self.size)
        ids = id_of[np.frombuffer(text.encode("utf-32-le", "ignore"), "<u4")]
        return ids[ids >= 0]

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {
            **super().get_config(),
            "characters": None if self.characters is None else list(self.characters),
        }


def characters_of(text: str) -> list[str]:
    """The characters that occur in a text, in the order of their code points."""
    return sorted(set(text))
