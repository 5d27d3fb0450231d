"""BLEU of a corpus in plain Python, from the equations: what the scores of captions must equal."""

import math
from collections import Counter


def _ngrams(words, n):
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def corpus_bleu(candidates, references, order):
    """Papineni et al. 2002, section 2, with the closest reference length of each picture.

    Returns the score and the brevity penalty that it holds, both 0 to 1.

    Candidates are lists of words, references lists of such lists.
    """
    log_precision = 0.0
    for n in range(1, order + 1):
        matched = total = 0
        for candidate, targets in zip(candidates, references, strict=True):
            most = Counter()
            for target in targets:
                most |= _ngrams(target, n)
            found = _ngrams(candidate, n)
            matched += (found & most).total()
            total += found.total()
        log_precision += math.log(matched / total) / order
    length = sum(map(len, candidates))
    reference_length = 0
    for candidate, targets in zip(candidates, references, strict=True):
        lengths = sorted(map(len, targets))
        reference_length += min(lengths, key=lambda target: abs(target - len(candidate)))
    penalty = math.exp(min(0.0, 1 - reference_length / length))
    return penalty * math.exp(log_precision), penalty
