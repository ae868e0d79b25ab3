"""What a file is to a set: a clip, words beside one, or a stranger. Known suffixes decide, and for others one probe."""

from __future__ import annotations

import re
from pathlib import Path

from .stills import is_animated, readable
from .video import is_video

VIDEOS = (  # in tar files the first of these is the clip of a sample
    *("mp4", "m4v", "mov", "mkv", "webm", "avi", "mpg", "mpeg", "ts", "wmv", "flv", "ogv"),
    *("3gp", "3g2", "m2ts", "mts", "m2v", "vob", "asf", "f4v", "mxf", "nut", "qt", "divx", "dv", "y4m", "ivf"),
    *("h264", "hevc", "mjpeg"),
)
MOVING = ("gif", "apng")
MAY_MOVE = ("webp", "avif", "png")
STILLS = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".avif"}
CLIP_SUFFIXES = {f".{suffix}" for suffix in (*VIDEOS, *MOVING)}
WORDS = {".txt", ".caption"}
STRANGERS = {  # which are told by their names alone; nothing else may lie in them that is a clip
    *(".json", ".jsonl", ".csv", ".tsv", ".md", ".toml", ".yaml", ".yml", ".ini", ".xml", ".html", ".log", ".nfo"),
    *(".srt", ".vtt", ".ass", ".ssa", ".sub", ".pdf", ".url", ".lnk", ".db", ".py", ".sh", ".bat", ".exe"),
    *(".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".onnx", ".npy", ".npz", ".h5", ".parquet", ".arrow", ".lock"),
    *(".zip", ".7z", ".rar", ".gz", ".xz", ".bz2", ".zst", ".tgz", ".tar", ".torrent"),
    *(".wav", ".mp3", ".m4a", ".aac", ".flac", ".ogg", ".opus", ".wma"),  # a cover is no clip
    *(".part", ".crdownload", ".download", ".partial", ".tmp", ".ytdl", ".aria2", ".bak"),
}
SYSTEM = {"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found", "#recycle"}
FRAMES_TO_A_CLIP = 8
"""A folder with so many numbered pictures to each video in it is a clip of pictures, and the video a stranger."""


def is_clip(path: Path) -> bool:
    """Tell whether a file is a clip: by its suffix, or, where that says nothing, by what is in it.

    What has a clip's suffix is one even if it cannot be read: it has to be named, and not passed over.
    """
    suffix = path.suffix.lower()
    if suffix in CLIP_SUFFIXES or not path.is_file():
        return suffix in CLIP_SUFFIXES
    if suffix in STILLS:
        return is_animated(path) or suffix in (".webp", ".avif") and not readable(path)
    return suffix not in WORDS | STRANGERS and is_video(path)


def visible(folder: Path) -> list[Path]:
    """Return what is in a folder, in natural order, without hidden files and those that systems leave behind."""
    return sorted((e for e in folder.iterdir() if not is_hidden(e.name)), key=lambda entry: natural_key(entry.name))


def is_hidden(name: str) -> bool:
    return name.startswith(".") and name not in (".", "..") or name.lower() in SYSTEM


def natural_key(name: str) -> list:
    """Sort "clip 10" after "clip 9"."""
    return [int(part) if part.isdecimal() else part.casefold() for part in re.split(r"(\d+)", name)]


def picture_files(folder: Path) -> list[Path]:
    """Return the numbered pictures of a folder that is one clip, in natural order; none where it is another folder.

    A few files of other kinds make no other folder of it.
    """
    entries = visible(folder)
    stills = [entry for entry in entries if entry.suffix.lower() in STILLS and entry.is_file()]
    numbered = [entry for entry in stills if re.search(r"\d", entry.stem)]
    clips = sum(entry.suffix.lower() in CLIP_SUFFIXES for entry in entries)
    if len(numbered) <= len(stills) - len(numbered) or len(numbered) < FRAMES_TO_A_CLIP * clips:
        return []
    if any(holds_clips(entry) for entry in entries if entry.is_dir()) or is_animated(numbered[0]):
        return []
    return numbered


def holds_clips(folder: Path) -> bool:
    """Tell whether a folder looks as if clips were in it, by names alone."""
    if is_output(folder):
        return False
    entries = visible(folder)
    numbered = any(entry.suffix.lower() in STILLS and re.search(r"\d", entry.stem) for entry in entries)
    return numbered or any(entry.suffix.lower() in CLIP_SUFFIXES or entry.is_dir() for entry in entries)


def is_output(folder: Path) -> bool:
    """Tell whether the program wrote a folder itself: a run's, with previews that look like clips, or a cache."""
    if (folder / "options.toml").is_file() and (folder / "log.jsonl").is_file():
        return True
    first = next(folder.iterdir(), None)
    return first is not None and bool(re.fullmatch(r"[0-9a-f]{64}\.safetensors", first.name))
