import numpy as np
import pytest

from kerasdl.data import tfds
from kerasdl.errors import UserError


def test_missing_data_names_the_folder_and_two_ways_out(tmp_path, monkeypatch):
    def offline(*args, **options):
        raise OSError("no network")

    monkeypatch.setattr("tensorflow_datasets.builder", offline)
    with pytest.raises(UserError) as error:
        tfds.images("cifar10", "train", tmp_path)
    message = str(error.value)
    assert "\n" not in message
    for part in (str(tmp_path), "no network", "--data-dir", "KERASDL_DATA_DIR"):
        assert part in message


def test_the_newest_version_counts():
    assert tfds._version("3.0.10") > tfds._version("3.0.2")


@pytest.mark.real
def test_cifar10_is_what_its_paper_says(data_dir):
    images, labels = tfds.images("cifar10", "test", data_dir)
    assert images.shape == (10_000, 32, 32, 3)
    assert images.dtype == np.uint8
    assert np.bincount(labels).tolist() == [1000] * 10
    assert tfds.class_names("cifar10", data_dir)[3] == "cat"
    assert 120 < images.mean() < 123
