"""The text generator: it learns, remembers, resumes exactly, and writes the same text by every way."""

import dataclasses
import functools
import json
import math
import re
from collections import Counter
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from apps import _data, _run, _weights, chargen
from apps.__main__ import main
from kerasdl import export
from kerasdl.data import pipeline, synthetic
from kerasdl.decoding import sampling
from kerasdl.errors import UserError
from kerasdl.metrics import cell_features
from kerasdl.models import character_reader
from kerasdl.training.carried_state import FreshStarts

ROOT = Path(__file__).parent.parent.parent
SMALL = chargen.Config(
    units=8, depth=2, dropout=0.2, window=16, batch_size=4, epochs=1, reset_ratio=0.2, precision="float32"
)
EMOJI = "Ä 😀 naïve — 日本語!\n"


def splits(whole, alphabet="characters"):
    """A text as the application's data: 80 %, 10 %, 10 %."""
    cuts = [round(share * len(whole)) for share in (0.8, 0.9)]
    return chargen.splits_of([whole[: cuts[0]], whole[cuts[0] : cuts[1]], whole[cuts[1] :]], alphabet, "a text")


def untrained(config=SMALL, data=None):
    """A model with random weights, large enough that its shares are far from equal."""
    data = data or splits(synthetic.bookkeeping(2_000, seed=1))
    keras.utils.set_random_seed(3)
    model = chargen.build_model(config, data)
    for variable in model.trainable_variables:
        variable.assign(np.random.default_rng(len(variable.shape)).normal(size=variable.shape, scale=0.7))
    return model, data


def recurrent_layers(model):
    return [layer for layer in model.layers if isinstance(layer, keras.layers.RNN)]


def call(function, **inputs):
    """A signature's or an endpoint's function on numpy values, text decoded."""
    dtypes = {"temperature": tf.float32, "top_p": tf.float32, "state": tf.float32}
    answer = function(**{name: tf.constant(value, dtypes.get(name)) for name, value in inputs.items()})
    return {name: value.numpy() for name, value in answer.items()}


def settings(rows=1, **changes):
    usual = {"length": 50, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 0} | changes
    return {name: value if isinstance(value, list) else [value] * rows for name, value in usual.items()}


def texts(answer):
    return [text.decode() for text in answer["text"]]


@pytest.fixture(scope="module", autouse=True)
def _loaded_once():
    """An export is loaded and compiled once, not at each call of a verb."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "signatures", functools.cache(export.signatures))
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The tiny run: configuration, data, folder, restored model."""
    config, data = chargen.tiny()
    folder = _run.train(chargen, "chargen", config, data, runs=tmp_path_factory.mktemp("runs"))
    return config, data, folder, _weights.restore(chargen, config, data, folder)


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    config, data, folder, _ = trained
    root = tmp_path_factory.mktemp("saved_models")
    _run.export_run(chargen, "chargen", config, data, folder, root=root, version=None)
    return root / "chargen"


# --- Learning ------------------------------------------------------------------------------------


def markov(train, test, order):
    """Nats per character of a model that knows the `order` characters before, counts smoothed by 0.1."""
    longer, shorter = (Counter(train[i : i + n] for i in range(len(train) - n + 1)) for n in (order + 1, order))
    size = len(set(train))
    pieces = [test[i : i + order + 1] for i in range(len(test) - order)]
    return -np.mean([math.log((longer[piece] + 0.1) / (shorter[piece[:-1]] + 0.1 * size)) for piece in pieces])


def test_tiny_is_learned(trained):
    config, data, _, model = trained
    assert markov(data.train, data.test()[1], 0) > 2.9
    assert markov(data.train, data.test()[1], 1) > 1.2
    metrics = _run.measure(chargen, config, model, data)
    assert metrics["unigram_nats_per_character"] == pytest.approx(markov(data.train, data.test()[1], 0), rel=0.01)
    assert metrics["nats_per_character"] < 0.4
    assert metrics["nats_per_character_validation_and_test"] < 0.4
    assert metrics["bits_per_character"] == pytest.approx(metrics["nats_per_character"] / math.log(2))


