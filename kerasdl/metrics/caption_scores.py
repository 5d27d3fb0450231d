"""Scores of captions against the references that people wrote, by the implementations that papers use.

    scores = caption_scores(["a dog runs"], [["A dog runs.", "A brown dog is running."]])
    scores["bleu4"], scores["cider"]

Every function cuts its captions by `tokenize` first, candidates and references alike.
"""

import math
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kerasdl.data.vocabulary import PADDING, WordVocabulary
from kerasdl.errors import UserError


def tokenize(caption: str) -> list[str]:
    """Cuts a caption into words, in lower case and without punctuation.

    The words are those of `kerasdl.data.vocabulary.WordVocabulary`, so that what a model with this vocabulary says
    passes unchanged; those without a letter or digit, which are punctuation and symbols, are dropped. Unlike the Penn
    Treebank tokenizer of the COCO evaluation, which needs Java, it divides "t-shirt" and keeps "don't" whole,
    so that scores of English can differ a little from those under that one.

    Args:
        caption: any script.

    Returns:
        The words: letters, digits, and apostrophes between these.

    Source: own.
    """
    return tokenize_all([caption])[0]


def caption_scores(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Scores a caption for each picture against all references of this picture.

    A candidate may be empty: it earns nothing. References without a word are left out.

    Args:
        candidates: the caption of each picture.
        references: in the same order, one or more for each picture, as many as there are.

    Returns:
        `bleu1` ... `bleu4`, percent: geometric mean of the precisions of 1- to n-grams, clipped by the reference that
        holds most of each, summed over the corpus, without smoothing. The brevity penalty is exp(1 - r / c) where the
        candidates' length c is below r, the sum of each picture's reference length that is closest to its candidate's
        (of two equally close the shorter); `brevity_penalty` is this factor, 0 to 1: divided by it, a score is that
        without the penalty, as Xu et al. 2015 print theirs.
        `rouge_l`, percent: longest common subsequence, F with beta = 1.2 of the best precision and best recall among
        the references; mean over pictures.
        `cider`, 0 to 10, where papers print 1.0 as 100: cosine of the tf-idf vectors of 1- to 4-grams, with the
        clipping and the length penalty (sigma = 6) of CIDEr-D; mean over references and pictures. The idf is that of
        the references given, so values of different sets of pictures do not compare, and a single picture scores 0.
        `meteor`, percent, version 1.5 for English: only where a Java runtime is installed. If it fails, a line on
        standard error says so.

    Raises:
        UserError: if pycocoevalcap is not installed.
        ValueError: if there is no candidate, the two differ in length, or a picture has no reference with a word.

    Source: pycocoevalcap, of the COCO evaluation, Chen et al. 2015, arXiv:1504.00325. BLEU: Papineni et al. 2002,
    section 2; ROUGE-L: Lin 2004, section 3; CIDEr: Vedantam et al. 2015, arXiv:1411.5726, section 4; METEOR:
    Denkowski and Lavie 2014.
    """
    try:
        from pycocoevalcap.bleu.bleu_scorer import BleuScorer
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge
    except ModuleNotFoundError:
        raise UserError(
            "pycocoevalcap is not installed; expected it for the scores of captions; pip install 'kerasdl[captioning]'"
        ) from None
    _check(candidates, references)
    hypotheses = {i: [" ".join(words)] for i, words in enumerate(tokenize_all(candidates))}
    targets = _targets(references)
    scorer = BleuScorer(n=4)
    for i, (hypothesis,) in hypotheses.items():
        scorer += (hypothesis, targets[i])
    bleu, _ = scorer.compute_score("closest")
    scores = {f"bleu{n}": 100 * float(score) for n, score in enumerate(bleu, start=1)}
    written = scorer.testlen("closest")
    scores["brevity_penalty"] = math.exp(min(0.0, 1 - scorer.reflen("closest") / written)) if written else 0.0
    scores["rouge_l"] = 100 * float(Rouge().compute_score(targets, hypotheses)[0])
    scores["cider"] = float(Cider().compute_score(targets, hypotheses)[0])
    java = shutil.which("java")
    if java is not None:
        try:
            scores["meteor"] = 100 * _meteor(java, targets, hypotheses)
        except (OSError, ValueError) as error:
            print(f"Left out METEOR, since Java failed: {error}", file=sys.stderr)
    return scores


def diversity(candidates: Sequence[str], training_captions: Sequence[str]) -> dict[str, float]:
    """Measures how much of its own a captioner says; overlap with references does not show it.

    Args:
        candidates: the captions that it gave.
        training_captions: those that it learned from.

    Returns:
        `distinct_words`, the number of different words in all candidates; `distinct_captions_ratio`, different
        captions per caption; `in_training_ratio`, the share that is word for word a training caption;
        `mean_words`, the words of a caption.

    Raises:
        ValueError: if there is no candidate.

    Source: own; the two ratios are the "unique captions" and "seen in training" of Devlin et al. 2015,
    arXiv:1505.01809.
    """
    if not candidates:
        raise ValueError("There is no candidate; expected at least one caption; caption some pictures first.")
    captions = [tuple(words) for words in tokenize_all(candidates)]
    known = {tuple(words) for words in tokenize_all(training_captions)}
    return {
        "distinct_words": float(len({word for words in captions for word in words})),
        "distinct_captions_ratio": len(set(captions)) / len(captions),
        "in_training_ratio": float(np.mean([words in known for words in captions])),
        "mean_words": float(np.mean([len(words) for words in captions])),
    }


def verdict(metrics: Mapping[str, float]) -> str | None:
    """Why a captioner is of no use, by `caption_scores`, `diversity` and `distinct_captions`; None if they do not say.

    `distinct_captions` is the number of different ones among all test pictures, and may be missing.
    """
    if metrics["mean_words"] == 0:
        return "it says nothing: every caption is empty; train for longer, or with more captions"
    different = metrics.get("distinct_captions", math.inf)
    pictures = different / metrics["distinct_captions_ratio"]
    if different <= max(1, pictures / 100) and pictures >= 10:
        return f"it says the same of every picture, or nearly: {different:.0f} captions for {pictures:.0f} pictures"
    if metrics["bleu1"] == 0:
        return "its captions share no word with those that people wrote"
    return None


class CiderD:
    """CIDEr-D of single captions, fast enough to be a reward in training; equal to that of `caption_scores`.

    Captions are sequences of words, or of their ids.

    Args:
        references: captions of each picture. How rare an n-gram is follows from the share of pictures that have it.
    Source: Vedantam et al. 2015, arXiv:1411.5726, section 4 and appendix (CIDEr-D, sigma 6).
    """

    def __init__(self, references: Sequence[Sequence[Sequence[Hashable]]]) -> None:
        counted = [[self._count(caption) for caption in captions] for captions in references]
        pictures_with: Counter[tuple[Hashable, ...]] = Counter()
        for captions in counted:
            pictures_with.update({gram for counts in captions for part in counts for gram in part})
        whole = math.log(max(len(references), 1))
        self._rarity = {gram: whole - math.log(count) for gram, count in pictures_with.items()}
        self._unseen = whole
        self._references = [[self._vectors(counts) for counts in captions] for captions in counted]

    def score(self, picture: int, caption: Sequence[Hashable]) -> float:
        """The similarity of a caption with those of a picture, 0 to 10.

        Args:
            picture: position in `references`.
            caption: words, or ids.
        """
        vectors, norms, length = self._vectors(self._count(caption))
        total = 0.0
        for others, other_norms, other_length in self._references[picture]:
            closeness = math.exp(-((length - other_length) ** 2) / (2 * 6.0**2))
            for vector, other, norm, other_norm in zip(vectors, others, norms, other_norms, strict=True):
                common = sum(min(weight, other[gram]) * other[gram] for gram, weight in vector.items() if gram in other)
                if norm and other_norm:
                    total += closeness * common / (norm * other_norm)
        return 10 * total / (4 * len(self._references[picture]))

    def rewards(self, pictures: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """The scores of captions that a model has drawn.

        Their end counts as a word, so that it is not left out to gain another.

        Args:
            pictures: int[captions], positions in `references`, which have the end, too.
            tokens: int[captions, time], padded behind the end.

        Returns:
            float32[captions].
        """
        captions = (row[row != PADDING].tolist() for row in tokens)
        return np.array([self.score(*pair) for pair in zip(pictures, captions, strict=True)], np.float32)

    @staticmethod
    def _count(caption: Sequence[Hashable]) -> list[Counter[tuple[Hashable, ...]]]:
        words = tuple(caption)
        return [Counter(words[i : i + n] for i in range(len(words) - n + 1)) for n in range(1, 5)]

    def _vectors(self, counts: list[Counter[tuple[Hashable, ...]]]) -> tuple[list[dict[Any, float]], list[float], int]:
        """Weights of the n-grams and their norms, n from 1 to 4, and the number of bigrams as the length."""
        vectors = [
            {gram: count * self._rarity.get(gram, self._unseen) for gram, count in part.items()} for part in counts
        ]
        norms = [math.sqrt(sum(weight * weight for weight in vector.values())) for vector in vectors]
        return vectors, norms, sum(counts[1].values())


def _check(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if not candidates or len(candidates) != len(references):
        raise ValueError(
            f"There are {len(candidates)} candidates and references of {len(references)} pictures; expected as many"
            " of each, at least one; pass one candidate for each picture."
        )
    if any(isinstance(captions, str) for captions in references):
        raise ValueError(
            "The references of a picture are a string; expected a list of strings; put a single reference in a list."
        )


def tokenize_all(captions: Sequence[str]) -> list[list[str]]:
    """`tokenize` for many captions at once: each call of the graph operations costs about a millisecond."""
    tokens = WordVocabulary.tokenize(list(captions)).to_list()
    return [[word for word in map(bytes.decode, words) if any(map(str.isalnum, word))] for words in tokens]


def _targets(references: Sequence[Sequence[str]]) -> dict[int, list[str]]:
    words = iter(tokenize_all([caption for captions in references for caption in captions]))
    targets = {}
    for i, captions in enumerate(references):
        targets[i] = [" ".join(caption) for _ in captions if (caption := next(words))]
        if not targets[i]:
            raise ValueError(f"Picture {i} has no reference with a word; expected at least one; add it.")
    return targets


def _meteor(java: str, targets: dict[int, list[str]], hypotheses: dict[int, list[str]]) -> float:
    """METEOR by the archive in pycocoevalcap, on files: its own wrapper hangs for ever when Java fails."""
    from pycocoevalcap.meteor import meteor

    archive = Path(meteor.__file__).with_name(meteor.METEOR_JAR)
    # The program wants as many references for each picture. It counts the best one, so that repeating one is free.
    width = max(map(len, targets.values()))
    repeated = [captions + captions[-1:] * (width - len(captions)) for captions in targets.values()]
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, "candidates"), Path(folder, "references")]
        for path, captions_of in zip(paths, (hypotheses.values(), repeated), strict=True):
            path.write_text("".join(f"{caption}\n" for captions in captions_of for caption in captions), "utf-8")
        command = [java, "-Xmx2G", "-Dfile.encoding=UTF-8", "-jar", str(archive), *map(str, paths)]
        command += ["-l", "en", "-norm", "-r", str(width)]
        run = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    # It reports some errors with the exit status 0.
    _, found, score = run.stdout.rpartition("Final score:")
    if not found:
        raise ValueError(" ".join(run.stderr.split())[:200] or f"exit status {run.returncode}, and no score")
    return float(score)
