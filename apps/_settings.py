"""What the configurations of all applications share: fields, their bounds, defaults that follow from other fields."""

from __future__ import annotations

import functools
import inspect
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_type_hints

from kerasdl.errors import UserError

RECIPE: Any = None
"""Default of a field that `recipe` fills in."""

PLACES = ("data", "data_dir", "images", "unlabeled", "photographs")
"""Fields that say where data lies, not what it is: a run goes on with others, if the data is the same."""

OF_DATA = (
    *PLACES, "dataset", "text_column", "label_column", "quoting", "validation_ratio", "fold", "held_out_ratio",
    "strict", "image_size", "patch_size", "patches",
)  # fmt: skip
"""Fields that say which examples are read; `--tiny` has its own."""


LARGEST = 2**31 - 1
"""Largest whole number of a field, if it says no other: sizes and counts are int32 in TensorFlow."""


class _Bounds:
    """`AtLeast[int, 1]` is an int of 1 or more, `Between[float, 0, 1]` a float in [0, 1]; a field's None passes.

    Neither inf nor nan does.
    """

    def __init__(self, low: float, high: float = math.inf) -> None:
        self.low, self.high = low, high

    def __class_getitem__(cls, items: tuple[Any, ...]) -> Any:
        """The annotated type."""
        return Annotated[items[0], cls(*items[1:])]

    def check(self, name: str, value: float | None) -> None:
        """Checks the value of a field.

        Raises:
            UserError: it is not within the bounds, or a whole number that TensorFlow cannot hold.
        """
        if value is None:
            return
        whole = isinstance(value, int)
        high = LARGEST if whole and self.high == math.inf else self.high
        if not (self.low <= value <= high and (whole or math.isfinite(value))):
            expected = f"{self.low} or more" if self.high == math.inf and not value > high else f"{self.low} to {high}"
            raise UserError(f"--{name.replace('_', '-')} is {value}; expected {expected}")


if TYPE_CHECKING:
    from typing import Annotated as AtLeast
    from typing import Annotated as Between

    from apps._contract import Splits
    from kerasdl.data.divided import Divided, HeldOut
    from kerasdl.data.text_data import Texts
    from kerasdl.models.feature_space import FeatureSpace
else:
    AtLeast = Between = _Bounds


def at_least(low: float, **values: float | None) -> None:
    """Checks values whose bound depends on others, or that are no fields.

    Raises:
        UserError: one is below `low`; None passes.
    """
    for name, value in values.items():
        _Bounds(low).check(name, value)


def between(low: float, high: float, **values: float | None) -> None:
    """Checks values whose bounds depend on others, or that are no fields.

    Raises:
        UserError: one does not lie in [low, high]; None passes.
    """
    for name, value in values.items():
        _Bounds(low, high).check(name, value)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Training.

    A configuration extends this class, or `Training`; its own defaults of inherited fields are keywords of the class:
    `class Config(Training, epochs=16)`. Defaults that follow from other fields are `RECIPE` and come from a static
    method `recipe`, whose parameters are those other fields, and which returns the values by name.
    """

    epochs: AtLeast[int, 1] = 1
    """Passes over the training examples."""
    batch_size: AtLeast[int, 1] = 64
    """Examples a step."""
    patience: AtLeast[int | None, 1] = None
    """Stop after this many epochs without a better score on the validation data; None never does."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute precision of training; auto: bfloat16 where the machine has instructions for it. All else is float32."""
    seed: Between[int, 0, 2**32 - 1] = 0
    """Seed of weights, order and all that is drawn; the validation split does not depend on it."""
    devices: Between[int, 1, 8] = 1
    """Graphics cards of this machine to train on at once: each takes an equal part of every batch."""

    FURTHER: ClassVar[tuple[str, ...]] = ()
    """Fields that say how many epochs follow upon --epochs, in their order."""
    UNDIVIDED: ClassVar[str] = ""
    """Why batches cannot be divided among several devices; empty: they can."""

    @property
    def last_epoch(self) -> int:
        """Number of the epoch with which the training ends."""
        return self.epochs + sum(getattr(self, name) for name in self.FURTHER)

    @property
    def laid_out(self) -> str | None:
        """The flag whose course is laid out for --epochs, so that a run cannot go on for more of them; None: it can."""
        for name in self.FURTHER:
            if getattr(self, name):
                return f"--{name.replace('_', '-')} {getattr(self, name)}"
        schedule = getattr(self, "schedule", "constant")
        return None if schedule in ("constant", "plateau") else f"--schedule {schedule}"

    def __init_subclass__(cls, **defaults: Any) -> None:
        """Takes other defaults of inherited fields."""
        super().__init_subclass__()
        inherited = {name: hint for base in cls.__bases__[::-1] for name, hint in _hints(base).items()}
        cls.__annotations__ = {name: inherited[name] for name in defaults} | inspect.get_annotations(cls)
        for name, value in defaults.items():
            setattr(cls, name, value)

    def __post_init__(self) -> None:
        """Fills in the recipe and checks every bound.

        Raises:
            UserError: a value is not within its bounds, or something that needs validation data has none.
        """
        own: Any = type(self)
        if hasattr(own, "recipe"):
            deciding = {name: getattr(self, name) for name in inspect.signature(own.recipe).parameters}
            for name, value in own.recipe(**deciding).items():
                if getattr(self, name) is RECIPE:
                    object.__setattr__(self, name, value)
        for name, hint in _hints(own).items():
            for bound in getattr(hint, "__metadata__", ()):
                if isinstance(bound, _Bounds):
                    bound.check(name, getattr(self, name))
        if self.devices > 1:
            if self.UNDIVIDED:
                raise UserError(f"--devices is {self.devices}; expected 1: {self.UNDIVIDED}")
            if self.batch_size % self.devices:
                raise UserError(f"--batch-size is {self.batch_size}; expected a multiple of --devices {self.devices}")
        if getattr(self, "validation_ratio", None) == 0 and getattr(self, "fold", None) is None:
            if self.patience:
                raise UserError("--patience needs validation data; give --validation-ratio above 0")
            if getattr(self, "schedule", None) == "plateau":
                raise UserError("--schedule plateau needs validation data; give --validation-ratio above 0")


