import os

import pytest

from kerasdl.data import text_file
from kerasdl.errors import UserError


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def message_of(path, **options):
    with pytest.raises(UserError) as caught:
        text_file.read(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- one file ---


def test_a_file_gives_its_text_with_one_kind_of_line_ending(tmp_path):
    path = write(tmp_path / "a.txt", "\ufeffÄ\r\nб\r\r\n字\n\n🙂\u2028 end")
    assert text_file.read(path) == "Ä\nб\n\n字\n\n🙂\u2028 end"


def test_a_single_file_is_read_whatever_its_suffix(tmp_path):
    assert text_file.read(write(tmp_path / "LICENSE", "free"), suffixes={".py"}) == "free"


def test_a_large_file_is_read_whole(tmp_path):
    content = "äb\n" * 10_000  # a character across the border of the first bytes read
    assert text_file.read(write(tmp_path / "a", content)) == content


def test_a_missing_file(tmp_path):
    assert f"no file or folder {tmp_path / 'a.txt'}" in message_of(tmp_path / "a.txt")


@pytest.mark.parametrize("content", ["", "\ufeff", " \r\n\t\n"])
def test_an_empty_file(tmp_path, content):
    assert "a.txt is empty; expected UTF-8 text" in message_of(write(tmp_path / "a.txt", content))


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"\xff\xfea\0", "line 1 has 0x00 at byte 4"),  # UTF-16
        ("ä\nbc".encode() + b"\xe9d", "line 2 has 0xe9 at byte 3"),  # Latin-1 after two bytes for one character
        (b"a\r\nb\rc\r\n\r\n\xfc", "line 5 has 0xfc at byte 1"),
        (b"a\rbc\xfc", "line 2 has 0xfc at byte 3"),
        (b"\xef\xbb\xbfab\xc3", "line 1 has 0xc3 at byte 6"),  # cut within a character
        (b"a\n" * 10_000 + b"\x80", "line 10001 has 0x80 at byte 1"),
        (b"a\nbc\0" + b"\xff" * 10_000, "line 2 has 0x00 at byte 3"),  # binary
    ],
)
def test_a_file_that_is_no_utf_8_names_the_place(tmp_path, content, place):
    assert f"a.txt is no UTF-8 text: {place} of the line; expected" in message_of(write(tmp_path / "a.txt", content))


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_file_without_permission(tmp_path):
    path = write(tmp_path / "a.txt", "a")
    path.chmod(0)
    assert "cannot be read (Permission denied)" in message_of(path)


# --- a folder ---


def test_a_folder_gives_its_files_in_order_of_names(tmp_path, capsys):
    for name in ("b.txt", "a/z.py", "a/c/d.TXT", "Z.md"):
        write(tmp_path / name, f"{name}\r\n")
    for hidden in (".git/config", "a/.draft.txt"):
        write(tmp_path / hidden, "hidden")
    write(tmp_path / "a" / "__init__.py", "")
    assert text_file.read(tmp_path) == "Z.md\n\nb.txt\n\na/z.py\n\na/c/d.TXT\n"
    assert text_file.read(tmp_path, suffixes=[".txt"]) == "b.txt\n\na/c/d.TXT\n"
    assert capsys.readouterr().err == ""


def test_a_folder_leaves_out_what_is_no_text_and_counts_it(tmp_path, capsys):
    write(tmp_path / "a.bin", b"text\0")
    write(tmp_path / "b.txt", "text")
    write(tmp_path / "c.txt", b"caf\xe9")
    assert text_file.read(tmp_path) == "text"
    assert capsys.readouterr().err == f"Left out 2 of 3 files, no UTF-8 text, such as {tmp_path / 'a.bin'}.\n"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
def test_a_folder_leaves_out_pipes(tmp_path):
    os.mkfifo(tmp_path / "a")
    write(tmp_path / "b", "text")
    assert text_file.read(tmp_path) == "text"


@pytest.mark.parametrize(
    ("content", "suffixes", "expected"),
    [
        (None, None, "holds no text (0 files looked at, 0 of them no UTF-8 text); expected at least one UTF-8 text"),
        ("", None, "(1 files looked at, 0 of them"),
        (b"\xff", None, "(1 files looked at, 1 of them"),
        ("text", [".py", ".md"], "(0 files looked at, 0 of them no UTF-8 text); expected at least one UTF-8 text file"),
        ("text", [".py", ".md"], "whose name ends in .md, .py;"),
    ],
)
def test_a_folder_without_text(tmp_path, content, suffixes, expected):
    if content is not None:
        write(tmp_path / "a.txt", content)
    assert expected in message_of(tmp_path, suffixes=suffixes)
