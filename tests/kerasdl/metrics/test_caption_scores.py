import random
import shutil
import sys
import unicodedata

import oracles_captioning
import oracles_text
import pytest

from kerasdl.errors import UserError
from kerasdl.metrics.caption_scores import CiderD, caption_scores, diversity, tokenize

REFERENCES = [
    [
        "A brown dog runs through the tall grass.",
        "A dog is running in a field of grass",
        "The brown dog is jumping over the grass near a fence in the late evening sun .",
    ],
    [
        "Two men in red jackets climb a snowy mountain.",
        "Two climbers are on the side of a mountain",
        "Men climbing up a steep mountain of snow and ice",
    ],
    [
        "A waiter in a white apron is carrying a tray of glasses.",
        "A young waiter walks between the crowded tables",
        "A man carries the drinks.",
    ],
    [
        "People sit on a bench by the lake, looking at the water.",
        "Three people sitting on a bench",
        "The old couple rests by the lake in the park",
    ],
]
SHORT = [
    "A brown dog runs in grass",
    "Two men climb a mountain",
    "A man carries a tray of glasses",
    "People on a bench",
]
LONG = [
    "A brown dog runs through the tall grass in a field of grass and it is running",
    "Two men in red jackets are on the side of a steep mountain of snow and ice today",
    "A young man in a white apron is carrying a tray of glasses between the tables",
    "Three people sit on a bench by the lake in the park looking at the water and the trees",
]
JAVA = shutil.which("java")


@pytest.fixture(autouse=True)
def without_java(monkeypatch):
    """METEOR takes seconds to start."""
    monkeypatch.setattr(shutil, "which", lambda name: None)


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A Dog, running!", ["a", "dog", "running"]),
        ("don’t wear a 'T-shirt' -- No. 7", ["don't", "wear", "a", "t", "shirt", "no", "7"]),
        ("Ein ÄLTERER Mann;  ein Kind.", ["ein", "älterer", "mann", "ein", "kind"]),
        ("Две собаки бегут…", ["две", "собаки", "бегут"]),
        ("犬が走る。", ["犬", "が", "走", "る"]),
        ("एक लड़की, नदी में।", ["एक", "लड़की", "नदी", "में"]),
        (" \n'?! ♥ -_- ", []),
        ("", []),
    ],
)
def test_tokenize_gives_lower_case_words_without_punctuation(caption, words):
    assert tokenize(caption) == words
    of_vocabulary = oracles_text.words(caption)
    assert words == [word for word in of_vocabulary if any(unicodedata.category(c)[0] in "LN" for c in word)]


def bleu_by_oracle(candidates, order):
    references = [[tokenize(caption) for caption in captions] for captions in REFERENCES]
    return oracles_captioning.corpus_bleu([tokenize(caption) for caption in candidates], references, order)


@pytest.mark.parametrize(("candidates", "is_brief"), [(SHORT, True), (LONG, False)], ids=["short", "long"])
def test_bleu_equals_the_equations(candidates, is_brief):
    scores = caption_scores(candidates, REFERENCES)
    for order in range(1, 5):
        expected, penalty = bleu_by_oracle(candidates, order)
        assert scores["brevity_penalty"] == pytest.approx(penalty, rel=1e-6)
        assert (penalty < 0.9) == is_brief
        assert scores[f"bleu{order}"] == pytest.approx(100 * expected, rel=1e-6)


def test_brevity_penalty_takes_the_closest_reference_not_the_shortest_or_the_mean():
    # Lengths 2, 5 and 12 around a candidate of 4 words, all of them in the references: exp(1 - 5 / 4).
    references = [["a dog", "a dog runs on grass", "a dog runs on grass and then it sits down near me"]]
    assert caption_scores(["a dog runs on"], references)["bleu1"] == pytest.approx(77.880078, abs=1e-4)
    # Of 3 and 5, which are as close, the shorter: no penalty.
    references = [["a dog runs", "a dog runs on grass"]]
    assert caption_scores(["a dog runs on"], references)["bleu1"] == pytest.approx(100, abs=1e-4)