def test_shuffled_characters_teach_their_frequencies_alone(tmp_path):
    config, data = chargen.tiny()
    parts = ["".join(np.random.default_rng(0).permutation(list(part))) for part in (data.train, *data.test())]
    assert sorted(parts[2]) == sorted(data.test()[1])
    broken = chargen.splits_of(parts, "characters", "shuffled")
    config = dataclasses.replace(config, epochs=2, units=32)
    folder = _run.train(chargen, "chargen", config, broken, runs=tmp_path)
    metrics = _run.measure(chargen, config, _weights.restore(chargen, config, broken, folder), broken)
    assert metrics["nats_per_character"] == pytest.approx(markov(*(parts[i] for i in (0, 2)), 0), abs=0.1)


def test_what_it_writes_is_bookkeeping(exported):
    """Quotes and brackets close, names are names: a line is right in all but its sum, nine times of ten."""
    answer = call(export.signatures(exported)["generate"], prompt=["\n"], **settings(length=2_000, temperature=0.5))
    lines = texts(answer)[0].split("\n")[:-1]
    assert len(lines) > 50
    names, verbs = ("anna|bruno|clara|dmitri|elena"), ("pays|owes|lends")
    items = "bread|copper wire|honey|ink and paper|salt"
    right = sum(bool(re.fullmatch(rf'({names}) ({verbs}) "({items})" \(\d\+\d\)=\d;', line)) for line in lines)
    assert right > 0.9 * len(lines)


def test_the_carried_state_matters(trained, exported):
    """The same characters are harder to guess in pieces that begin without memory."""
    config, data, _, _ = trained
    score, test = export.signatures(exported)["score"], data.test()[1]

    def nats(pieces):
        answer = call(score, text=pieces)
        return answer["nats"].sum() / answer["characters"].sum()

    whole, in_pieces = nats([test]), nats([test[begin : begin + 10] for begin in range(0, len(test), 9)])
    assert whole < 0.4 < in_pieces - 0.1
    protocol = chargen.evaluate(config, export.signatures(exported), data)["nats_per_character_nanogpt_protocol"]
    assert whole < protocol < in_pieces


def test_validation_reads_streams_with_carried_state_from_an_empty_beginning():
    """It equals the score of each stream as a text of its own, also when something was read before."""
    model, data = untrained()
    ids = chargen.vocabulary_of(data).encode_text(data.validation)
    rows, window = SMALL.batch_size, SMALL.window
    batches = [tuple(part.numpy() for part in batch) for batch in pipeline.streams(ids, SMALL.batch_size, SMALL.window)]
    inputs, targets = (np.concatenate(part, 1) for part in zip(*batches, strict=True))
    assert {batch[0].shape for batch in batches} == {(rows, window)}
    assert len(ids) - 1 - rows * window < inputs.size < len(ids)
    np.testing.assert_array_equal(inputs.reshape(-1), ids[: inputs.size])
    np.testing.assert_array_equal(targets.reshape(-1), ids[1 : inputs.size + 1])
    decode = chargen.vocabulary_of(data).decode
    answer = call(
        chargen.endpoints(model, data)["score"].function,
        text=decode(np.concatenate([inputs, targets[:, -1:]], 1)).numpy(),
    )
    for _ in range(2):
        loss = model.evaluate(
            pipeline.streams(ids, SMALL.batch_size, SMALL.window),
            callbacks=[FreshStarts(reset_ratio=0.0, seed=0)],
            verbose=0,
        )
        assert loss == pytest.approx(answer["nats"].sum() / inputs.size, rel=1e-4)
    dirty = model.evaluate(pipeline.streams(ids, SMALL.batch_size, SMALL.window), verbose=0)
    assert dirty != pytest.approx(loss, rel=1e-4), "the state is not carried, or the check above sees nothing"


