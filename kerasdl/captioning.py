"""Sentences about pictures: the two classic decoders, their loss, and writing with them word by word."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from kerasdl import attentive_lstm, recurrence, text
from kerasdl.symbolic import require_symbolic

START, END = text.PADDING, text.UNKNOWN + 1
"""What stands before the first word (the id of padding, which is no word), and what is written after the last."""


def show_attend_and_tell(
    x: keras.KerasTensor,
    tokens: keras.KerasTensor,
    num_tokens: int,
    *,
    units: int,
    attention_units: int,
    embedding_dim: int,
    dropout: float = 0.0,
    name: str,
) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """Decoder that looks at another part of the picture before each word.

    The first state is computed from the mean of the parts. The next word follows from the previous one, the LSTM's
    output and what was looked at (deep output). As in the authors' code a tanh closes the deep output, and dropout
    stands before and behind it; here the last layer shares its weights with the word vectors (Press and Wolf 2016,
    arXiv:1608.05859), which small data sets need.

    Args:
        x: parts of the picture float32[batch, items, channels].
        tokens: the word before each step int32[batch, time], START at first.
        num_tokens: size of the vocabulary.
        units: size of the LSTM.
        attention_units: size of the hidden layer of the attention.
        embedding_dim: size of a word's vector.
        dropout: share of features dropped of words, of the parts, and around the deep output.
        name: prefix of the layer names.

    Returns:
        logits float32[batch, time, num_tokens], in mixed precision of the compute dtype, and the attention weights
        float32[batch, time, items].

    Raises:
        ValueError: x is not symbolic.
    Source: Xu et al. 2015, arXiv:1502.03044, section 3.1.2, equations 1 to 7.
    """
    require_symbolic(x, "show_attend_and_tell")
    dense, drop = keras.layers.Dense, keras.layers.Dropout
    vectors = _word_vectors(num_tokens, embedding_dim, f"{name}_words")
    words = drop(dropout, name=f"{name}_words_dropout")(vectors(tokens))
    mean = keras.layers.GlobalAveragePooling1D(name=f"{name}_mean")(x)
    first = [dense(units, "tanh", name=f"{name}_first_{part}")(mean) for part in ("h", "c")]
    lstm = attentive_lstm.AttentiveLSTM(units, attention_units, name=f"{name}_lstm")
    outputs, contexts, weights = lstm(words, x, *first)
    outputs = drop(dropout, name=f"{name}_outputs_dropout")(outputs)
    deep = [
        words,
        dense(embedding_dim, name=f"{name}_deep_outputs")(outputs),
        dense(embedding_dim, use_bias=False, name=f"{name}_deep_contexts")(contexts),
    ]
    deep = keras.layers.Activation("tanh", name=f"{name}_deep")(keras.layers.Add(name=f"{name}_deep_sum")(deep))
    return vectors(drop(dropout, name=f"{name}_deep_dropout")(deep), reverse=True), weights


def show_and_tell(
    x: keras.KerasTensor,
    tokens: keras.KerasTensor,
    num_tokens: int,
    *,
    units: int,
    embedding_dim: int,
    dropout: float = 0.0,
    name: str,
) -> keras.KerasTensor:
    """Decoder that sees the whole picture once, in place of a word before the first.

    The last layer shares its weights with the word vectors, by a projection of the LSTM's output to their size.

    Args:
        x: parts of the picture float32[batch, items, channels]; their mean is shown.
        tokens: the word before each step int32[batch, time], START at first.
        num_tokens: size of the vocabulary.
        units: size of the LSTM.
        embedding_dim: size of a word's vector.
        dropout: share of features dropped of words and of the LSTM's output.
        name: prefix of the layer names.

    Returns:
        logits float32[batch, time, num_tokens], in mixed precision of the compute dtype.

    Raises:
        ValueError: x is not symbolic.
    Source: Vinyals et al. 2014, arXiv:1411.4555, section 3.1, equations 10 to 12.
    """
    require_symbolic(x, "show_and_tell")
    dense, drop = keras.layers.Dense, keras.layers.Dropout
    vectors = _word_vectors(num_tokens, embedding_dim, f"{name}_words")
    words = drop(dropout, name=f"{name}_words_dropout")(vectors(tokens))
    mean = keras.layers.GlobalAveragePooling1D(name=f"{name}_mean")(x)
    shown = dense(embedding_dim, name=f"{name}_shown")(mean)
    steps = keras.layers.Concatenate(axis=1, name=f"{name}_steps")([shown[:, None], words])
    outputs = recurrence.QuickLSTM(units, return_sequences=True, name=f"{name}_lstm")(steps)[:, 1:]
    outputs = drop(dropout, name=f"{name}_outputs_dropout")(outputs)
    return vectors(dense(embedding_dim, name=f"{name}_deep_outputs")(outputs), reverse=True)


def draw(step: Callable[..., Any], state: Any, given: Any, seed: Any, max_length: int) -> Any:
    """Draws a caption for each row from the model's own probabilities.

    Args:
        step: of `writer`, as `state` and `given`.
        state: the first state of each row.
        given: what stays the same.
        seed: int32[2].
        max_length: tokens of a caption, END included.

    Returns:
        int32[batch, length of the longest], filled up with padding behind END.

    Source: own.
    """
    import tensorflow as tf

    rows = tf.shape(tf.nest.flatten(state)[0])[0]

    def body(t: Any, token: Any, going: Any, state: Any, tokens: Any) -> Any:
        shares, state = step(token, state, given)
        noise = tf.random.stateless_uniform(tf.shape(shares), tf.random.fold_in(seed, t), 1e-9, 1.0)
        # The largest of logits with Gumbel noise is a draw from their softmax.
        token = tf.where(going, tf.argmax(shares - tf.math.log(-tf.math.log(noise)), -1, tf.int32), text.PADDING)
        return t + 1, token, going & (token != END), state, tokens.write(t, token)

    begin = (
        0,
        tf.fill([rows], START),
        tf.fill([rows], True),
        state,
        tf.TensorArray(tf.int32, max_length, element_shape=[None]),
    )
    length, *_, tokens = tf.while_loop(
        lambda t, token, going, *_: (t < max_length) & tf.reduce_any(going), body, begin, parallel_iterations=1
    )
    return tf.transpose(tokens.gather(tf.range(length)))


def _word_vectors(num_tokens: int, size: int, name: str) -> Any:
    # Keras' initial vectors are made to be read; as the last layer's weights they are too short to learn quickly.
    initial = keras.initializers.RandomNormal(stddev=size**-0.5)
    return keras.layers.ReversibleEmbedding(num_tokens, size, embeddings_initializer=initial, name=name)


def writer(decoder: keras.Model, x: Any, name: str) -> tuple[Callable[..., Any], Any, Any]:
    """A decoder word by word, for `kerasdl.beam_search.beam_search`.

    Padding and the unknown word are never written.

    Args:
        decoder: a model with the layers of `show_attend_and_tell` or `show_and_tell`.
        x: parts of the pictures float32[batch, items, channels], a tensor.
        name: the prefix of its layer names.

    Returns:
        step, state and given.

    Source: own.
    """

    def layer(part: str) -> Any:
        return decoder.get_layer(f"{name}_{part}")

    vectors, lstm = layer("words"), layer("lstm")
    mean = layer("mean")(x)

    def log_shares(deep: Any) -> Any:
        logits = vectors(deep, reverse=True)
        possible = ops.arange(logits.shape[-1]) >= END
        return ops.log_softmax(ops.where(possible, ops.cast(logits, "float32"), -1e9))

    if isinstance(lstm, attentive_lstm.AttentiveLSTM):
        state = tuple(ops.cast(layer(f"first_{part}")(mean), "float32") for part in ("h", "c"))

        def attending(token: Any, state: Any, given: Any) -> Any:
            word = vectors(token)
            h, c, context, _ = lstm.step(word, *state, *given)
            deep = word + layer("deep_outputs")(h) + layer("deep_contexts")(context)
            return log_shares(ops.tanh(deep)), (h, c)

        return attending, state, (x, lstm.project(x))

    nothing = ops.zeros((ops.shape(x)[0], lstm.units), mean.dtype)
    _, state = lstm.cell(layer("shown")(mean), [nothing, nothing])

    def telling(token: Any, state: Any, given: Any) -> Any:
        h, state = lstm.cell(vectors(token), list(state))
        return log_shares(layer("deep_outputs")(h)), tuple(state)

    return telling, tuple(state), ()


_PARTS = ("encoder", "top", "decoder")


@keras.saving.register_keras_serializable(package="kerasdl")
class Captioner(keras.Model):
    """A frozen encoder, whose features are computed before the training, and the decoder that is trained on them.

    The encoder may be cut in two. The decoder then learns with the features of both parts; when `top` is made
    trainable it learns with what comes out of the first part, as `cut` in place of `picture`. A picture is best given
    with all its captions, so that the top sees it once.

    The loss is the mean over all words of a batch of their negative log-likelihood, in nats; padding and the unknown
    word are not counted. In training, but not in validation, targets are smoothed and the doubly stochastic penalty is
    added: the sum over the parts of a picture of (1 - sum of a caption's attention weights)^2, so that a caption
    looks at all parts.

    Args:
        encoder: pictures -> features, or what `top` takes; None if the decoder takes pictures.
        decoder: {picture: features, tokens: int32[batch, time]} -> {logits: float[batch, time, tokens]} and, if it
            attends, {weights: float32[batch, time, items]}.
        top: the last layers of the encoder, frozen at first; None if it is whole.
        label_smoothing: share of each target that is spread over all words.
        doubly_stochastic: factor of the penalty, lambda.
        **kwargs: those of `keras.Model`.
    Source: Xu et al. 2015, arXiv:1502.03044, section 4.2.1, equation 14; label smoothing: Szegedy et al. 2015,
        arXiv:1512.00567, section 7.
    """

    def __init__(
        self,
        encoder: keras.Model | None,
        decoder: keras.Model,
        *,
        top: keras.Model | None = None,
        label_smoothing: float = 0.0,
        doubly_stochastic: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.encoder, self.top, self.decoder = encoder, top, decoder
        for frozen in (encoder, top):
            if frozen is not None:
                frozen.trainable = False
        self.label_smoothing = label_smoothing
        self.doubly_stochastic = doubly_stochastic
        self.seed_generator = keras.random.SeedGenerator()
        self._reinforcement: Any = None
        self.built = True

    def encode(self, image: Any) -> Any:
        """Pictures uint8[batch, height, width, 3] -> what the decoder takes, in half precision as in a cache."""
        if self.encoder is None:
            return image
        features = ops.cast(self.encoder(ops.cast(image, "float32"), training=False), "float16")
        return features if self.top is None else ops.cast(self.finish(features), "float16")

    def finish(self, cut: Any) -> Any:
        """What the first part of a cut encoder gives -> what the decoder takes."""
        assert self.top is not None
        # training=False: the moving statistics stay as pre-trained, also while the weights are tuned.
        return self.top(cut, training=False)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """The decoder; with `cut` for `picture` behind the encoder's top.

        Tokens are int32[pictures, time], or int32[pictures, captions, time], whose outputs are those of pictures *
        captions rows.
        """
        picture = self.finish(inputs["cut"]) if "cut" in inputs else inputs["picture"]
        tokens = inputs["tokens"]
        if len(tokens.shape) == 3:
            picture = ops.repeat(picture, ops.shape(tokens)[1], axis=0)
            tokens = ops.reshape(tokens, (-1, ops.shape(tokens)[2]))
        return self.decoder({"picture": picture, "tokens": tokens}, training=training)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """Nats a word; y: the words int32[batch, time] or int32[pictures, captions, time], filled up with padding."""
        y = ops.reshape(y, (-1, ops.shape(y)[-1]))
        logits = ops.cast(y_pred["logits"], "float32")
        counted = ops.cast(y > text.UNKNOWN, "float32")
        losses = ops.sparse_categorical_crossentropy(y, logits, from_logits=True)
        if training and self.label_smoothing:
            # By so much the mean over all words is larger; the softmax need not be written out for it.
            right = ops.take_along_axis(logits, y[..., None], -1)[..., 0]
            losses += self.label_smoothing * (right - ops.mean(logits, -1))
        total = ops.sum(losses * counted)
        if training and self.doubly_stochastic and "weights" in y_pred:
            steps = ops.cast(y != text.PADDING, "float32")
            looked = ops.sum(y_pred["weights"] * steps[..., None], 1)
            total += self.doubly_stochastic * ops.sum(ops.square(1 - looked))
        return total / ops.maximum(ops.sum(counted), 1)

    def reinforce(self, reward: Callable[[Any, Any], Any], *, samples: int, max_length: int, name: str) -> None:
        """From now on `fit` learns from captions that the model draws itself; to be called before `compile`.

        `fit` then takes batches of {picture} or {cut} and of the pictures' numbers int32[batch]. A caption counts by
        how far its reward is above the mean of the picture's other captions.

        Args:
            reward: (numbers int32[n], captions int32[n, length]) -> float32[n], in numpy. A caption is closed by
                END and filled up with padding.
            samples: captions drawn of each picture, 2 or more.
            max_length: tokens of a caption, END included.
            name: the prefix of the decoder's layer names.

        Raises:
            ValueError: fewer than two samples.
        Source: Rennie et al. 2016, arXiv:1612.00563, section 3; the mean of the others as the baseline: Luo 2020,
            arXiv:2003.09971, section 2.
        """
        if samples < 2:
            raise ValueError(f"samples is {samples}, expected 2 or more: a caption is compared with the others")
        self._reinforcement = (reward, samples, max_length, name)

    def train_step(self, data: Any) -> Any:
        """One step of `fit`."""
        if self._reinforcement is None:
            return super().train_step(data)
        import tensorflow as tf

        reward, samples, max_length, name = self._reinforcement
        inputs, numbers = data
        features = self.finish(inputs["cut"]) if "cut" in inputs else inputs["picture"]
        picture, numbers = (tf.repeat(part, samples, axis=0) for part in (features, numbers))
        parts = self.decoder.get_layer(f"{name}_mean").input
        seen = keras.Model(self.decoder.input["picture"], parts)(picture, training=False)
        tokens = draw(*writer(self.decoder, seen, name), self.seed_generator.next(), max_length)
        rewards = tf.numpy_function(reward, [numbers, tokens], tf.float32)
        rewards = tf.reshape(rewards, [-1, samples])
        others = (tf.reduce_sum(rewards, 1, keepdims=True) - rewards) / (samples - 1)
        advantage = tf.reshape(rewards - others, [-1, 1])
        before = tf.pad(tokens[:, :-1], [[0, 0], [1, 0]])
        with tf.GradientTape() as tape:
            logits = self.decoder({"picture": picture, "tokens": before}, training=True)["logits"]
            losses = ops.sparse_categorical_crossentropy(tokens, ops.cast(logits, "float32"), from_logits=True)
            counted = tf.cast(tokens != text.PADDING, tf.float32)
            loss = tf.reduce_sum(advantage * losses * counted) / tf.reduce_sum(counted)
        variables = self.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return {"loss": loss, "reward": tf.reduce_mean(rewards)}

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            **{part: None if (model := getattr(self, part)) is None else serialize(model) for part in _PARTS},
            "label_smoothing": self.label_smoothing,
            "doubly_stochastic": self.doubly_stochastic,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Captioner:
        """From `get_config`."""
        models = {
            part: keras.saving.deserialize_keras_object(config.pop(part), custom_objects=custom_objects)
            for part in _PARTS
        }
        return cls(**models, **config)