def test_rouge_l_by_hand():
    # Longest common subsequence: dog runs park. Precision 3/4, recall 3/6; F of beta 1.2: 2.44 PR / (R + 1.44 P).
    candidate, reference = "dog runs the park", "the dog runs across a park"
    expected = 100 * 2.44 * 0.75 * 0.5 / (0.5 + 1.44 * 0.75)
    assert caption_scores([candidate], [[reference]])["rouge_l"] == pytest.approx(expected)
    # A second reference adds its better recall, 1 of "dog runs".
    expected = 100 * 2.44 * 0.75 / (1 + 1.44 * 0.75)
    assert caption_scores([candidate], [[reference, "dog runs"]])["rouge_l"] == pytest.approx(expected)


def test_a_caption_equal_to_its_references_scores_highest():
    candidates = [captions[0] for captions in REFERENCES]
    scores = caption_scores(candidates, [[caption.upper()] * 3 for caption in candidates])
    expected = {"bleu1": 100, "bleu2": 100, "bleu3": 100, "bleu4": 100, "rouge_l": 100, "cider": 10}
    expected["brevity_penalty"] = 1
    assert scores == pytest.approx(expected, abs=1e-4)


def test_cider_prefers_rare_words_to_those_of_every_picture():
    references = [["a dog on the grass"], ["a cat on the sofa"], ["a bird on the roof"]]
    rare = caption_scores(["dog grass", "cat sofa", "bird roof"], references)["cider"]
    common = caption_scores(["a on the"] * 3, references)["cider"]
    assert rare > 1
    # Of single words nothing is left: a word of every picture has no weight.
    assert common < rare / 2


def test_order_of_references_and_of_pictures_does_not_matter():
    scores = caption_scores(SHORT, REFERENCES)
    assert caption_scores(SHORT, [captions[::-1] for captions in REFERENCES]) == pytest.approx(scores)
    assert caption_scores(SHORT[::-1], REFERENCES[::-1]) == pytest.approx(scores)


def test_shuffled_captions_score_lower_on_everything():
    scores = caption_scores(LONG, REFERENCES)
    shuffled = caption_scores(LONG[1:] + LONG[:1], REFERENCES)
    assert shuffled["cider"] < scores["cider"] / 5
    assert shuffled["bleu4"] < scores["bleu4"] / 5
    assert all(shuffled[name] < 0.7 * scores[name] for name in scores if name != "brevity_penalty")


def test_words_in_another_order_lose_all_but_bleu1():
    jumbled = [" ".join(random.Random(1).sample(caption.split(), k=len(caption.split()))) for caption in LONG]
    scores, lost = caption_scores(LONG, REFERENCES), caption_scores(jumbled, REFERENCES)
    assert lost["bleu1"] == pytest.approx(scores["bleu1"])
    assert lost["brevity_penalty"] == scores["brevity_penalty"]
    assert all(lost[name] < 0.8 * scores[name] for name in scores if name not in ("bleu1", "brevity_penalty"))


def test_an_empty_candidate_earns_nothing_for_its_picture():
    scores = caption_scores(LONG, REFERENCES)
    first, last = (caption_scores(part, REFERENCES) for part in ([*LONG[:3], "?!"], ["", "", "", LONG[3]]))
    for name in ("rouge_l", "cider"):  # the means over pictures
        assert 0 < last[name] < first[name]
        assert first[name] + last[name] == pytest.approx(scores[name])
    assert last["bleu4"] == pytest.approx(100 * bleu_by_oracle(["", "", "", LONG[3]], 4)[0], rel=1e-6)
    assert set(caption_scores([""] * 4, REFERENCES).values()) == {0.0}


def test_references_without_a_word_are_left_out():
    padded = [[".", *captions, ""] for captions in REFERENCES]
    assert caption_scores(SHORT, padded) == caption_scores(SHORT, REFERENCES)