def test_a_short_validation_text_is_read_in_shorter_windows():
    batches = list(pipeline.streams(np.arange(40), SMALL.batch_size, SMALL.window))  # 39 inputs, 9 a stream of 4
    assert [batch[0].shape for batch in batches] == [(4, 9)]
    assert batches[0][1][3].numpy().tolist() == list(range(28, 37))
    with pytest.raises(UserError, match="the validation text has 4 characters; expected more than --batch-size 4"):
        pipeline.streams(np.arange(4), SMALL.batch_size, SMALL.window)


def test_some_rows_begin_anew_before_a_batch_and_all_before_an_epoch():
    config = dataclasses.replace(SMALL, batch_size=200, reset_ratio=0.3)
    model, _ = untrained(config, splits(synthetic.bookkeeping(8_000, seed=1)))
    states = [state for layer in recurrent_layers(model) for state in layer.states]
    assert len(states) == 4

    def kept(*events, **changes):
        starts = FreshStarts(**{"reset_ratio": config.reset_ratio, "seed": config.seed} | changes)
        starts.set_model(model)
        for state in states:
            state.assign(np.ones(state.shape))
        for name, argument in events:
            getattr(starts, name)(argument)
        values = {state.numpy().tobytes() for state in states}
        assert len(values) == 1, "the layers disagree"
        rows = states[0].numpy()
        assert (rows == rows[:, :1]).all()
        return rows[:, 0]

    batch = ("on_train_batch_begin", 5)
    assert kept(("on_train_batch_begin", 0)).all()
    assert kept(batch).mean() == pytest.approx(0.7, abs=0.1)
    np.testing.assert_array_equal(kept(batch), kept(batch))
    for other in (kept(("on_train_batch_begin", 6)), kept(batch, seed=1), kept(batch, reset_ratio=0.0)):
        assert (other != kept(batch)).any()
    assert kept(batch, reset_ratio=0.0).all()
    assert not kept(("on_epoch_begin", 2)).any()
    assert not kept(("on_test_begin", None)).any()


@pytest.mark.parametrize(("cell", "parameters"), [("rnn", 1), ("gru", 3)])
def test_the_other_cells_learn(cell, parameters, tmp_path):
    data = splits(synthetic.bookkeeping(6_000, seed=0))
    config = dataclasses.replace(
        SMALL, cell=cell, units=24, depth=1, dropout=0.0, epochs=4, batch_size=8, learning_rate=0.02
    )
    folder = _run.train(chargen, "chargen", config, data, runs=tmp_path)
    model = _weights.restore(chargen, config, data, folder)
    size, biases = len(data.info["characters"]), 2 if cell == "gru" else 1
    assert model.get_layer("layer0").count_params() == parameters * 24 * (size + 24 + biases)
    assert (
        _run.measure(chargen, config, model, data)["nats_per_character"] < 1.5 < markov(data.train, data.validation, 0)
    )


def test_a_run_knows_the_text_it_was_trained_on():
    """A longer text of the same characters would move what was trained on into the test part."""
    one, other = splits("abc\n" * 500), splits("abc\n" * 600)
    recorded = {"data": json.loads(json.dumps(one.info))}
    _data.check_data(recorded, one, Path("run"))
    with pytest.raises(UserError, match="fingerprint changed"):
        _data.check_data(recorded, other, Path("run"))


# --- Signatures against the model step by step ---------------------------------------------------


def step_by_step(model, ids):
    """Logits after each character, and what the last state of each layer remembers, by Keras alone."""
    layers = recurrent_layers(model)
    for layer in layers:
        layer.reset_states()
    logits, memory = [], []
    for token in ids:
        logits.append(model(np.full((SMALL.batch_size, 1), token), training=False)[0, 0].numpy())
        memory.append(np.tanh(np.concatenate([layer.states[-1].numpy()[0] for layer in layers])))
    return np.array(logits, np.float64), np.array(memory)


def nats(logits, ids):
    """Sum over the characters after the first, by the definition of the softmax."""
    rows = zip(logits, ids[1:], strict=False)
    return sum(np.log(np.exp(row).sum()) - row[following] for row, following in rows)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn", "peephole_lstm"])
