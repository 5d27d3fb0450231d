"""What holds for every application that is found."""

import base64
import contextlib
import dataclasses
import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import fitting
import keras
import numpy as np
import pytest
import rest_client
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from apps import _calibration, _run, _weights
from kerasdl import export, processor
from kerasdl.errors import UserError
from kerasdl.serving.repository import ModelRepository
from kerasdl.training.checkpoint import Checkpoint, TrainingDiverged

ROOT = Path(__file__).parent.parent.parent
APPLICATIONS = sorted(path.stem for path in (ROOT / "apps").glob("[!_]*"))


@pytest.fixture(scope="module", params=APPLICATIONS)
def trained(request, tmp_path_factory):
    """Two short epochs, with all that draws numbers: module, config, data, run folder and what `Recording` has seen."""
    module = importlib.import_module(f"apps.{request.param}")
    runs = tmp_path_factory.mktemp("runs")
    changes = {"epochs": 2, "batch_size": 32, "dropout": 0.1, "cache": runs / "features"}
    config, data = module.tiny()
    config = dataclasses.replace(config, **{name: value for name, value in changes.items() if hasattr(config, name)})
    data = fitting.few(data, 128)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_run.checkpoint, "Checkpoint", Recording)
        folder = _run.train(module, request.param, config, data, runs=runs)
    return request.param, module, config, data, folder, Recording.last


class Recording(Checkpoint):
    """Sees the first step of a training: `before` and `after`, the weights by path, and its `logs`; and all traces."""

    last = None

    def set_model(self, model):
        super().set_model(model)
        Recording.last, self.traces, self.logs, step = self, 0, None, model.train_step

        def counted(data):
            self.traces += 1
            return step(data)

        model.train_step = counted

    def weights(self):
        return {variable.path: np.array(variable) for variable in self.model.trainable_variables}

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self.before = self.weights()

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch, logs)
        if self.logs is None:
            self.logs, self.after = dict(logs), self.weights()


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    name, module, config, data, folder, _ = trained
    root = tmp_path_factory.mktemp("saved_models")
    return _run.export_run(module, name, config, data, folder, root=root, version=None)


@pytest.fixture(scope="module")
def signatures(exported):
    """The signatures of the export, loaded once: asked a second time, they answer by frozen weights."""
    return export.signatures(exported)


def test_one_step_moves_every_weight(trained):
    seen = trained[-1]
    assert len(seen.before) == len(seen.after) > 0
    assert [path for path, weight in seen.before.items() if (weight == seen.after[path]).all()] == []


def test_the_step_is_traced_once(trained):
    """Twice, if it makes variables: they are to be made before."""
    assert trained[-1].traces == 1


def state(folder):
    """The arrays and the history, without seconds, of a run."""
    with np.load(folder / "checkpoint.npz") as file:
        arrays = {name: file[name] for name in file.files}
    history = json.loads(str(arrays.pop("state")))["history"]
    return arrays, [{name: value for name, value in row.items() if name != "seconds"} for row in history]


def test_a_run_that_breaks_down_goes_on_exactly_from_its_last_good_epoch(trained, tmp_path, monkeypatch, capsys):
    """In the second epoch a weight becomes no number; resumed without that, the run equals the one that never broke."""
    name, module, config, data, whole, _ = trained
    look = Checkpoint.on_train_batch_end

    def spoil(saver, batch, logs=None):
        look(saver, batch, logs)
        if saver.initial_epoch == 1:
            weight = saver.model.trainable_variables[0]
            weight.assign(np.full(weight.shape, np.nan))

    with monkeypatch.context() as patch, pytest.raises(TrainingDiverged, match=r"in epoch 2.*epoch 1 are kept"):
        patch.setattr(Checkpoint, "on_train_batch_end", spoil)
        _run.train(module, name, config, data, runs=tmp_path)
    (broken,) = (tmp_path / name).iterdir()
    arrays, history = state(broken)
    assert len(history) == 1
    assert all(np.isfinite(array).all() for array in arrays.values())
    assert all(np.isfinite(array).all() for array in _weights.restore(module, config, data, broken).get_weights())

    _run.train(module, name, config, data, runs=tmp_path, resume=broken)
    expected, log = state(whole)
    arrays, history = state(broken)
    assert history == log
    assert arrays.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(arrays[key], array)

    capsys.readouterr()
    _run.train(module, name, config, data, runs=tmp_path, resume=broken)
    assert "all 2 epochs are done" in capsys.readouterr().out
    assert state(broken)[1] == log
    assert [path.name for path in broken.rglob(".*")] == []


