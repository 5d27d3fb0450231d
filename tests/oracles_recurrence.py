"""The recurrent equations in numpy, one sequence and one step at a time; see oracles.py.

`keep` is the mask of recurrent dropout, on the way into the product alone.
"""

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def rnn(x, h, weights, keep=1):
    """h' = tanh(x W + h R + b)."""
    kernel, recurrent, bias = weights
    return np.tanh(x @ kernel + (h * keep) @ recurrent + bias), ()


def lstm(x, h, weights, c, keep=1, peephole=((0,), (0,), (0,))):
    """Gates in Keras' order: input, forget, cell, output."""
    kernel, recurrent, bias = weights
    i, f, z, o = np.split(x @ kernel + (h * keep) @ recurrent + bias, 4)
    to_input, to_forget, to_output = (np.asarray(row) for row in peephole)
    new = sigmoid(f + to_forget * c) * c + sigmoid(i + to_input * c) * np.tanh(z)
    return sigmoid(o + to_output * new) * np.tanh(new), (new,)


def gru(x, h, weights, keep=1):
    """Gates in Keras' order: update, reset, candidate; the reset gate acts after the product."""
    kernel, recurrent, (bias, recurrent_bias) = weights
    xu, xr, xz = np.split(x @ kernel + bias, 3)
    hu, hr, hz = np.split((h * keep) @ recurrent + recurrent_bias, 3)
    u, r = sigmoid(xu + hu), sigmoid(xr + hr)
    return u * h + (1 - u) * np.tanh(xz + r * hz), ()


def run(cell, x, units, weights, mask=None, *, num_states=0, backwards=False, **options):
    """x[batch, time, features] -> h[batch, time, units] in the order of the steps; a masked step carries h and c."""
    outputs = np.zeros((*x.shape[:2], units))
    times = range(x.shape[1])
    for row in range(len(x)):
        h, state = np.zeros(units), tuple(np.zeros(units) for _ in range(num_states))
        for t in reversed(times) if backwards else times:
            if mask is None or mask[row, t]:
                h, state = cell(x[row, t], h, weights, *state, **options)
            outputs[row, t] = h
    return outputs


def highway(x, change, gate):
    """y = T(x) H(x) + (1 - T(x)) x."""
    (kernel, bias), (gate_kernel, gate_bias) = change, gate
    share = sigmoid(x @ gate_kernel + gate_bias)
    return share * np.maximum(x @ kernel + bias, 0) + (1 - share) * x


def attentive_lstm(x, items, h, c, weights):
    """One sequence x[time, features] over items[items, channels] -> outputs, contexts and weights by step."""
    kernel, recurrent, of_context, bias, query, keys, keys_bias, score, gate, gate_bias = weights
    outputs, contexts, shares = [], [], []
    for step in x:
        scores = np.array([np.tanh(h @ query + item @ keys + keys_bias) @ score[:, 0] for item in items])
        share = np.exp(scores) / np.exp(scores).sum()
        context = sigmoid(h @ gate[:, 0] + gate_bias[0]) * (share @ items)
        i, f, z, o = np.split(step @ kernel + h @ recurrent + context @ of_context + bias, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(z)
        h = sigmoid(o) * np.tanh(c)
        outputs.append(h)
        contexts.append(context)
        shares.append(share)
    return np.array(outputs), np.array(contexts), np.array(shares)