def test_score_and_cells_equal_the_model_step_by_step(cell, monkeypatch):
    """Texts of unequal lengths, read in blocks that end inside of them; one is empty, one has unknown characters."""
    monkeypatch.setattr(character_reader, "READ", 7)
    model, data = untrained(dataclasses.replace(SMALL, cell=cell))
    endpoints, letters = chargen.endpoints(model, data), chargen.vocabulary_of(data)
    given = [data.test()[1][:30], "", "a", "a€nn€€a", data.train[:7], data.train[5:13], "€"]
    scored = call(endpoints["score"].function, text=given)
    seen = call(endpoints["cells"].function, text=given)
    assert texts(seen) == [text.replace("€", "") for text in given]
    for row, text in enumerate(given):
        ids = letters.encode_text(text)
        logits, memory = step_by_step(model, ids)
        assert scored["nats"][row] == pytest.approx(nats(logits, ids), abs=1e-4)
        assert scored["characters"][row] == max(0, len(ids) - 1)
        if len(ids):
            np.testing.assert_allclose(seen["memory"][row, : len(ids)], memory, atol=1e-5)


def test_bytes_are_scored_by_character_and_remembered_at_their_last_byte():
    model, data = untrained(data=splits(EMOJI * 40, "bytes"))
    endpoints = chargen.endpoints(model, data)
    given = [EMOJI, "plain"]
    scored, seen = (call(endpoints[name].function, text=given) for name in ("score", "cells"))
    assert scored["characters"].tolist() == [len(text) - 1 for text in given]
    assert texts(seen) == given
    for row, text in enumerate(given):
        ids = np.frombuffer(text.encode(), np.uint8)
        logits, memory = step_by_step(model, ids)
        assert scored["nats"][row] == pytest.approx(nats(logits, ids), abs=1e-3)
        ends = np.cumsum([len(character.encode()) for character in text]) - 1
        np.testing.assert_allclose(seen["memory"][row, : len(text)], memory[ends], atol=1e-5)


def test_the_likeliest_text_equals_the_model_step_by_step():
    model, data = untrained()
    letters = chargen.vocabulary_of(data)
    answer = call(chargen.endpoints(model, data)["generate"].function, prompt=["anna"], **settings(temperature=0.0))
    ids = letters.encode_text("anna" + texts(answer)[0])
    logits, _ = step_by_step(model, ids)
    np.testing.assert_array_equal(logits[3:-1].argmax(1), ids[4:])
    assert len(ids) == 54


def test_begin_and_advance_equal_generate(monkeypatch):
    """A batch of prompts of unequal lengths, its pieces of unequal lengths; reading goes by short blocks."""
    monkeypatch.setattr(character_reader, "READ", 5)
    model, data = untrained()
    generate, begin, advance = (chargen.endpoints(model, data)[n].function for n in ("generate", "begin", "advance"))
    prompts = ["", "a", data.train[:23], "€", "anna\n"]
    kept = settings(5, temperature=[0.5, 1.0, 2.0, 1.0, 0.0], top_k=[0, 5, 0, 0, 0], seed=[1, 2, 3, 1, 5])
    whole = texts(call(generate, prompt=prompts, **kept))
    assert len(set(whole)) == 5
    state, made = call(begin, prompt=prompts)["state"], [""] * 5
    for lengths in ([3, 1, 30, 20, 49], [47, 49, 20, 30, 1]):
        start = [len(text) for text in made]
        answer = call(advance, state=state, start=start, **kept | {"length": lengths})
        state = answer["state"]
        made = [before + text for before, text in zip(made, texts(answer), strict=True)]
    assert made == whole
    # A prompt alone gives the text that it gives in the batch.
    for row in range(5):
        assert texts(
            call(generate, prompt=prompts[row : row + 1], **{k: v[row : row + 1] for k, v in kept.items()})
        ) == [whole[row]]


