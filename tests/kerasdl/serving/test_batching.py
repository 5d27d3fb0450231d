"""Requests that are computed together: each gets its own answer, and no other one's fault."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import pytest
import tensorflow as tf

from kerasdl.errors import UserError
from kerasdl.serving.batch_parameters import Parameters, read_parameters
from kerasdl.serving.batching import Queue
from kerasdl.serving.errors import Code, ServingError
from kerasdl.serving.repository import ModelRepository
from kerasdl.serving.servable import BATCHED, BATCHING, Servable
from kerasdl.serving.workers import Workers


class Doubles:
    """Doubles numbers, refuses those below 0; waits for what holds it, and keeps what it was given."""

    def __init__(self, seconds_a_row=0.0, function=lambda x: {"y": 2 * x}):
        self.seconds_a_row, self.function = seconds_a_row, function
        self.seen, self.free, self.held, self.ended = [], threading.Event(), threading.Event(), []
        self.free.set()

    def run(self, signature, inputs, cancellation=None):
        self.seen.append({name: array.tolist() for name, array in inputs.items()})
        self.held.set()
        while not self.free.wait(0.01):
            if cancellation.cancelled:
                self.ended.append(len(inputs["x"]))
                raise ServingError(Code.CANCELLED, "ended")
        x = inputs["x"]
        time.sleep(self.seconds_a_row * len(x))
        if (x < 0).any():
            raise ServingError(Code.INVALID_ARGUMENT, f"{x.min():g} is below 0")
        return self.function(x)

    @property
    def sizes(self):
        return [len(inputs["x"]) for inputs in self.seen]


@pytest.fixture
def workers():
    workers = Workers(threads=4, waiting=100)
    yield workers
    assert workers.close(5)


def queue(workers, alike=(), **parameters):
    return Queue(workers, "m", "serving_default", alike, Parameters(**parameters))


def x(*values):
    return {"x": np.array(values, np.float32)}


def held(workers, servable, *requests, alike=(), **parameters):
    """The calls of requests that came while one was computed, and that one."""
    made = queue(workers, alike, **parameters)
    servable.free.clear()
    first = made.submit(servable, x(0.0) | {name: np.array([0]) for name in alike})
    assert servable.held.wait(5)
    calls = [made.submit(servable, request) for request in requests]
    return first, calls


def answers(calls):
    return [call.future.result(10)["y"].tolist() for call in calls]


def test_what_waits_is_computed_together_and_each_gets_its_own(workers):
    servable = Doubles()
    first, calls = held(workers, servable, x(1), x(2, 3), x(4))
    servable.free.set()
    assert answers([first, *calls]) == [[0], [2], [4, 6], [8]]
    assert servable.sizes == [1, 4]


def test_a_request_that_comes_alone_waits_for_no_other(workers):
    servable = Doubles()
    made = queue(workers)
    assert answers([made.submit(servable, x(1))]) == [[2]]
    assert answers([made.submit(servable, x(2))]) == [[4]]
    assert servable.sizes == [1, 1]


def test_a_batch_takes_no_more_than_its_size(workers):
    servable = Doubles()
    _, calls = held(workers, servable, x(1, 2), x(3, 4), x(5), max_batch_size=3)
    servable.free.set()
    assert answers(calls) == [[2, 4], [6, 8], [10]]
    assert servable.seen[1:] == [{"x": [1, 2, 5]}, {"x": [3, 4]}]  # the third fits beside the first


@pytest.mark.parametrize(
    ("name", "count", "sizes"), [("text", 8, [1, 4, 4]), ("text", 3, [1, 3]), ("image_bytes", 8, [1, 8])]
)
def test_where_many_wait_texts_go_with_others_about_as_long(workers, name, count, sizes):
    servable = Doubles()

    def request(i):
        return x(i) | {name: np.array([b"x" * (10 + i // 2, 100 - i)[i % 2]], object)}

    made = queue(workers, max_batch_size=8)
    servable.free.clear()
    calls = [made.submit(servable, request(0))]
    assert servable.held.wait(5)
    calls += [made.submit(servable, request(i)) for i in range(1, count + 1)]
    servable.free.set()
    assert answers(calls) == [[2 * i] for i in range(count + 1)]
    assert servable.sizes == sizes


def test_a_large_request_is_computed_in_parts(workers):
    servable = Doubles()
    values = [float(i) for i in range(7)]
    call = queue(workers, max_batch_size=3).submit(servable, x(*values))
    assert answers([call]) == [[2 * value for value in values]]
    assert sorted(servable.sizes) == [1, 3, 3]


def test_a_small_request_waits_for_a_part_of_a_large_one_alone(workers):
    servable = Doubles()
    made = queue(workers, max_batch_size=2)
    servable.free.clear()
    large = made.submit(servable, x(*range(10)))
    assert servable.held.wait(5)
    small = made.submit(servable, x(7))
    servable.free.set()
    assert answers([small, large]) == [[14], [2 * i for i in range(10)]]
    assert [7.0] in [inputs["x"] for inputs in servable.seen[:2]]


def test_too_large_a_request_is_refused_at_once(workers):
    servable = Doubles()
    with pytest.raises(ServingError, match="holds 257 examples; this server takes 256 in a request at most") as caught:
        queue(workers, max_batch_size=2).submit(servable, x(*range(257)))
    assert (caught.value.code, servable.seen) == (Code.INVALID_ARGUMENT, [])


def test_a_fault_in_a_part_is_that_of_the_request(workers):
    call = queue(workers, max_batch_size=2).submit(Doubles(), x(1, 2, 3, -4))
    with pytest.raises(ServingError, match="-4 is below 0"):
        call.future.result(10)


@pytest.mark.parametrize("bad", range(5))
def test_a_bad_example_fails_alone(workers, bad):
    servable = Doubles()
    values = [float(i + 1) for i in range(5)]
    values[bad] = -7
    _, calls = held(workers, servable, *[x(value) for value in values])
    servable.free.set()
    for i, call in enumerate(calls):
        if i == bad:
            with pytest.raises(ServingError, match="-7 is below 0"):
                call.future.result(10)
        else:
            assert answers([call]) == [[2 * values[i]]]


def test_a_mistake_in_the_server_is_told_to_all(workers):
    servable = Doubles(function=lambda x: 1 / 0)
    _, calls = held(workers, servable, x(1), x(2))
    servable.free.set()
    for call in calls:
        with pytest.raises(ZeroDivisionError):
            call.future.result(10)


def test_examples_of_other_shapes_go_on_their_own(workers):
    servable = Doubles()
    _, calls = held(workers, servable, {"x": np.ones((1, 2))}, {"x": np.ones((1, 3))}, {"x": np.zeros((2, 2))})
    servable.free.set()
    assert answers(calls) == [[[2, 2]], [[2, 2, 2]], [[0, 0], [0, 0]]]
    assert sorted(servable.sizes) == [1, 1, 1, 2]  # two fit together, but one was there before


def test_examples_that_must_agree_in_an_input_do(workers):
    servable = Doubles()
    requests = [x(value) | {"n": np.array([n])} for value, n in ((1, 5), (2, 6), (3, 5), (9, 5))]
    differ = x(4, 5) | {"n": np.array([5, 6])}
    _, calls = held(workers, servable, *requests, differ, alike=("n",), max_batch_size=4)
    servable.free.set()
    assert answers(calls) == [[2], [4], [6], [18], [8, 10]]
    assert sorted(inputs["n"] for inputs in servable.seen[1:]) == [[5], [5, 5], [5, 6], [6]]


def test_a_request_that_does_not_fit_waits_for_no_long_one(workers):
    servable = Doubles()
    made = queue(workers, ("n",))
    servable.free.clear()
    long = made.submit(servable, x(1) | {"n": np.array([100_000])})
    assert servable.held.wait(5)
    other = made.submit(servable, x(2) | {"n": np.array([40])})
    until = time.monotonic() + 5
    while len(servable.seen) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    assert [inputs["n"] for inputs in servable.seen] == [[100_000], [40]]
    servable.free.set()
    assert answers([long, other]) == [[2], [4]]


def test_a_batch_is_filled_up_to_an_allowed_size(workers):
    servable = Doubles()
    _, calls = held(workers, servable, x(1), x(2), x(3), max_batch_size=8, allowed_batch_sizes=(2, 4, 8))
    servable.free.set()
    assert answers(calls) == [[2], [4], [6]]
    assert servable.seen == [{"x": [0, 0]}, {"x": [1, 2, 3, 1]}]


def test_shorter_examples_are_filled_up_by_their_first_element(workers):
    servable = Doubles(function=lambda x: {"y": x.sum(1)})
    made = queue(workers, pad_variable_length_inputs=True)
    servable.free.clear()
    first = made.submit(servable, {"x": np.array([[1.0]])})
    servable.held.wait(5)
    calls = [made.submit(servable, {"x": np.array([row])}) for row in ([3.0, 4.0], [5.0], [6.0, 1.0, 1.0])]
    servable.free.set()
    assert answers([first, *calls]) == [[1], [10], [15], [8]]
    assert servable.seen[1] == {"x": [[3, 4, 3], [5, 5, 5], [6, 1, 1]]}


def test_outputs_that_are_no_rows_are_computed_for_each(workers):
    servable = Doubles(function=lambda x: {"y": x.sum(keepdims=True)})
    _, calls = held(workers, servable, x(1, 1), x(2, 2))
    servable.free.set()
    assert answers(calls) == [[2], [4]]


def test_what_all_have_left_ends_and_what_one_has_left_does_not(workers):
    servable = Doubles()
    first, calls = held(workers, servable, x(1), x(2), x(3))
    first.cancel()
    until = time.monotonic() + 5
    while len(servable.seen) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    assert (servable.ended, servable.sizes) == ([1], [1, 3])
    calls[0].cancel()
    calls[2].cancel()
    time.sleep(0.1)
    assert servable.ended == [1]
    servable.free.set()
    assert answers(calls[1:2]) == [[4]]
    servable.free.clear()
    last = [queue(workers).submit(servable, x(1)), queue(workers, max_batch_size=2).submit(servable, x(1, 2, 3))]
    time.sleep(0.1)
    for call in last:
        call.cancel()
    for call in last:
        with pytest.raises(ServingError):
            call.future.result(5)


def test_a_call_that_waits_is_taken_back(workers):
    servable = Doubles()
    _, calls = held(workers, servable, x(1), x(2))
    calls[0].cancel()
    servable.free.set()
    assert answers(calls[1:]) == [[4]]
    assert servable.seen[1:] == [{"x": [2]}]


def test_batches_become_as_large_as_their_time_allows(workers):
    servable = Doubles(seconds_a_row=0.01)
    made = queue(workers, max_batch_size=16, target_seconds=0.05)
    wait([made.submit(servable, x(i)).future for i in range(60)], timeout=20)
    assert servable.sizes[1] == 16  # nothing was known yet
    assert max(servable.sizes[2:]) <= 8
    assert sum(servable.sizes) == 60


def test_a_full_queue_refuses(workers):
    servable = Doubles()
    made = queue(workers, max_batch_size=2, max_enqueued_batches=2)
    servable.free.clear()
    calls = [made.submit(servable, x(0))]
    assert servable.held.wait(5)
    calls += [made.submit(servable, x(1, 2)), made.submit(servable, x(3))]
    with pytest.raises(ServingError) as caught:
        made.submit(servable, x(4, 5))
    assert caught.value.code == Code.RESOURCE_EXHAUSTED
    calls += [made.submit(servable, x(6))]
    servable.free.set()
    assert answers(calls) == [[0], [2, 4], [6], [12]]


def test_a_batch_may_wait_for_more(workers):
    servable = Doubles()
    made = queue(workers, max_batch_size=3, batch_timeout_micros=300_000)
    began = time.monotonic()
    calls = [made.submit(servable, x(1)), made.submit(servable, x(2))]
    assert answers(calls) == [[2], [4]]
    assert time.monotonic() - began >= 0.29
    assert servable.sizes == [2]
    began = time.monotonic()
    calls = [made.submit(servable, x(value)) for value in (1, 2, 3)]
    assert answers(calls) == [[2], [4], [6]]
    assert time.monotonic() - began < 0.29  # it is full


def test_side_by_side(workers):
    servable = Doubles()
    servable.free.clear()
    made = queue(workers, num_batch_threads=2)
    calls = [made.submit(servable, x(1)), made.submit(servable, x(2))]
    until = time.monotonic() + 5
    while len(servable.seen) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    assert servable.sizes == [1, 1]
    servable.free.set()
    assert answers(calls) == [[2], [4]]


# --- The parameters file ---------------------------------------------------------------------------------------------


def test_parameters_file(tmp_path):
    path = tmp_path / "batching.txt"
    path.write_text(
        "max_batch_size { value: 64 } batch_timeout_micros { value: 1000 } max_enqueued_batches { value: 100 }\n"
        "num_batch_threads { value: 4 } allowed_batch_sizes: 16 allowed_batch_sizes: 64\n"
        'pad_variable_length_inputs: true thread_pool_name { value: "p" }'
    )
    assert read_parameters(path) == Parameters(64, 1000, 100, 4, (16, 64), True)
    path.write_text(
        "max_batch_size { value: 64 } enable_large_batch_splitting { value: true } "
        "max_execution_batch_size { value: 8 }"
    )
    assert read_parameters(path) == Parameters(max_batch_size=8)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_batch_size { value: 0 }", "max_batch_size must be 1 or more, not 0"),
        ("num_batch_threads { value: -1 }", "num_batch_threads must be 1 or more, not -1"),
        ("batch_timeout_micros { value: -1 }", "batch_timeout_micros must be 0 or more, not -1"),
        ("max_enqueued_batches { value: 0 }", "max_enqueued_batches must be 1 or more, not 0"),
        ("max_batch_size { value: 8 } allowed_batch_sizes: 4", "must increase and end with max_batch_size, 8, not 4"),
        ("allowed_batch_sizes: 32 allowed_batch_sizes: 8", "must increase and end with max_batch_size, 32"),
        ("max_batch { value: 8 }", "max_batch"),
    ],
)
def test_wrong_parameters(tmp_path, text, words):
    path = tmp_path / "batching.txt"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_parameters(path)
    assert str(caught.value).startswith(str(path))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


# --- In the server ---------------------------------------------------------------------------------------------------


@pytest.fixture
def exported(tmp_path):
    """A folder of one model, which adds 1 to a number and ! to a word, and refuses numbers below 0."""

    def function(number, word):
        check = tf.debugging.assert_non_negative(number, "number is below 0")
        with tf.control_dependencies([check]):
            return {"number": number + 1, "word": word + "!"}

    specs = [tf.TensorSpec([None], tf.float32, "number"), tf.TensorSpec([None], tf.string, "word")]
    signature = tf.function(function, input_signature=specs)
    folder = tmp_path / "models/m/1"
    tf.saved_model.save(tf.Module(), str(folder), signatures={"serving_default": signature})
    (folder / "assets.extra").mkdir()
    (folder / BATCHED).write_text(json.dumps({"serving_default": []}))
    return folder


@pytest.fixture
def batches(monkeypatch):
    """Sizes of what was computed."""
    sizes, run = [], Servable.run

    def spy(self, signature, inputs, *others):
        sizes.append(len(next(iter(inputs.values()))))
        time.sleep(0.01)
        return run(self, signature, inputs, *others)

    monkeypatch.setattr(Servable, "run", spy)
    return sizes


def ask(client, i):
    rows = [{"number": float(10 * i + k), "word": f"{i}-{k}"} for k in range(i % 3 + 1)]
    if i % 7 == 3:
        rows[-1]["number"] = -1.0
    return client.predict("m", {"instances": rows})


def check(replies):
    for i, reply in enumerate(replies):
        if i % 7 == 3:
            assert (reply.status, reply.json) == (400, {"error": "number is below 0."})
        else:
            rows = [{"number": 10.0 * i + k + 1, "word": f"{i}-{k}!"} for k in range(i % 3 + 1)]
            assert (reply.status, reply.json) == (200, {"predictions": rows})


def test_answers_never_cross(exported, serve, batches):
    repository = ModelRepository(exported.parents[1])
    repository.poll()
    with serve(repository) as client, ThreadPoolExecutor(24) as threads:
        check(list(threads.map(lambda i: ask(client, i), range(200))))
    assert max(batches) > 3


def test_what_no_export_declares_is_not_put_together_unless_asked(exported, serve, batches):
    (exported / BATCHED).unlink()
    repository = ModelRepository(exported.parents[1])
    repository.poll()
    with serve(repository) as client, ThreadPoolExecutor(24) as threads:
        check(list(threads.map(lambda i: ask(client, i), range(50))))
    assert max(batches) <= 3
    five = Parameters(max_batch_size=5)
    with serve(repository, every=True, parameters=five) as client, ThreadPoolExecutor(24) as threads:
        check(list(threads.map(lambda i: ask(client, i), range(100))))
    assert 3 < max(batches) <= 5


def test_inputs_of_different_lengths_get_the_error_of_the_graph(exported, serve):
    repository = ModelRepository(exported.parents[1])
    repository.poll()
    with serve(repository, every=True) as client:
        reply = client.predict("m", {"inputs": {"number": [], "word": []}})
        assert (reply.status, reply.json) == (200, {"outputs": {"number": [], "word": []}})
        reply = client.predict("m", {"inputs": {"number": [1, 2], "word": ["a"]}})
        assert (reply.status, reply.json) == (200, {"outputs": {"number": [2.0, 3.0], "word": ["a!"]}})


@pytest.mark.parametrize("text", ["[]", '{"nope": []}', '{"serving_default": ["nope"]}', "{", '{"serving_default": 3}'])
def test_a_wrong_declaration_stops_the_load(exported, text):
    (exported / BATCHED).write_text(text)
    with pytest.raises(ServingError, match="does not name signatures with inputs of this model") as caught:
        Servable(exported)
    assert caught.value.code == Code.INVALID_ARGUMENT


def test_parameters_beside_a_model(exported):
    (exported / BATCHING).write_text("max_batch_size { value: 3 }")
    assert Servable(exported).batching == Parameters(max_batch_size=3)
    (exported / BATCHING).write_text("max_batch_size { value: 0 }")
    with pytest.raises(ServingError, match="max_batch_size must be 1 or more"):
        Servable(exported)


def test_first_calls_do_not_prepare_a_graph_beside_each_other(exported):
    servable, at_once, most, lock = Servable(exported), 0, 0, threading.Lock()
    function = servable._functions["serving_default"]
    call = function.call

    def spy(*arguments):
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.05)
        outputs = call(*arguments)
        with lock:
            at_once -= 1
        return outputs

    function.call = spy

    def run(i):
        inputs = {"number": np.array([i], np.float32), "word": np.array([b"w"], object)}
        return servable.run("serving_default", inputs)["number"].tolist()

    with ThreadPoolExecutor(4) as threads:
        first = threads.submit(run, 0)
        time.sleep(0.02)
        assert list(threads.map(run, range(1, 4))) == [[2], [3], [4]]
        assert first.result() == [1]
        assert most == 3  # the first one was alone
