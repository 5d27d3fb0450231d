"""Language models over whole texts, to pre-train the layers of a classifier that reads them from one end or both."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from kerasdl.blocks.embedding import padding_mask
from kerasdl.data import pipeline
from kerasdl.errors import UserError
from kerasdl.training import optimizers, precision, progress


def neighbour_model(
    words: keras.layers.Embedding, recurrent: Sequence[keras.layers.Layer], *, dropout: float = 0.0, name: str
) -> keras.Model:
    """A model that guesses the next word and, where the layer reads from both ends, the word before.

    A guess is a vector: its product with a word's vector is that word's logit, see `sampled_softmax`.

    Args:
        words: the embedding of the words, shared with whoever is to be pre-trained; id 0 is padding.
        recurrent: layers that read the words in turn, return all steps, and are shared, too; or one Bidirectional.
        dropout: share of the features dropped before the guess.
        name: of the model.

    Returns:
        int32[batch, words] -> float[batch, directions * (words - 1), embedding_dim], in the order of `neighbours`.

    Raises:
        ValueError: a Bidirectional layer is not the only one: from the second on, each direction knows the other's
            words, and there is nothing left to guess.
    Source: Dai and Le 2015, arXiv:1511.01432, section 2; both directions, each by itself: Peters et al. 2018,
        arXiv:1802.05365, section 3.1.
    """
    both = isinstance(recurrent[0], keras.layers.Bidirectional)
    if both and len(recurrent) > 1:
        raise ValueError(
            f"{name} got {len(recurrent)} recurrent layers, the first of both directions; expected one, or layers of "
            "one direction: above the first each direction would know the words that the other has to guess"
        )
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    mask = padding_mask(tokens, name="mask")
    x = words(tokens)
    if both:
        ahead = recurrent[0].forward_layer(x, mask=mask)[:, :-1]
        back = ops.flip(recurrent[0].backward_layer(x, mask=mask), axis=1)[:, 1:]
        read = {"next": ahead, "previous": back}
    else:
        for layer in recurrent:
            x = layer(x, mask=mask)
        read = {"next": x[:, :-1]}
    guesses = [
        keras.layers.Dense(words.output_dim, name=side)(keras.layers.Dropout(dropout)(part))
        for side, part in read.items()
    ]
    return keras.Model(tokens, ops.concatenate(guesses, axis=1), name=name)


def neighbours(tokens: tf.Tensor, directions: int) -> tf.Tensor:
    """What `neighbour_model` has to guess: the word after each, and with two directions also the word before each.

    Args:
        tokens: int32[batch, words].
        directions: 1 or 2.

    Returns:
        int32[batch, directions * (words - 1)], 0 where nothing is to be guessed.

    Source: own.
    """
    parts = [tokens[:, 1:], tokens[:, :-1]][:directions]
    # Behind the end of a text the direction that begins there has read nothing yet.
    return tf.concat([tf.where(tokens[:, 1:] != 0, part, 0) for part in parts], 1)


def sampled_softmax(vectors: keras.Variable) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """The loss of a language model whose guesses are vectors: the product of one and a word's is the word's logit.

    The right word is to be told from 256 others, drawn by their frequency: to compare all 30,000 would take many times
    the work of the LSTM itself. So it is no perplexity, but its minimum is at the same guesses.

    Args:
        vectors: of the words, the most frequent first, float32[words, embedding_dim].

    Returns:
        A function of the right words int32[batch, n] (0 does not count) and guesses float[batch, n, embedding_dim] ->
        nats a word, float32 scalar.

    Source: Jean et al. 2014, arXiv:1412.2007, section 3; the vectors of input and output in one: Press and Wolf 2016,
        arXiv:1608.05859.
    """
    size, units = vectors.shape
    others = min(256, size // 2)

    def loss(right: tf.Tensor, guess: tf.Tensor) -> tf.Tensor:
        right = tf.cast(tf.reshape(right, [-1]), tf.int64)
        guess = tf.reshape(guess, [-1, units])
        table = tf.convert_to_tensor(vectors)
        drawn, right_count, drawn_count = tf.random.log_uniform_candidate_sampler(
            right[:, None], 1, others, True, size, seed=0
        )
        logits = tf.matmul(guess, tf.cast(tf.gather(table, drawn), guess.dtype), transpose_b=True)
        logits = tf.cast(logits, tf.float32) - tf.math.log(drawn_count)
        logits = tf.where(right[:, None] == drawn, -1e9, logits)
        true = tf.reduce_sum(tf.cast(guess, tf.float32) * tf.gather(table, right), -1)
        true -= tf.math.log(right_count[:, 0])
        losses = tf.nn.softplus(tf.reduce_logsumexp(logits, -1) - true)
        counted = tf.cast(right != 0, tf.float32)
        return tf.reduce_sum(losses * counted) / tf.maximum(tf.reduce_sum(counted), 1.0)

    return loss


def pretrain(model: keras.Model, sequences: Sequence[np.ndarray], settings: Any) -> keras.Model:
    """Trains the embedding and the recurrent layers of a classifier as a language model, see `neighbour_model`.

    The gradient goes back through a whole text, as in the classifier: no state is carried from text to text, since
    the classifier begins each without one.

    Args:
        model: the classifier, with the layers `embedding` and `recurrent_layer0` and so on.
        sequences: the texts, int32[words] each; those of fewer than two words are left out.
        settings: the configuration: `pretrain_epochs`, `bidirectional`, `depth`, `dropout`, `batch_size`, `precision`,
            `seed`, and what `kerasdl.training.optimizers.make` reads.

    Returns:
        The language model.

    Raises:
        UserError: no text has two words.

    Source: Dai and Le 2015, arXiv:1511.01432, section 2, there with a full softmax.
    """
    sequences = [sequence for sequence in sequences if len(sequence) > 1]
    if not sequences:
        raise UserError("no text has two words, so that there is none to predict; leave --pretrain-epochs out")
    words = model.get_layer("embedding")
    layers = [model.get_layer(f"recurrent_layer{index}") for index in range(settings.depth)]
    with precision.precision(settings.precision):
        guesser = neighbour_model(words, layers, dropout=settings.dropout, name="language_model")
    steps, epochs = pipeline.num_steps(len(sequences), settings.batch_size), settings.pretrain_epochs
    optimizer = optimizers.make("adamw", settings, steps, epochs=epochs)
    print(f"pre-training on {len(sequences):,} texts, {sum(map(len, sequences)):,} words", flush=True)
    guesser.compile(optimizer, sampled_softmax(words.embeddings), jit_compile=False)
    batches = pipeline.bucketed_batches(sequences, [], settings.batch_size, seed=settings.seed)
    optimizers.build(guesser)
    guesser.fit(
        batches.map(lambda tokens: (tokens, neighbours(tokens, 1 + settings.bidirectional))),
        epochs=epochs,
        steps_per_epoch=steps,
        shuffle=False,
        verbose=progress.verbosity(),
    )
    return guesser