@pytest.mark.parametrize(("text", "same", "other"), [("\tab\n", "\n", "\t"), ("ab ", " ", "a")])
def test_an_empty_prompt_stands_for_a_line_break_or_else_the_first_character(text, same, other):
    model, data = untrained(data=splits(text * 200))
    state = call(chargen.endpoints(model, data)["begin"].function, prompt=["", "€", same, f"€{same}€", other])["state"]
    np.testing.assert_allclose(state[:4], state[:1].repeat(4, 0), atol=1e-6)
    assert np.abs(state[4] - state[0]).max() > 1e-3


# --- The verb generate ---------------------------------------------------------------------------


def written(capsys, model, *words):
    capsys.readouterr()
    assert main(["chargen", "generate", str(model), *map(str, words)]) == 0
    return capsys.readouterr().out


def test_generate_prints_what_the_signature_answers(exported, capsys):
    signature = export.signatures(exported)["generate"]
    prompt = 'elena owes "'
    for seed in (0, 7, -3):
        words = [
            "--prompt",
            prompt,
            "--length",
            100,
            "--temperature",
            1.2,
            "--top-k",
            9,
            "--top-p",
            0.9,
            "--seed",
            seed,
        ]
        kept = settings(length=100, temperature=1.2, top_k=9, top_p=0.9, seed=seed)
        expected = texts(call(signature, prompt=[prompt], **kept))[0]
        assert len(expected) == 100
        assert written(capsys, exported, *words) == f"{prompt}{expected}\n"


def test_several_prompts_at_once_give_what_each_gives_alone(exported):
    generate = export.signatures(exported)["generate"]
    prompts, kept = ["anna", "", "elena owes"], settings(3, length=[40, 1, 33], seed=[1, 2, 3])
    together = texts(call(generate, prompt=prompts, **kept))
    assert [len(text) for text in together] == kept["length"]
    for row, prompt in enumerate(prompts):
        alone = texts(call(generate, prompt=[prompt], **{name: [value[row]] for name, value in kept.items()}))
        assert alone == [together[row]]


def test_the_seed_decides(exported, capsys):
    first, again, other = (written(capsys, exported, "--seed", seed, "--length", 80) for seed in (3, 3, 4))
    assert first == again != other
    assert len(first) == 81
    coldest = {written(capsys, exported, "--seed", seed, "--length", 80, "--temperature", 0) for seed in (3, 4)}
    assert len(coldest) == 1


def test_several_samples_take_the_seeds_that_follow(exported, capsys):
    single = [written(capsys, exported, "--seed", seed, "--length", 40) for seed in (5, 6, 7)]
    together = written(capsys, exported, "--seed", 5, "--length", 40, "--samples", 3)
    assert together == "".join(f"--- seed {seed}\n{text}" for seed, text in zip((5, 6, 7), single, strict=True))


def test_prompts_may_be_empty_or_hold_unknown_characters(exported, capsys):
    assert written(capsys, exported, "--prompt", "") == written(capsys, exported)
    known, unknown = (written(capsys, exported, "--prompt", prompt) for prompt in ("anna pays", "an€na 日pays"))
    assert unknown.removeprefix("an€na 日pays") == known.removeprefix("anna pays")


