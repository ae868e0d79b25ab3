"""Frames of videos as 8-bit RGB, in the colours that a player shows.

What turns YUV into RGB stands in marks of the file: matrix, range, primaries, transfer. FFmpeg's own conversion takes
unmarked video for BT.601, whatever its size is; players take high definition for BT.709.
"""

from __future__ import annotations

from dataclasses import dataclass

import av
import av.filter
from PIL import Image

from .shot import ClipError
from .stills import opaque

UNMARKED = 2
MATRICES = {1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020"}  # by ITU-T H.273
CONSTANT_LUMINANCE = 10
HDR = {16: "HDR10 (PQ)", 18: "HLG"}
LINEAR = 8
WIDE = {9: "bt2020", 11: "smpte431", 12: "smpte432"}  # primaries beyond those of a screen for sRGB
HIGH_DEFINITION = 720, 1280  # lines, columns: from either on, unmarked video is BT.709
TO_SDR = (
    "ffmpeg -i IN -vf zscale=t=linear:npl=203,format=gbrpf32le,zscale=p=bt709,tonemap=mobius:desat=0,"
    "zscale=t=bt709:m=bt709:r=tv,format=yuv420p -c:v libx264 -crf 16 OUT.mp4"
)
CAREFUL = "flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"


@dataclass(frozen=True)
class Marks:
    """What decides how a frame becomes RGB."""

    width: int
    height: int
    pixels: str
    matrix: int
    range: int
    primaries: int
    transfer: int


def marks_of(frame: av.VideoFrame) -> Marks:
    marks = (frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc)
    return Marks(frame.width, frame.height, frame.format.name, *map(int, marks))


def is_rgb(frame: av.VideoFrame) -> bool:
    return frame.format.is_rgb or frame.format.name.startswith(("gray", "mono", "pal8", "ya"))


def note_on(frame: av.VideoFrame) -> str:
    """Say what a frame's colours are, where they are not those of every video, and what is done about them."""
    marks, notes = marks_of(frame), []
    depth = max((part.bits for part in frame.format.components), default=8)
    if depth > 8 and not frame.format.name.startswith("rgb5"):
        notes.append(f"{depth} bit to 8")
    if has_alpha(marks.pixels):
        notes.append("transparent pixels made white")
    if marks.matrix == UNMARKED and not is_rgb(frame):
        notes.append(f"no colour marks, read as {matrix_of(marks).upper()}")
    if marks.primaries in WIDE:
        notes.append(f"{WIDE[marks.primaries]} colours to those of a screen")
    return ", ".join(notes)


def matrix_of(marks: Marks) -> str:
    high = marks.height >= HIGH_DEFINITION[0] or marks.width >= HIGH_DEFINITION[1]
    return MATRICES.get(marks.matrix, "bt709" if high else "bt601")


def has_alpha(pixels: str) -> bool:
    return pixels.startswith(("yuva", "rgba", "bgra", "argb", "abgr", "gbrap", "ya8", "ya16", "pal8"))


def refuse_what_has_no_match(marks: Marks) -> None:
    """Refuse colours that 8-bit sRGB cannot show without a choice that is the user's.

    Raises:
        ClipError: with the command that converts them.
    """
    kind = HDR.get(marks.transfer)
    if kind or marks.transfer == LINEAR or marks.matrix == CONSTANT_LUMINANCE:
        kind = kind or ("linear light" if marks.transfer == LINEAR else "BT.2020 with constant luminance")
        raise ClipError(f"it is {kind}, whose pixels would be learnt too pale; convert it to BT.709 first: {TO_SDR}")


class Converter:
    """Turns frames into pictures; a graph of FFmpeg's filters is kept for as long as frames have the same marks."""

    def __init__(self):
        self.marks: Marks | None = None
        self.graph: av.filter.Graph | None = None

    def __call__(self, frame: av.VideoFrame) -> Image.Image:
        """Return an opaque picture of the frame's own size.

        Raises:
            ClipError: no player's conversion is known for its colours.
        """
        marks = marks_of(frame)
        try:
            if self.graph is None or marks != self.marks:
                refuse_what_has_no_match(marks)
                self.marks, self.graph = marks, graph_for(marks, frame)
            self.graph.push(frame)
            shown = self.graph.pull()
        except av.FFmpegError as error:
            raise ClipError(f"its pixels ({marks.pixels}) cannot be made RGB ({error.strerror})") from error
        if has_alpha(marks.pixels):
            return opaque(Image.fromarray(shown.to_ndarray()))
        return Image.fromarray(shown.to_ndarray())


def graph_for(marks: Marks, frame: av.VideoFrame) -> av.filter.Graph:
    """Make the way from a frame to 8-bit RGB, with alpha where it has any."""
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=marks.width, height=marks.height, format=frame.format, time_base=frame.time_base or av.time_base
    )
    steps = [*to_screen(marks), *to_rgb(marks, is_rgb(frame))]
    graph.link_nodes(source, *(graph.add(name, arguments) for name, arguments in steps), graph.add("buffersink"))
    graph.configure()
    return graph


def to_rgb(marks: Marks, rgb: bool) -> list[tuple[str, str]]:
    wide = marks.primaries in WIDE
    full = "pc" if marks.range == 2 or marks.pixels.startswith("yuvj") else "tv"
    read = f":in_color_matrix={'bt709' if wide else matrix_of(marks)}:in_range={full}"
    return [
        ("scale", f"out_range=pc:{CAREFUL}" + ("" if rgb else read)),
        ("format", "rgba" if has_alpha(marks.pixels) else "rgb24"),
    ]


def to_screen(marks: Marks) -> list[tuple[str, str]]:
    """Return the step from wide colours to those of BT.709, nothing for others."""
    if marks.primaries not in WIDE or has_alpha(marks.pixels):
        return []
    matrix = {"bt709": "bt709", "bt2020": "bt2020ncl"}.get(matrix_of(marks), "smpte170m")
    given = f"ispace={matrix}:iprimaries={WIDE[marks.primaries]}:itrc=bt709"
    full = "pc" if marks.range == 2 else "tv"
    return [
        ("format", "yuv444p10"),
        ("colorspace", f"space=bt709:primaries=bt709:trc=bt709:range={full}:irange={full}:{given}"),
    ]
