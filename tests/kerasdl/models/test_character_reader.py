"""Text that is written while it is made."""

import tensorflow as tf

from kerasdl.decoding import sampling
from kerasdl.models.character_reader import stream


def test_pieces_end_where_characters_do_and_follow_each_other():
    whole = b"x" * (sampling.BLOCK - 2) + "\N{GRINNING FACE}".encode() * 2 + b"y" * 40
    asked = []

    def begin(prompt):
        assert prompt == ["to be"]
        return {"state": 0}

    def advance(state, start, length, seed):
        assert seed == [7]
        assert state == start[0], "a state other than that after the last piece"
        asked.append((start[0], length[0]))
        end = start[0] + length[0]
        return {"text": tf.constant([whole[start[0] : end].decode("utf-8", "replace")]), "state": end}

    pieces = list(stream({"begin": begin, "advance": advance}, "to be", len(whole), seed=7))
    assert "".join(pieces) == whole.decode()
    assert asked[:2] == [(0, sampling.BLOCK), (0, 2 * sampling.BLOCK)]  # the first one ended inside of a character
    assert len(pieces) == 2