def test_bytes_are_streamed_without_breaking_characters(tmp_path, capsys):
    """Random weights write any bytes: the stream is the one decoding of all of them."""
    model, data = untrained(data=splits(EMOJI * 40, "bytes"))
    export.write(tmp_path / "chargen/1", model, chargen.endpoints(model, data), lambda folder: None)
    signature = export.signatures(tmp_path / "chargen")["generate"]
    for seed in range(3):
        words = ["--prompt", EMOJI, "--length", 200, "--temperature", 2.0, "--seed", seed]
        expected = texts(call(signature, prompt=[EMOJI], **settings(length=200, temperature=2.0, seed=seed)))[0]
        assert "\N{REPLACEMENT CHARACTER}" in expected
        assert written(capsys, tmp_path / "chargen", *words) == f"{EMOJI}{expected}\n"
    # A piece that ends inside of a character: 31 bytes of ASCII, then emoji.
    piece = b"x" * (sampling.BLOCK - 2) + "😀😀".encode() + b"y" * 26
    pieces = []

    def advance(start, length, **_):
        begin = int(start[0])
        text = piece[begin : begin + int(length[0])].decode("utf-8", "replace")
        pieces.append(text)
        return {"text": tf.constant([text]), "state": tf.zeros([1, 1])}

    fake = {"begin": lambda prompt: {"state": tf.zeros([1, 1])}, "advance": advance}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "signatures", lambda folder, *needed: fake)
        assert written(capsys, tmp_path, "--length", len(piece)) == piece.decode() + "\n"
    assert pieces[0].endswith("\N{REPLACEMENT CHARACTER}"), "nothing was cut"


# --- The verb inspect ----------------------------------------------------------------------------


def test_inspect_finds_cells_and_writes_a_page(trained, exported, tmp_path, capsys):
    text = trained[1].test()[1][:1_500]
    path = tmp_path / "lines.txt"
    path.write_text(text)
    assert main(["chargen", "inspect", str(exported), "--file", str(path), "--html", str(tmp_path / "x.html")]) == 0
    printed = capsys.readouterr().out
    rows = {line[:20].strip(): line[20:] for line in printed.splitlines() if "(0." in line}
    assert set(rows) == {"inside quotes", "inside brackets", "place in the line", "place in the word"}
    scores = {name: [float(score) for score in re.findall(r"\((0\.\d+)\)", row)] for name, row in rows.items()}
    assert all(score == sorted(score, reverse=True) and len(score) == 3 for score in scores.values())
    assert scores["inside brackets"][0] > 0.5
    assert scores["place in the line"][0] > 0.5
    assert text.splitlines()[0] in printed
    best = max(rows, key=lambda name: scores[name][0])
    number = re.search(r"cell (\d+)", rows[best])[1]
    assert f"cell {number}, {best}: blue remembers -1, red +1" in printed
    # The cell listed first follows the feature by its own numbers, too.
    answer = call(export.signatures(exported)["cells"], text=[text])
    feature = cell_features.FEATURES[best](text)
    correlation = np.corrcoef(answer["memory"][0, :, int(number)], feature)[0, 1]
    assert abs(correlation) == pytest.approx(scores[best][0], abs=0.006)
    assert "background-color" in (tmp_path / "x.html").read_text()


def test_inspect_shows_the_asked_cell_of_the_asked_part(exported, capsys):
    words = ["--text", "anna owes (1+2)", "--cell", "5", "--top", "1", "--width", "9"]
    assert main(["chargen", "inspect", str(exported), *words]) == 0
    printed = capsys.readouterr().out
    assert printed.endswith("cell 5: blue remembers -1, red +1\nanna owes\n")
    assert printed.count("cell") == 1 + len([line for line in printed.splitlines() if "(0." in line])


def test_features_say_what_they_are_called():
    def values(name, text):
        return "".join(str(int(value)) for value in cell_features.FEATURES[name](text))

    assert values("inside quotes", 'a "b c" d') == "001111000"
    assert values("inside brackets", "(a[b]) c}") == "111110000"
    assert values("place in the line", "ab\n\ncd") == "012001"
    assert values("place in the word", "abc, de") == "0120001"
    assert values("capital letters", "aBÄ1") == "0110"
    assert values("speaker's line", "KING:\nOh:no\n") == "111111000000"


def test_inspect_takes_bytes_of_any_text(tmp_path, capsys):
    model, data = untrained(data=splits(EMOJI * 40, "bytes"))
    export.write(tmp_path / "chargen/1", model, chargen.endpoints(model, data), lambda folder: None)
    assert main(["chargen", "inspect", str(tmp_path / "chargen"), "--text", EMOJI * 3]) == 0
    assert capsys.readouterr().out.endswith(EMOJI * 3 + "\n")


