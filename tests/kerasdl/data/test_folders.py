"""Files of a folder: left-overs passed over, links followed once."""

import os

import pytest

from kerasdl.data import folders


def make(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def listed(root):
    return [path.relative_to(root).as_posix() for path in folders.files(root)[0]]


LEFT_OVER = (
    ".DS_Store", "._0.jpg", ".ipynb_checkpoints/0.jpg", "a/.ipynb_checkpoints/0-checkpoint.jpg", "__MACOSX/._0.jpg",
    "__macosx/a/0.jpg", "Thumbs.db", "a/THUMBS.DB", "desktop.ini", "@eaDir/0.jpg/SYNOPHOTO_THUMB_M.jpg",
    "$RECYCLE.BIN/0.jpg", "~$notes.docx", "__pycache__/a.pyc",
)  # fmt: skip


def test_what_systems_leave_behind_is_passed_over_and_the_rest_is_in_order(tmp_path):
    make(tmp_path, "b.jpg", "a/z.jpg", "a/c/d.JPG", "Z.tif", *LEFT_OVER)
    assert listed(tmp_path) == ["Z.tif", "b.jpg", "a/z.jpg", "a/c/d.JPG"]


def test_a_folder_that_is_named_is_read_whatever_its_name(tmp_path):
    make(tmp_path, ".photos/a.jpg")
    assert listed(tmp_path / ".photos") == ["a.jpg"]


def test_links_are_followed_once_and_circles_end(tmp_path):
    make(tmp_path / "elsewhere", "x.jpg", "deep/y.jpg")
    make(tmp_path / "photos", "a/1.jpg", "b/2.jpg")
    links = {"a/up": "photos", "a/self": "photos/a", "b/far": "elsewhere", "c": "elsewhere", "d.jpg": "missing.jpg"}
    for name, target in links.items():
        (tmp_path / "photos" / name).symlink_to(tmp_path / target)
    (tmp_path / "photos/e.jpg").symlink_to(tmp_path / "photos/e.jpg")
    found = listed(tmp_path / "photos")
    assert sorted(name.rsplit("/", 1)[-1] for name in found) == ["1.jpg", "2.jpg", "d.jpg", "e.jpg", "x.jpg", "y.jpg"]


def test_what_cannot_be_read_is_told_apart(tmp_path):
    make(tmp_path, "a.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "pipe.jpg")
    found, unread = folders.files(tmp_path)
    assert [path.name for path in found] == ["a.jpg"]
    assert [path.name for path in unread] == ["link.jpg", "pipe.jpg"]


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_folder_without_permission_is_named(tmp_path):
    make(tmp_path, "a.jpg", "b/c.jpg")
    (tmp_path / "b").chmod(0)
    assert folders.files(tmp_path) == ([tmp_path / "a.jpg"], [tmp_path / "b"])