def test_another_seed_gives_another_run(trained, tmp_path, monkeypatch):
    name, module, config, data, _, seen = trained
    first = seen.logs["loss"]

    class Stopped(Recording):
        def on_train_batch_end(self, batch, logs=None):
            super().on_train_batch_end(batch, logs)
            raise KeyboardInterrupt

    monkeypatch.setattr(_run.checkpoint, "Checkpoint", Stopped)
    with pytest.raises(KeyboardInterrupt, match="go on with: python -m apps"):
        _run.train(module, name, dataclasses.replace(config, seed=1), data, runs=tmp_path)
    assert Recording.last.logs["loss"] != first


def test_a_run_that_patience_has_stopped_stays_stopped(trained, tmp_path, capsys):
    name, module, config, data, whole, _ = trained
    folder = tmp_path / "stopped"
    shutil.copytree(whole, folder)
    arrays, history = state(whole)
    history = [history[0] | {"seconds": 1.0, "epoch": epoch} for epoch in (1, 2, 3)]  # no gain
    np.savez(folder / "checkpoint.npz", state=np.array(json.dumps({"history": history})), **arrays)
    config = dataclasses.replace(config, epochs=9, patience=2)
    for _ in range(2):
        capsys.readouterr()
        _run.train(module, name, config, data, runs=tmp_path, resume=folder)
        assert "stopped by --patience 2: no epoch after 1 was better" in capsys.readouterr().out
        assert len(state(folder)[1]) == 3


def test_golden_parameters_and_first_loss(trained, golden):
    """Half precision differs among processors by 0.5 % after one step; what follows may differ by any amount."""
    name, *_, seen = trained
    parameters = sum(weight.size for weight in seen.before.values())
    golden(f"{name}_tiny", {"trainable_parameters": parameters, "first_loss": float(seen.logs["loss"])}, rel=0.02)


def requests(folder):
    """Signature name and inputs, as arrays, of the warm-up requests of an export."""
    for record in tf.data.TFRecordDataset(str(folder / export.WARMUP)).as_numpy_iterator():
        request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        yield request.model_spec.signature_name, {key: tf.make_ndarray(it) for key, it in request.inputs.items()}


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "saved_models").iterdir() if path.is_dir()))
def test_golden_outputs_of_the_trained_export(name, golden):
    """What the export in saved_models/ answers to its own warm-up requests."""
    folder = export.version_folder(ROOT / "saved_models" / name)
    signatures = export.signatures(folder)
    facts = {}
    for signature, inputs in requests(folder):
        for key, value in signatures[signature](**inputs).items():
            flat = value.numpy().ravel()[:20].tolist()
            flat = [item.decode(errors="replace") if isinstance(item, bytes) else item for item in flat]
            facts[f"{signature}/{key}"] = flat
    assert facts
    golden(f"{name}_export", facts, rel=2e-3)