# --- Own text ------------------------------------------------------------------------------------


def test_an_own_text_is_cut_in_its_order(tmp_path):
    path = tmp_path / "own.txt"
    whole = synthetic.bookkeeping(1_000, seed=2) + EMOJI
    path.write_text(whole)
    data = chargen.load_data(dataclasses.replace(SMALL, data=path, held_out_ratio=0.1))
    validation, test = data.test()
    assert data.validation == validation
    assert data.train + validation + test == whole
    assert len(validation) == len(test) == round(0.1 * len(whole))
    assert data.info["characters"] == sorted(set(data.train))
    assert chargen.vocabulary_of(data).size == len(set(data.train))
    data = chargen.load_data(dataclasses.replace(SMALL, data=path, alphabet="bytes"))
    assert data.info["characters"] is None
    assert chargen.vocabulary_of(data).size == 256


def test_an_own_folder_is_trained_on_exported_and_continued(tmp_path, capsys):
    for name in ("b.py", "a/deep.txt"):
        (tmp_path / "own" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "own" / name).write_text(synthetic.bookkeeping(1_500, seed=len(name)) + EMOJI, encoding="utf-8")
    flags = [
        "--data", tmp_path / "own", "--alphabet", "bytes", "--units", 8, "--depth", 1, "--window", 16,
        "--batch-size", 4, "--epochs", 1, "--held-out-ratio", 0.1, "--runs", tmp_path,
    ]  # fmt: skip
    assert main(["chargen", "train", *map(str, flags)]) == 0
    (folder,) = (tmp_path / "chargen").iterdir()
    assert main(["chargen", "evaluate", str(folder)]) == 0
    assert main(["chargen", "export", str(folder), "--saved-models", str(tmp_path / "exports")]) == 0
    measured, loaded = (json.loads((p / "metrics.json").read_text()) for p in (folder, tmp_path / "exports/chargen/1"))
    assert measured["split"] == "the end of own, 304 characters"
    assert measured["nats_per_character"] < math.log(256)
    assert loaded == pytest.approx(measured, abs=1e-2)
    out = written(capsys, tmp_path / "exports/chargen", "--prompt", "😀 ", "--length", 20, "--top-k", 3)
    assert out.startswith("😀 ")
    assert len(out.encode()) >= len("😀 ".encode()) + 21


# --- Mistakes ------------------------------------------------------------------------------------


def fails(capsys, *words):
    capsys.readouterr()
    assert main(["chargen", *map(str, words)]) == 2
    (error,) = (line for line in capsys.readouterr().err.splitlines() if not line.startswith("few steps an epoch"))
    return error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"good\nnot \xff good\n" * 100, "line 2 has 0xff at byte 5 of the line"),
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"short", "the text has 5 characters, too few for three parts"),
        (b"few\n" * 100, "The text has 360 symbols; expected at least 1280 for 4 streams with windows of 256 symbols"),
        (b"some" * 20, "the validation text has 4 characters; expected more than --batch-size 4"),
    ],
)
def test_texts_that_cannot_be_used(content, message, tmp_path, capsys):
    (tmp_path / "own.txt").write_bytes(content)
    window = 256 if b"few" in content else 4
    flags = ["--data", tmp_path / "own.txt", "--batch-size", 4, "--window", window, "--units", 8, "--depth", 1]
    assert message in fails(capsys, "train", *flags, "--runs", tmp_path)


