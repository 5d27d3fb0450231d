"""The files of a person's folder, without what systems and programs leave behind in it."""

import os
from pathlib import Path

_LEFT_OVER = frozenset(
    {
        "__macosx",  # the archiver of macOS: a twin of the folder, without pictures
        "__pycache__",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "icon\r",
        "$recycle.bin",
        "system volume information",
        "lost+found",
        "@eadir",  # thumbnails of network storage
        "@recycle",
        "#recycle",
    }
)


def is_left_over(name: str) -> bool:
    """Whether a file or folder was put there by a system or program, by its name: hidden ones, thumbnails, bins."""
    return name.startswith((".", "~$")) or name.lower() in _LEFT_OVER


def files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Lists the files of a folder and its sub-folders, without left-overs.

    Links to folders are followed, but none upwards; each folder is listed once, so that links in a circle end.

    Args:
        folder: whatever its own name is.

    Returns:
        The files in the order of their names, a folder's own before those of its sub-folders; what cannot be read:
        folders without permission, pipes and sockets.
    """
    found: list[Path] = []
    unread: list[Path] = []
    root = folder.resolve()
    seen = {str(place) for place in (root, *root.parents)}

    def is_new(path: str) -> bool:
        place = os.path.realpath(path)
        new = place not in seen
        seen.add(place)
        return new

    for parent, folders, names in os.walk(
        folder, followlinks=True, onerror=lambda error: unread.append(Path(error.filename))
    ):
        folders[:] = [name for name in sorted(folders) if not is_left_over(name) and is_new(os.path.join(parent, name))]
        for path in (Path(parent, name) for name in sorted(names) if not is_left_over(name)):
            # Opening a pipe or a socket would wait for its other end; a dangling link is a file that is missing.
            (found if path.is_file() or not path.exists() else unread).append(path)
    return found, unread