USELESS = {
    "captioner": {"mean_words": 0.0, "distinct_captions": 1.0, "distinct_captions_ratio": 0.005, "bleu1": 0.0},
    "chargen": {"nats_per_character": 3.31, "unigram_nats_per_character": 3.32},
    "cifar10": {
        "accuracy": 0.11, "accuracy_low": 0.09, "accuracy_high": 0.13, "majority_accuracy": 0.1, "nll_nats": 2.31,
    },
    "dcgan": {"recall": 0.0, "precision": 0.9},
    "denoiser": {"restored_psnr_db_15": 24.8, "restored_psnr_db_25": 20.50, "restored_psnr_db_50": 14.9},
    "sentiment": {
        "accuracy": 0.5, "accuracy_low": 0.49, "accuracy_high": 0.51, "named_classes": 1,
        "nll_nats": 0.7, "majority_nll_nats": 0.69,
    },
    "vae": {"kl_nats": 1.13, "active_latents": 0},
}  # fmt: skip
"""By application, metrics of a model that has learned nothing, or collapsed."""


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "saved_models").iterdir() if path.is_dir()))
def test_a_useless_model_is_called_so_and_the_trained_export_is_not(name, capsys):
    module = importlib.import_module(f"apps.{name}")
    good = json.loads((export.version_folder(ROOT / "saved_models" / name) / "metrics.json").read_text())
    assert _run.print_verdict(module, good) == []
    assert capsys.readouterr().err == ""
    [line] = _run.print_verdict(module, good | USELESS[name])
    assert capsys.readouterr().err.count("\n") == 1
    assert "of no use" in line


def test_captions_that_are_all_alike_are_called_so():
    captioner = importlib.import_module("apps.captioner")
    alike = {"mean_words": 8.0, "distinct_captions": 1.0, "distinct_captions_ratio": 1 / 40, "bleu1": 30.0}
    assert "the same of every picture" in captioner.verdict(alike)
    assert captioner.verdict(alike | {"distinct_captions_ratio": 1.0}) is None  # one test picture


def as_json(array):
    """Arrays as TensorFlow Serving's JSON, bytes in base64."""
    if array.dtype == object:
        return [{"b64": base64.b64encode(item).decode()} for item in array.ravel()]
    return array.tolist()


def test_every_signature_answers_over_http_and_odd_bytes_are_no_server_error(exported, signatures):
    repository = ModelRepository(exported.parent.parent)
    repository.poll()
    model = exported.parent.name
    with rest_client.serve(repository) as client:
        for signature, inputs in requests(exported):
            body = {"signature_name": signature, "inputs": {key: as_json(value) for key, value in inputs.items()}}
            reply = client.predict(model, body)
            assert reply.status == 200, reply.body
            expected = signatures[signature](**inputs)
            answer = reply.json["outputs"]
            answer = answer if len(expected) > 1 else {next(iter(expected)): answer}
            assert set(answer) == set(expected)
            for key, value in expected.items():
                if value.dtype != tf.string:
                    np.testing.assert_allclose(np.array(answer[key]), value, rtol=1e-4, atol=1e-5, err_msg=key)
            for key in [key for key, value in inputs.items() if value.dtype == object]:
                for odd in (b"", b"\x00\xff\xfe", b"\xff\xd8\xff\xe0 no picture"):
                    changed = body["inputs"] | {key: as_json(np.array([odd], object))}
                    reply = client.predict(model, body | {"inputs": changed})
                    assert reply.status == (400 if key == "image_bytes" else 200), (signature, odd, reply.body)
            for key in [key for key in inputs if key in ("index", "class_index")]:
                reply = client.predict(model, body | {"inputs": body["inputs"] | {key: [10**6]}})
                assert reply.status == 400
                assert reply.json["error"].startswith(f"{key} is out of range, expected 0 to ")
                assert "\n" not in reply.json["error"]


TEXTS = ("bad", "A clever, moving film. " * 7, "To be, or not", "It was not good at all!")


def another(name, row, i):
    """Some other value of an input, a batch of one like `row`."""
    rng = np.random.default_rng(i)
    if name == "image_bytes":
        return encoded(rng.integers(0, 256, (40 + 7 * i, 50 - 5 * i, 3)))
    if name in ("text", "prompt"):
        return np.array([TEXTS[i].encode()], object)
    if name in ("seed", "start"):
        return np.array([i])
    if row.dtype == np.uint8:
        return rng.integers(0, 256, row.shape).astype(np.uint8)
    if row.dtype == np.float32 and row.ndim > 1:
        return rng.normal(size=row.shape, scale=50 if name == "image" else 1).astype(np.float32)
    return row