def test_a_missing_text_is_named(tmp_path, capsys):
    error = fails(capsys, "train", "--data", tmp_path / "none.txt", "--runs", tmp_path)
    assert "There is no file or folder" in error
    assert not (tmp_path / "chargen").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"units": 0}, "--units is 0; expected 1 or more"),
        ({"window": 0}, "--window is 0"),
        ({"held_out_ratio": 0.0}, "--held-out-ratio is 0.0; expected 0.001 to 0.4"),
        ({"dropout": 1.0}, "--dropout is 1.0"),
        ({"reset_ratio": 1.5}, "--reset-ratio"),
        ({"learning_rate": float("nan")}, "--learning-rate"),
    ],
)
def test_wrong_fields(fields, message):
    with pytest.raises(UserError, match=message):
        chargen.Config(**fields)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--temperature", -1], "--temperature is -1.0; expected 0 or more"),
        (["--temperature", "nan"], "--temperature is nan"),
        (["--length", 0], "--length is 0; expected 1 to 100000"),
        (["--length", 100_001], "--length is 100001; expected 1 to 100000"),
        (["--top-k", -1], "--top-k is -1"),
        (["--top-p", 0], "--top-p is 0.0"),
        (["--samples", 0], "--samples is 0"),
        (["--seed", 2**31], "--seed is 2147483648"),
        (["--lenght", 3], "did you mean --length?"),
    ],
)
def test_wrong_settings_of_generate(words, message, capsys, tmp_path):
    """Before the model is loaded: there is none."""
    assert message in fails(capsys, "generate", tmp_path, *words)


def test_wrong_settings_of_inspect(exported, tmp_path, capsys):
    (tmp_path / "latin.txt").write_bytes("naïve".encode("latin-1"))
    for words, message in (
        ([], "give either --text or --file"),
        (["--text", "a", "--file", "b"], "give either --text or --file"),
        (["--text", "€"], "knows no character of this text"),
        (["--text", ""], "knows no character of this text"),
        (["--text", "anna", "--cell", 96], "--cell is 96; expected 0 to 95"),
        (["--text", "anna", "--cell", -1], "--cell is -1; expected 0 to 95"),
        (["--file", tmp_path / "latin.txt"], "is no UTF-8 text: line 1 has 0xef at byte 3"),
        (["--text", "anna", "--width", 0], "--width is 0"),
    ):
        assert message in fails(capsys, "inspect", exported, *words)
    assert "holds no exported model" in fails(capsys, "inspect", tmp_path, "--text", "a")


def test_the_signatures_refuse_settings_out_of_range(exported):
    signature = export.signatures(exported)["generate"]
    for changes, message in (
        ({"length": 0}, "length is below 1"),
        ({"length": sampling.MAX_LENGTH + 1}, "length is above"),
        ({"temperature": -1.0}, "temperature is below 0"),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            call(signature, prompt=["a"], **settings(**changes))


# --- Real data and the trained export ------------------------------------------------------------


@pytest.mark.real
def test_tiny_shakespeare_has_its_published_size(data_dir):
    data = chargen.load_data(chargen.Config(data_dir=data_dir))
    assert [len(data.train), *map(len, data.test())] == [1_003_854, 55_770, 55_770]
    assert len(data.info["characters"]) == 65
    config = chargen.Config()
    assert pipeline.num_windows(len(data.train), config.batch_size, config.window) == 122


@pytest.mark.real
def test_the_trained_export_has_the_loss_on_its_card(data_dir, card):
    folder = ROOT / "saved_models/chargen/1"
    test = chargen.load_data(chargen.Config(data_dir=data_dir)).test()[1]
    test = test[: len(card.rows(len(test), 20_000))]
    answer = call(export.signatures(folder)["score"], text=[test])
    assert answer["characters"] == [len(test) - 1]
    loss = float(answer["nats"][0] / answer["characters"][0])
    card.compare(folder, {"nats_per_character": loss}, nats_per_character=(1e-3, 1e-3))
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 8 * 2**20


def test_the_trained_export_writes_words():
    """Without data: most of what stands between spaces are words of the prompt's language."""
    signature = export.signatures(ROOT / "saved_models/chargen")["generate"]
    text = texts(call(signature, prompt=["ROMEO:\n"], **settings(length=600, temperature=0.5)))[0]
    common = {"the", "and", "to", "of", "i", "you", "my", "a", "that", "in", "is", "not", "me", "it", "with", "be"}
    words = re.findall(r"[a-z']+", text.lower())
    assert len(words) > 80
    assert sum(word in common for word in words) > 0.2 * len(words)