def test_nothing_is_printed(capfd):
    caption_scores(SHORT, REFERENCES)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("candidates", "references", "message"),
    [
        (["a dog"], [], "1 candidates and references of 0 pictures"),
        ([], [], "at least one"),
        (["a dog"], ["a dog"], "expected a list of strings"),
        (["a dog", "a cat"], [["a dog"], []], "Picture 1 has no reference"),
        (["a dog", "a cat"], [["..."], ["a cat"]], "Picture 0 has no reference"),
    ],
)
def test_wrong_input_is_refused(candidates, references, message):
    with pytest.raises(ValueError, match=message):
        caption_scores(candidates, references)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap.bleu.bleu_scorer", None)
    with pytest.raises(UserError, match=r"pycocoevalcap is not installed.*pip install 'kerasdl\[captioning\]'"):
        caption_scores(SHORT, REFERENCES)


# --- METEOR --------------------------------------------------------------------------------------


@pytest.mark.skipif(JAVA is None, reason="no Java runtime")
def test_meteor_is_that_of_the_reference_implementation(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: JAVA)
    references = [["A dog runs.", "The dog is running"], ["a cat"], ["two small girls are playing", "kids", "children"]]
    scores = caption_scores(["A dog is running", "", "Two little girls play"], references)
    # pycocoevalcap 1.2's Meteor on the same words; it takes references of any number.
    assert scores["meteor"] == pytest.approx(42.3333, abs=1e-4)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("#!/bin/sh\necho 'Could not\nstart' >&2; exit 1\n", "Could not start"),
        ("#!/bin/sh\nexit 3\n", "exit status 3, and no score"),
        ("#!/bin/sh\necho 'Final score: none'\n", "none"),
        ("#!/nowhere/sh\n", "No such file"),
    ],
    ids=["message", "silent", "no number", "no program"],
)
def test_a_java_that_fails_costs_meteor_and_a_line(monkeypatch, tmp_path, capsys, script, reason):
    java = tmp_path / "java"
    java.write_text(script)
    java.chmod(0o755)
    without = caption_scores(SHORT, REFERENCES)
    monkeypatch.setattr(shutil, "which", lambda name: str(java))
    assert caption_scores(SHORT, REFERENCES) == without
    error = capsys.readouterr().err
    assert error.startswith("Left out METEOR, since Java failed: ")
    assert reason in error
    assert error.count("\n") == 1


# --- Diversity -----------------------------------------------------------------------------------


def test_diversity_by_hand():
    candidates = ["A dog runs.", "a dog runs", "two dogs", ""]
    measured = diversity(candidates, ["A DOG runs!", "a dog", "Two dogs run"])
    assert measured == pytest.approx(
        {"distinct_words": 5, "distinct_captions_ratio": 3 / 4, "in_training_ratio": 2 / 4, "mean_words": 2}
    )


def test_diversity_without_training_captions_and_without_candidates():
    assert diversity(["a dog"], [])["in_training_ratio"] == 0
    with pytest.raises(ValueError, match="no candidate"):
        diversity([], ["a dog"])


def test_cider_of_single_captions_is_the_one_of_the_corpus():
    cut = [[tokenize(caption) for caption in captions] for captions in REFERENCES]
    scorer = CiderD(cut)
    for candidates in (
        SHORT,
        [captions[1] for captions in REFERENCES],
        ["a a a dog dog", "", "men on a mountain", "a"],
    ):
        alone = [scorer.score(i, tokenize(candidate)) for i, candidate in enumerate(candidates)]
        assert sum(alone) / len(alone) == pytest.approx(caption_scores(candidates, REFERENCES)["cider"], abs=1e-6)
    assert scorer.score(0, cut[0][0]) > scorer.score(1, cut[0][0])


def test_cider_takes_ids_as_well_as_words():
    ids = {
        word: i for i, word in enumerate({word for captions in REFERENCES for c in captions for word in tokenize(c)})
    }
    words = [[tokenize(caption) for caption in captions] for captions in REFERENCES]
    numbers = [[[ids[word] for word in caption] for caption in captions] for captions in words]
    caption = words[0][1][:5]
    expected = CiderD(words).score(0, caption)
    assert expected > 0
    assert CiderD(numbers).score(0, [ids[word] for word in caption]) == pytest.approx(expected)