def test_what_is_said_to_answer_row_by_row_answers_together_as_alone(exported, signatures):
    declared = json.loads((exported / export.BATCHED).read_text())
    usual = dict(requests(exported))
    assert {*declared} - {"serving_default"} <= {*usual}
    for signature in {*declared} - {"serving_default"}:
        rows = [{name: another(name, row, i) for name, row in usual[signature].items()} for i in range(len(TEXTS))]
        together = signatures[signature](
            **{name: np.concatenate([row[name] for row in rows]) for name in usual[signature]}
        )
        for i, row in enumerate(rows):
            for key, alone in signatures[signature](**row).items():
                if alone.dtype == tf.string:
                    assert together[key][i].numpy() == alone[0].numpy()
                else:
                    largest = np.abs(together[key]).max()
                    np.testing.assert_allclose(
                        together[key][i : i + 1], alone, rtol=1e-5, atol=2e-5 * largest, err_msg=f"{signature} {key}"
                    )


def encoded(pixels):
    return np.array([tf.io.encode_png(pixels.astype(np.uint8)).numpy()], object)


def extremes(name, spec):
    """Values of one input at the ends of what its type holds, each a batch of one."""
    rng = np.random.default_rng(0)
    if name == "image_bytes":
        noise = rng.integers(0, 256, (40, 50, 3))
        yield from map(encoded, (0 * noise, 0 * noise + 255, noise, noise[:1, :1], noise[:, :, :1], noise[:1]))
    elif spec.dtype == tf.string:
        odd = "\x00\ufffd \U0001f600 \u202e\u0301 <b>\t\r\n\\ \u3042\u0e01 --"
        for text in ("", " ", "\n", "a", odd, "word " * 600, "x" * 3000, "?" * 500):
            yield np.array([text.encode()], object)
        yield np.array([b"\xff\xfe\x80"], object)
    elif spec.dtype == tf.uint8:
        noise = rng.integers(0, 256, [1, *spec.shape[1:]])
        lit = np.zeros_like(noise)
        lit[0, 3, 4] = 255
        yield from (image.astype(np.uint8) for image in (0 * noise, 0 * noise + 255, noise, lit, 255 - lit))
    elif spec.dtype == tf.float32 and spec.shape.rank > 1:
        noise = rng.normal(size=[1, *(size or 24 for size in spec.shape[1:])])
        values = (0, 10, -10, 1e6, 1e30, 3e38, -3e38)
        yield from (np.full(noise.shape, value, np.float32) for value in values)
        yield from ((value * noise).astype(np.float32) for value in (10, 1e6, 1e37))
    elif spec.dtype == tf.float32:
        low = [1e-30] if name == "top_p" else [0, 1e-30]
        yield from (np.array([value], np.float32) for value in (*low, 1, 10, 1e30, np.inf))
    elif name == "seed":
        yield from (np.array([value]) for value in (-(2**31), -1, 2**31 - 1))


def test_every_answer_is_made_of_finite_numbers(exported, signatures):
    """JSON has no others. Whatever the inputs are, one after another at the ends of their types."""
    for signature, usual in requests(exported):
        for name, spec in signatures[signature].inputs.items():
            for value in extremes(name, spec):
                answer = signatures[signature](**{**usual, name: value})
                for key, array in answer.items():
                    wrong = array.dtype != tf.string and not np.isfinite(array).all()
                    assert not wrong, f"{signature}, {name} {str(value)[:80]}: {key} is {np.ravel(array)[:5]}"