@functools.cache
def _hints(settings: Any) -> dict[str, Any]:
    return get_type_hints(settings, include_extras=True)


@dataclass(frozen=True, kw_only=True)
class Training(Settings):
    """Optimizer."""

    learning_rate: AtLeast[float, 1e-12] = 1e-3
    """Peak learning rate."""
    weight_decay: AtLeast[float, 0] = 0.0
    """Decoupled weight decay: this times the learning rate is the fraction taken from each weight in a step."""
    schedule: Literal["constant", "linear", "step", "cosine", "one-cycle", "plateau"] = "cosine"
    """Course of the learning rate; step: /10 at 50 % and 75 %; plateau: no warm-up, /10 after 5 epochs without gain."""
    warmup_epochs: AtLeast[float, 0] = 0.0
    """Epochs in which the learning rate rises; one-cycle takes 45 % of the training for 0."""
    clip_norm: AtLeast[float | None, 1e-12] = None
    """Largest global norm of the gradient; None does not clip."""

    def __post_init__(self) -> None:
        """Checks every value."""
        super().__post_init__()
        self.check_warmup(self.epochs)

    def check_warmup(self, epochs: int, name: str = "epochs") -> None:
        """Checks that the schedule has room for the warm-up.

        Args:
            epochs: length of the training, or of a part of it that has a schedule of its own.
            name: of the field that says so.

        Raises:
            UserError: it has none.
        """
        latest = {"step": 0.5, "one-cycle": 0.9}.get(self.schedule, 1.0) * epochs
        if self.warmup_epochs and self.schedule != "plateau" and self.warmup_epochs >= latest:
            raise UserError(
                f"--warmup-epochs is {self.warmup_epochs:g}; expected less than {latest:g}, since with --schedule "
                f"{self.schedule} the rate falls from there on in {epochs} epochs; give less, or more by "
                f"--{name.replace('_', '-')}"
            )


@dataclass(frozen=True, kw_only=True)
class DividedData(Settings):
    """Data."""

    fold: str | None = None
    """n-fold cross-validation: validate by this of so many equal parts of the training data, such as 2/5, in place of
    the usual part for validation."""

    def __post_init__(self) -> None:
        """Checks every value."""
        super().__post_init__()
        if self.fold is not None:
            _ = self.held_out  # refuses what is no fold

    @property
    def held_out(self) -> HeldOut:
        """What the readers of `kerasdl.data` hold out for validation."""
        if self.fold is None:
            return getattr(self, "validation_ratio", 0.0)
        from kerasdl.data.divided import Fold  # here, since it imports NumPy

        try:
            return Fold.read(self.fold)
        except ValueError as error:
            raise UserError(f"--fold is {self.fold}; {error}") from None


@dataclass(frozen=True, kw_only=True)
class PictureData(DividedData):
    """Data."""

    data: Path | None = None
    """Own pictures: a folder with one sub-folder a class, or with train/, validation/, test/ above those."""
    data_dir: Path | None = None
    """TFDS folder of the public data set; else KERASDL_DATA_DIR, else TFDS' own default and download."""
    validation_ratio: Between[float, 0, 0.8] = 0.1  # a tenth of own pictures is for the test
    """Share of the training pictures held out to choose epochs and settings; 0 trains on everything."""
    strict: bool = False
    """Stop at the first broken picture of --data instead of leaving it out."""


