"""Numpy re-implementations for sequences, sentence by sentence and from the equations: what the blocks must equal.

A sentence is float64[words, channels], without padding.
"""

import unicodedata

import numpy as np

UNSPACED = ("CJK UNIFIED", "CJK COMPATIBILITY IDEOGRAPH", "HIRAGANA LETTER", "KATAKANA LETTER", "THAI CHARACTER",
            "LAO", "KHMER", "MYANMAR", "JAVANESE", "BALINESE", "YI SYLLABLE")  # fmt: skip
STACKING = "\u1039\u17d2\u1b44\ua9c0"


def _is_separator(character):
    return unicodedata.category(character) in ("Zs", "Zl", "Zp", "Cc", "Cf")


def _is_unspaced(character):
    return unicodedata.category(character)[0] == "L" and unicodedata.name(character, "").startswith(UNSPACED)


def _is_letter(character):
    return unicodedata.category(character)[0] in "LMN" and not _is_unspaced(character)


def _continues(last, character):
    kind = unicodedata.category(character)[0]
    return kind == "M" or (kind == "L" and last != "" and last in STACKING)


def words(text):
    """The words of a text, character by character."""
    text = text.lower().replace("<br />", " ").replace("’", "'")
    found, inside = [], "nothing"  # what a mark or a letter may continue: "nothing", a "word" or a "symbol"
    for character, following in zip(text, text[1:] + " ", strict=False):
        if _is_separator(character):
            inside = "nothing"
        elif inside != "nothing" and _continues(found[-1][-1] if inside == "symbol" else "", character):
            found[-1] += character
        elif _is_letter(character) or (character == "'" and inside == "word" and _is_letter(following)):
            if inside == "word":
                found[-1] += character
            else:
                found.append(character)
            inside = "word"
        else:
            found.append(character)
            inside = "symbol"
    return found


def softmax(scores):
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def max_over_time(sentence, kernel, bias):
    """Largest relu(kernel . window + bias) (Kim 2014, equations 2, 3); kernel[width, channels, filters]."""
    if len(sentence) == 0:
        return np.zeros(len(bias))
    width = len(kernel)
    sentence = np.concatenate([sentence, np.zeros((max(0, width - len(sentence)), sentence.shape[1]))])
    windows = [sentence[i : i + width] for i in range(len(sentence) - width + 1)]
    return np.max([np.maximum(np.einsum("wc,wcf->f", window, kernel) + bias, 0) for window in windows], axis=0)


def pooling(sequence, kind):
    """First or last step, mean or maximum; zeros for no steps."""
    if len(sequence) == 0:
        return np.zeros(sequence.shape[1])
    ways = {"first": sequence[0], "last": sequence[-1], "mean": sequence.mean(0), "max": sequence.max(0)}
    return ways[kind]


def _attend(scores, values):
    weights = softmax(scores) if len(scores) else scores
    return sum((w * v for w, v in zip(weights, values, strict=True)), np.zeros(values.shape[1])), weights


def attention_pooling(sequence, kernel, bias, context):
    """Yang et al. 2016, equations 5 to 7: pooled, weights."""
    scores = np.array([context @ np.tanh(kernel.T @ step + bias) for step in sequence])
    return _attend(scores, sequence)


def additive_attention(query, keys, query_kernel, keys_kernel, score_kernel):
    """Bahdanau et al. 2014, A.1.2: e_j = v . tanh(W s + U h_j); equations 5 and 6: context, weights."""
    scores = np.array([score_kernel @ np.tanh(query_kernel.T @ query + keys_kernel.T @ key) for key in keys])
    return _attend(scores, keys)


def multiplicative_attention(query, keys, kernel=None):
    """Luong et al. 2015, equation 8, dot or general: context, weights."""
    scores = np.array([query @ key if kernel is None else query @ kernel @ key for key in keys])
    return _attend(scores, keys)