def test_what_has_no_answer_is_refused_by_name(exported, signatures):
    """No numbers, and classes that are not there; by the graph as exported, and by frozen weights."""
    loaded = tf.saved_model.load(str(exported)).signatures
    for signature, usual in requests(exported):
        for name, spec in signatures[signature].inputs.items():
            wrong = []
            if spec.dtype == tf.float32:
                wrong = [np.full_like(usual[name], np.nan)]
                if spec.shape.rank > 1:
                    wrong += [np.full_like(usual[name], value) for value in (np.inf, -np.inf)]
            elif name in ("index", "class_index"):
                wrong = [np.array([value]) for value in (-2, 10**6)]
            for value in wrong:
                given = {key: tf.constant(one, signatures[signature].inputs[key].dtype) for key, one in usual.items()}
                given[name] = tf.constant(value, given[name].dtype)
                for function in (loaded[signature], signatures[signature], signatures[signature]):
                    with pytest.raises(tf.errors.InvalidArgumentError, match=name.replace("_", ".")):
                        function(**given)


def test_a_run_folder_is_complete(trained):
    _, _, config, _, folder, _ = trained
    assert json.loads((folder / "config.json").read_text())["precision"] == processor.resolve(config.precision)[0]
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "run.json", "log.csv", "checkpoint.npz", "model.keras", "figures"} <= names
    run = json.loads((folder / "run.json").read_text())
    assert {"application", "time", "command", "commit", "versions", "machine", "precision", "data"} <= set(run)
    assert {"processor", "threads"} == set(run["machine"])


def test_an_export_holds_all_that_a_server_and_a_reader_need(trained, exported):
    name, module, *_ = trained
    assert (exported.parent.name, exported.name) == (name, "1")
    for part in ("saved_model.pb", "MODEL_CARD.md", "config.json", "metrics.json", export.WARMUP):
        assert (exported / part).is_file(), part
    card = (exported / "MODEL_CARD.md").read_text()
    assert "curl" in card
    words = module.verdict(json.loads((exported / "metrics.json").read_text()))
    assert (words is not None) == ("of no use" in card)
    assert ("probabilities are calibrated" in card) == hasattr(module, "predictions")
    for metric in json.loads((exported / "metrics.json").read_text()):
        assert metric == "split" or f"| {metric} |" in card


@contextlib.contextmanager
def asked(program):
    """Gives a function that writes words to a process, in a line with tabs, and reads the line that it answers."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, **pipes) as process:

        def ask(*words):
            print(*words, sep="\t", file=process.stdin, flush=True)
            return process.stdout.readline()

        yield ask


ALONE = """
import sys
sys.modules.update(dict.fromkeys(["keras", "kerasdl", "apps"]))  # None: importing them fails
import numpy as np
import tensorflow as tf
for line in sys.stdin:
    folder, data, *names = line.rstrip("\\n").split("\\t")
    model = tf.saved_model.load(folder)
    for name in names:
        with np.load(f"{data}/{name}.npz", allow_pickle=True) as file:
            inputs = {k: tf.constant(file[k]) for k in file.files}
        answer = model.signatures[name](**inputs)
        np.savez(f"{data}/{name}.answer.npz", **{k: v.numpy() for k, v in answer.items()})
    print("done", flush=True)
"""


@pytest.fixture(scope="module")
def tensorflow_alone():
    """Lets a process without Keras and this project answer NAME.npz by NAME.answer.npz, by an export's signatures."""
    with asked(ALONE) as ask:

        def answer(folder, data, names):
            assert ask(folder, data, *names) == "done\n"

        yield answer