@dataclass(frozen=True, kw_only=True)
class Augmentation(Settings):
    """Augmentation."""

    augment: bool = True
    """Apply the augmentations below; --no-augment turns all of them off."""
    flip: Literal["none", "random", "alternating"] = "none"
    """Left-right flips; alternating: each picture every other epoch."""
    padding: AtLeast[int, 0] = 0
    """Random shifts of up to this many pixels, the border reflected."""
    rotation_degrees: AtLeast[float, 0] = 0.0
    """Random rotation of up to this angle either way."""
    scale_ratio: Between[float, 0, 0.9] = 0.0
    """Random zoom of up to this share either way."""
    color_jitter: Between[float, 0, 1] = 0.0
    """Random brightness, contrast and saturation, each by up to this share."""
    corrupted: Between[float, 0, 1] = 0.0
    """Share of the training pictures with noise, blurred or compressed as JPEG, so that the network bears it."""
    cutout_size: AtLeast[int, 0] = 0
    """Side of a random grey square, in pixels; 0 for none."""
    mixup_alpha: AtLeast[float, 0] = 0.0
    """Mix pairs of pictures and labels by a share drawn from Beta(alpha, alpha)."""
    progressive: Literal["none", "resize", "crop"] = "none"
    """Train at 3/4 and 7/8 of the picture size in the first half and the third quarter of the epochs: scaled or cut."""

    def __post_init__(self) -> None:
        """Checks every value."""
        super().__post_init__()
        side = getattr(self, "image_size", None)
        if side is not None and self.augment:  # a cut takes an eighth of the side besides
            between(0, max(0, side - 1 - (side // 8 if self.progressive == "crop" else 0)), padding=self.padding)

    @property
    def laid_out(self) -> str | None:
        """The sizes of the pictures, or the schedule."""
        return super().laid_out if self.progressive == "none" else f"--progressive {self.progressive}"


@dataclass(frozen=True, kw_only=True)
class Measurement(Settings):
    """Measurement."""

    validation_pictures: AtLeast[int, 2] = 2000
    """Validation pictures with which as many generated ones are compared after each epoch, at most."""
    feature_epochs: AtLeast[int, 1] = 8
    """Training of the small network whose features distances are measured in."""
    feature_network: str | None = None
    """In its place a network of keras.applications; with InceptionV3 the distance is FID."""
    feature_weights: str | None = None
    """Weights of --feature-network without its top: `imagenet` (Keras downloads them) or a .weights.h5 file."""
    cache: Path | None = Path("runs/features")
    """Folder in which the small network is kept, once trained; None keeps it nowhere."""

    def __post_init__(self) -> None:
        """Checks every value."""
        super().__post_init__()
        if (self.feature_network is None) != (self.feature_weights is None):
            raise UserError("--feature-network and --feature-weights belong together; give both, or none")

    def space(self, data: Splits) -> FeatureSpace:
        """The space in which distances are measured; the name of a trained one has `training_pictures` of the data."""
        from kerasdl.models import feature_space  # here, since it imports Keras

        if self.feature_network is not None:
            return feature_space.from_applications(self.feature_network, str(self.feature_weights))
        images, labels, name = data.train.images, data.train.labels, data.info["training_pictures"]
        return feature_space.trained(images, labels, data=name, epochs=self.feature_epochs, folder=self.cache)


@dataclass(frozen=True, kw_only=True)
class Squares(PictureData):
    """Squares of pictures."""

    data: Path | None = None
    """Own pictures in place of --dataset: a folder, searched with its sub-folders; squares are cut out of them."""
    patch_size: AtLeast[int, 1] = 48
    """Side of the squares cut out of --data, in pixels."""
    patches: AtLeast[int, 1] = RECIPE
    """Squares of each picture: 50 of --data, 4 of --photographs."""
    photographs: Path | None = None
    """Larger pictures: a folder, or a .csv whose column image names files; every second step learns from squares of
    --patch-size of them, the others from --dataset."""


@dataclass(frozen=True, kw_only=True)
class Noise(Settings):
    """Noise."""

    noise: Literal["gaussian", "salt_and_pepper", "masking"] = "gaussian"
    """gaussian: added to every value; salt_and_pepper: black and white pixels; masking: black pixels."""
    strength: float = RECIPE
    """Strength of the noise: the standard deviation of gaussian noise on the scale 0..255, 25; else the ratio of
    changed pixels, 0.2 or 0.5."""
    blind: bool = True
    """Train with strengths from 0 to 2.2 times --strength, so that one network fits them all."""
    grey: Between[float, 0, 1] = 0.25
    """Share of the training pictures shown in grey, with the same noise in all channels, as a scan in grey has it."""
    rounded: Between[float, 0, 1] = 0.5
    """Share of the training pictures whose noisy values are clipped and rounded, as a file of 8 bits holds them."""

    def __post_init__(self) -> None:
        """Checks every value."""
        super().__post_init__()
        between(0, 255 if self.noise == "gaussian" else 1, strength=self.strength)


Quoting = Literal["auto", "none", "double", "backslash"]
"""What double quotes mean in a .csv or .tsv file, see `kerasdl.data.table.read`."""


@dataclass(frozen=True, kw_only=True)
class TextData(DividedData):
    """Data."""

    data: Path | None = None
    """Own texts: a .csv, .tsv or .jsonl file in UTF-8, any number of classes."""
    data_dir: Path | None = None
    """TFDS folder that holds imdb_reviews; else KERASDL_DATA_DIR, else TFDS' own default and download."""
    text_column: str = "text"
    """Column of --data that holds the texts."""
    label_column: str = "label"
    """Column of --data that holds the labels."""
    quoting: Quoting = "auto"
    """Quotes in .csv, .tsv: none (as text), double (around fields), backslash (inside as \\"), auto (by the file)."""
    validation_ratio: Between[float, 0, 0.8] = 0.1  # a tenth is for the test
    """Share of the training texts held out to choose epochs and settings; 0 trains on everything."""
    excerpts: AtLeast[int, 0] = RECIPE
    """Excerpts of one or two sentences of each training text, which the network learns with its label, too, so that
    it knows short texts: 3, but none of --data."""

    @staticmethod
    def recipe(data: Path | None) -> dict[str, Any]:
        """Own texts may be short, or their sentences tell nothing of their class."""
        return {"excerpts": 3 if data is None else 0}


@dataclass(frozen=True, kw_only=True)
class UnlabeledTexts(TextData, Training):
    """Texts without labels."""

    unlabeled: Path | None = None
    """More own texts, without labels: a file in UTF-8 with one a line, or a table that has --text-column."""
    pretrain_epochs: AtLeast[int, 0] = 0
    """Passes over unlabelled and training texts in which, first of all, the recurrent layers learn to predict words."""
    teacher: Path | None = None
    """Exported text classifier of the same classes: the network learns its answers to the unlabelled texts, too."""

    def __post_init__(self) -> None:
        """Checks every value."""
        super().__post_init__()
        if self.pretrain_epochs:
            self.check_warmup(self.pretrain_epochs, "pretrain_epochs")
            if self.devices > 1:
                raise UserError("--pretrain-epochs trains on one device; leave it or --devices out")
        if self.unlabeled is not None and self.data is None:
            raise UserError("--unlabeled stands beside --data; IMDB has unlabelled reviews of its own; leave it out")
        if self.unlabeled is not None and not self.pretrain_epochs and self.teacher is None:
            raise UserError("--unlabeled is read for --pretrain-epochs or --teacher; give one of them, or leave it out")
        if self.teacher is not None and self.fold is not None:
            raise UserError("--teacher has learned from texts that a --fold validates by; leave one or the other out")
        if self.teacher is not None and self.data is not None and self.unlabeled is None:
            raise UserError("--teacher answers texts without labels; add some by --unlabeled FILE")

    def table(self) -> Divided[Texts]:
        """The texts of --data, and those without labels beside them; see `kerasdl.data.text_data.from_table`."""
        from kerasdl.data import text_data  # here, since it imports NumPy

        assert self.data is not None
        return text_data.from_table(
            self.data,
            text_column=self.text_column,
            label_column=self.label_column,
            held_out=self.held_out,
            unlabeled=self.unlabeled,
            quoting=self.quoting,
        )


@dataclass(frozen=True, kw_only=True)
class CaptionData(DividedData):
    """Data."""

    data: Path | None = None
    """Captions: a CSV or TSV (columns image, caption), COCO's JSON, or a folder with one a split; else --dataset."""
    images: Path | None = None
    """Folder of the pictures of --data; else the folder `images` beside the captions."""
    quoting: Quoting = "auto"
    """Quotes in .csv, .tsv: none (as text), double (around fields), backslash (inside as \\"), auto (by the file)."""
    dataset: Literal["flickr8k", "coco_captions"] = "flickr8k"
    """flickr8k: a folder of that name; coco_captions: from TFDS, whose pictures are written to --cache once."""
    data_dir: Path | None = None
    """Folder that holds flickr8k/ (images/, train.csv, ...) or TFDS' coco_captions/; else KERASDL_DATA_DIR."""
    validation_ratio: Between[float, 0, 0.8] = 0.08  # a tenth is for the test
    """Share of the pictures, if there is no split for it, held out to choose epochs and settings; 0: none."""
    image_size: AtLeast[int, 8] = 224
    """Side of the square to which pictures are scaled, in pixels."""
    min_count: AtLeast[int, 1] = 3
    """Words that the training captions hold less often are unknown; they are never said."""
    max_words: AtLeast[int, 1] = 20
    """Longest caption, in words; training captions are cut there."""
