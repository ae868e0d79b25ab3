"""The clips in a folder and all folders in it, with the words that lie beside them; and what else lies there."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ...networks.shown import shown
from .captions import clip_key, read_caption
from .kinds import STILLS, WORDS, is_clip, is_output, picture_files, visible
from .source import NO_CAPTION, Source, is_text

log = logging.getLogger("stillmotion")

NAMED = 5  # files that a note names, of many


@dataclass
class Directory:
    """What is in a folder: `files`, folders of pictures that are a clip each (`sequences`), and other `folders`."""

    path: Path
    files: list[Path] = field(default_factory=list)
    sequences: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)


def walk(folder: Path, sequences: bool = True) -> Iterator[Directory]:
    """Return a folder and all folders in it, in natural order, each once whatever links there are.

    What this program wrote is passed over.

    Args:
        sequences: numbered pictures are a clip; False: they are pictures like others.
    """
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        path = waiting.pop()
        if is_new(path, seen):
            found = listed(path, seen, sequences)
            yield found
            waiting += reversed(found.folders)


def is_new(folder: Path, seen: set[tuple[int, int]]) -> bool:
    """Tell whether a folder comes for the first time, by whatever name."""
    stat = folder.stat()
    known = (stat.st_dev, stat.st_ino) in seen
    seen.add((stat.st_dev, stat.st_ino))
    return not known


def listed(folder: Path, seen: set[tuple[int, int]], sequences: bool) -> Directory:
    found = Directory(folder)
    for entry in visible(folder):
        if not entry.is_dir():
            found.files.append(entry)
        elif is_output(entry):
            continue
        elif sequences and picture_files(entry):
            if is_new(entry, seen):
                found.sequences.append(entry)
        else:
            found.folders.append(entry)
    return found


class Aside:
    """What lies in a set and is none of it: counted while the set is read, and said once, at its first end."""

    def __init__(self):
        self.count, self.names, self.done = 0, [], False

    def add(self, names: Iterable[str]) -> None:
        for name in () if self.done else names:
            self.count += 1
            if len(self.names) < NAMED:
                self.names.append(shown(name))

    def say(self, of: Path) -> None:
        if self.count and not self.done:
            more = f" and {self.count - len(self.names)} more" if self.count > len(self.names) else ""
            log.info(
                "%d files of %s are no clips, nor captions of any, and are left aside: %s%s",
                *(self.count, of, ", ".join(self.names), more),
            )
        self.done = True


def samples_in(directory: Directory, root: Path, caption: str | None, aside: Aside) -> Iterator[Source]:
    """Return the clips of one directory with their captions; what is neither goes to `aside`.

    Args:
        root: where names start.
        caption: one for all; None: each clip's own.
    """
    clips = [*(file for file in directory.files if is_clip(file)), *directory.sequences]
    words = words_in(directory.files)
    yield from captioned(clips, words, root, caption)
    known = {*clips, *(() if caption is not None else belonging(clips, words))}
    known |= {file for file in directory.files if caption is not None and file.suffix.lower() in WORDS}
    aside.add(name_in(file, root) for file in directory.files if file not in known)
    for folder in directory.sequences:
        aside.add(name_in(file, root) for file in strangers(folder))


def strangers(folder: Path) -> list[Path]:
    """Return what lies in a folder of pictures and is neither one of them nor words."""
    pictures = set(picture_files(folder))
    return [entry for entry in visible(folder) if entry not in pictures and entry.suffix.lower() not in WORDS]


def words_in(files: Iterable[Path]) -> dict[str, list[Path]]:
    """Return files of words by the name, or the name without its suffix, of the clip that they would belong to."""
    words: dict[str, list[Path]] = {}
    for file in files:
        if file.suffix.lower() in WORDS and file.is_file():
            words.setdefault(clip_key(file.name).removesuffix(file.suffix), []).append(file)
    return words


def keys_of(clip: Path) -> set[str]:
    """Return the names by which a clip's words are found: "a.mp4" by a.txt and a.mp4.txt, a folder by its own."""
    key = clip_key(clip.name)
    return {key} if clip.is_dir() else {key, key.removesuffix(clip.suffix)}


def belonging(clips: Iterable[Path], words: dict[str, list[Path]]) -> set[Path]:
    return {file for clip in clips for key in keys_of(clip) for file in words.get(key, [])}


def captioned(clips: Iterable[Path], words: dict[str, list[Path]], root: Path, caption: str | None) -> Iterator[Source]:
    """Give each clip its caption, or its problem: none, two, or one that is no text."""
    for clip in clips:
        name = name_in(clip, root)
        if not is_text(name):
            yield Source(clip, shown(name), caption or "", "its name is no UTF-8 text; give it another one")
        elif caption is not None:
            yield Source(clip, name, caption)
        else:
            yield source_of(clip, name, [file for key in sorted(keys_of(clip)) for file in words.get(key, [])], root)


def source_of(clip: Path, name: str, files: list[Path], root: Path) -> Source:
    if not files:
        text_file = clip.name if clip.is_dir() else clip.stem
        return Source(clip, name, problem=f"{NO_CAPTION}: write {text_file}.txt beside it, or give --caption")
    try:
        texts = {read_caption(file, name_in(file, root)) for file in files}
    except ValueError as error:
        return Source(clip, name, problem=str(error))
    origins = " and ".join(name_in(file, root) for file in files)
    if len(texts) > 1:
        return Source(clip, name, problem=f"two captions: {origins}")
    (text,) = texts
    return Source(clip, name, text, None if text else f"its caption is empty ({origins})")


def name_in(path: Path, root: Path) -> str:
    return path.name if path == root else path.relative_to(root).as_posix()


def pictures_in(directory: Directory) -> list[Path]:
    return [file for file in directory.files if file.suffix.lower() in STILLS and file.is_file()]