def test_export_equals_the_model_in_a_process_with_tensorflow_alone(trained, exported, tensorflow_alone, tmp_path):
    name, module, config, data, folder, _ = trained
    model = _weights.restore(module, config, data, folder)
    settings, _ = _calibration.calibration(module, model, data)
    for variable in model.variables:  # rounded as an export stores them, so that nothing else may differ
        if len(variable.shape) > 1:
            variable.assign(variable.numpy().astype(np.float16))
    endpoints = module.endpoints(model, data, **settings)
    expected = {}
    for signature, endpoint in endpoints.items():
        inputs = {key: tf.constant(value, endpoint.inputs[key].dtype) for key, value in endpoint.example.items()}
        np.savez(tmp_path / f"{signature}.npz", **{k: v.numpy() for k, v in inputs.items()})
        expected[signature] = {k: v.numpy() for k, v in endpoint.function(**inputs).items()}
    tensorflow_alone(exported, tmp_path, endpoints)
    for signature, outputs in expected.items():
        with np.load(tmp_path / f"{signature}.answer.npz", allow_pickle=True) as file:
            assert set(file.files) == set(outputs)
            for key, value in outputs.items():
                if value.dtype == object:
                    assert file[key].tolist() == value.tolist()
                else:
                    assert file[key].dtype in (np.float32, np.int32, np.int64)
                    np.testing.assert_allclose(file[key], value, atol=1e-5)


def test_signatures_have_a_free_batch_dimension(signatures):
    for signature in signatures.values():
        assert all(spec.shape[0] is None for spec in signature.inputs.values())


def test_a_picture_without_loss_is_answered_as_its_pixels(signatures):
    """What the card measures by pixels holds for files, which all go through the same decoder."""
    if "pixels" not in signatures or signatures["pixels"].inputs["image"].dtype != tf.uint8:
        pytest.skip("takes no pixels, or noisy ones, which no file holds")
    shape = signatures["pixels"].inputs["image"].shape[1:]
    pixels = np.random.default_rng(0).integers(0, 256, [3, *shape], np.uint8)
    name = next(name for name, one in signatures.items() if set(one.inputs) == {"image_bytes"})
    answer = signatures[name](image_bytes=tf.stack([tf.io.encode_png(image) for image in pixels]))
    for key, expected in signatures["pixels"](image=pixels).items():
        if expected.dtype == tf.string:
            assert answer[key].numpy().tolist() == expected.numpy().tolist()
        else:
            np.testing.assert_allclose(answer[key], expected, rtol=1e-5, atol=1e-6)


def test_exports_are_never_overwritten(trained, exported):
    name, module, config, data, folder, _ = trained
    root = exported.parent.parent
    with pytest.raises(ValueError, match="never overwritten"):
        _run.export_run(module, name, config, data, folder, root=root, version=1)
    assert export.next_version(exported.parent) == 2


def test_only_classifiers_take_the_temperature_of_another_run(trained, tmp_path):
    name, module, config, data, folder, _ = trained
    if not hasattr(module, "predictions"):
        other = {"version": None, "calibrate_on": (config, data, folder)}
        with pytest.raises(UserError, match="--calibrate-on is for classifiers"):
            _run.export_run(module, name, config, data, folder, root=tmp_path, **other)


OPEN = """
import importlib, os, sys
import keras
import numpy as np
for line in sys.stdin:
    name, path, weights = line.rstrip("\\n").split("\\t")
    child = os.fork()
    if not child:
        status = 1
        try:
            importlib.import_module(f"apps.{name}")
            model = keras.models.load_model(path)
            assert model.optimizer is not None
            np.savez(weights, *[variable.numpy() for variable in model.weights])
            status = 0
        finally:
            os._exit(status)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.fixture(scope="module")
def opened():
    """Opens model.keras of an application in a process that knows Keras and that application alone."""
    with asked(OPEN) as ask:

        def weights(name, path, found):
            assert ask(name, path, found) == "0\n"
            with np.load(found) as file:
                return [file[key] for key in file.files]

        yield weights


def test_the_model_of_a_run_opens_with_keras_after_one_import(trained, opened, tmp_path):
    """Compiled, and with the weights of the run."""
    name, module, config, data, folder, _ = trained
    found = opened(name, folder / "model.keras", tmp_path / "weights.npz")
    keras.utils.set_random_seed(3)
    expected = _weights.restore(module, config, data, folder).weights
    assert len(found) == len(expected) > 0
    for array, weight in zip(found, expected, strict=True):
        np.testing.assert_array_equal(array, weight.numpy(), err_msg=weight.path)
