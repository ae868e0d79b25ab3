"""Videos by FFmpeg: their frames and times, upright, until the end or the first damage."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import cast

import av
import av.container
import av.filter
from PIL import Image

from .colour import Converter, note_on
from .shot import ClipError, Damage, Shot

CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,mxf,nut,gxf,wtv"
STREAMS = f"{CONTAINERS},mpegvideo,m4v,h264,hevc,obu,ivf,dv,mjpeg,yuv4mpegpipe,gif,apng,wav,mp3,flac,aac"
"""Demuxers that read one file and nothing else: a playlist (concat, hls, dash, sdp …) would open others, and images'
names may be patterns. Sound is there so that it is called by its name."""

CHECKED = {"err_detect": "crccheck+bitstream+buffer+explode"}
"""Errors of the stream are errors. Left to itself a decoder paints over what it cannot read."""

ATTACHED = 0x400  # the disposition of a cover, which is a picture and no video
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own know no transparency
STILL_TURN = {1: Image.Transpose.ROTATE_90, 2: Image.Transpose.ROTATE_180, 3: Image.Transpose.ROTATE_270}


def opened_video(path: Path, formats: str = STREAMS) -> av.container.InputContainer:
    """Open a file as a video, and no other file with it.

    Raises:
        ClipError: it is none.
    """
    if not path.is_file():  # a pipe would be waited for, for ever
        raise ClipError("not a file that can be read")
    options = {"protocol_whitelist": "file", "format_whitelist": formats}
    try:
        return av.open(str(path), options=options, metadata_errors="replace")
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ClipError(f"not a video, or cut off before its index ({reason})") from error


def video_stream(container: av.container.InputContainer) -> av.VideoStream | None:
    """Return the first video in a file that is no cover of a song."""
    streams = (stream for stream in container.streams.video if not int(stream.disposition) & ATTACHED)
    return next(streams, None)


def is_video(path: Path) -> bool:
    """Tell by a file's content whether there is video in it. Bare streams are not looked for: any bytes may be one."""
    try:
        with opened_video(path, CONTAINERS) as container:
            return video_stream(container) is not None
    except ClipError:
        return False


def video_shots(path: Path) -> Iterator[Shot]:
    """Return the shots of a video, up to its end or to the first damage; a frame without a time follows the one
    before."""
    with opened_video(path) as container:
        stream = video_stream(container)
        if stream is None:
            raise ClipError("no video in it, only sound or data")
        if stream.codec_context is None:
            raise ClipError("its kind of video is not known, or its header is damaged")
        step = 1 / float(stream.average_rate or stream.guessed_rate or 25)
        aspect, convert, extra = aspect_of(stream), Converter(), ""
        first = last = None
        for frame, joined in whole_frames(intact_frames(container, stream)):
            time = frame.time
            if time is None or (last is not None and time <= last):
                time = 0.0 if last is None else last + step
            if first is None:
                first, extra = time, notes_on(frame, aspect, joined)
            last = time
            stay = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else step
            yield Shot(time - first, stay, upright_size(frame, aspect), partial(upright, frame, aspect, convert), extra)


def aspect_of(stream: av.VideoStream) -> float:
    """Return width by height of a pixel."""
    aspect = float(stream.sample_aspect_ratio or 1)
    return aspect if 1 / 4 < aspect < 4 else 1.0  # no camera's pixels; a broken header must not cost gigabytes


def notes_on(frame: av.VideoFrame, aspect: float, joined: bool) -> str:
    turn = round(frame.rotation / 90) % 4 * 90
    notes = (
        f"turned by {turn}°" if turn else "",
        f"pixels {aspect:.3g} as wide as high" if aspect != 1 else "",
        "interlaced, its fields joined" if joined else "",
        note_on(frame),
    )
    return ", ".join(filter(None, notes))


def decoded_frames(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """Decode a video, with its transparency where it is marked to have any."""
    # all cores at once; a worker is one of many and keeps to its own
    threads = "AUTO" if multiprocessing.parent_process() is None else "NONE"
    name = ALPHA_DECODERS.get(stream.codec_context.name)
    if name in av.codecs_available and stream.metadata.get("alpha_mode") == "1":
        decoder = av.CodecContext.create(name, "r")
        decoder.extradata = stream.codec_context.extradata
        for packet in container.demux(stream):
            yield from decoder.decode(packet if packet.size else None)
        return
    stream.thread_type = threads
    stream.codec_context.options = CHECKED
    yield from container.decode(stream)


def intact_frames(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """Decode until the end; raise Damage where a frame is broken: those after it are built on it."""
    good = False
    try:
        for frame in decoded_frames(container, stream):
            if not frame.is_corrupt:
                good = True
                yield frame
            elif good:  # before the first good one: a recording cut between key frames
                raise Damage("damaged or cut off")
    except (av.FFmpegError, OSError) as error:
        raise Damage("damaged or cut off") from error


def whole_frames(frames: Iterator[av.VideoFrame]) -> Iterator[tuple[av.VideoFrame, bool]]:
    """Return the frames with the two fields of interlaced ones made one picture, as players do; and whether some
    were."""
    for frame in frames:
        if frame.interlaced_frame:
            yield from ((whole, True) for whole in deinterlaced(chain([frame], frames)))
            return
        yield frame, False


def deinterlaced(frames: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """Return a frame for each one, interpolated between fields where it is interlaced (BBC's bwdif)."""
    graph = kind = None
    for frame in frames:
        if kind != (kind := (frame.width, frame.height, frame.format.name)):  # a graph would scale others to its own
            yield from rest_of(graph)
            graph = deinterlacer(frame)
        graph.push(frame)
        yield from ready(graph)
    yield from rest_of(graph)


def rest_of(graph: av.filter.Graph | None) -> Iterator[av.VideoFrame]:
    if graph:
        graph.push(None)
        yield from ready(graph)


def deinterlacer(frame: av.VideoFrame) -> av.filter.Graph:
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or av.time_base
    )
    graph.link_nodes(source, graph.add("bwdif", "mode=send_frame:deint=interlaced"), graph.add("buffersink"))
    graph.configure()
    return graph


def ready(graph: av.filter.Graph) -> Iterator[av.VideoFrame]:
    try:
        while True:
            yield cast(av.VideoFrame, graph.pull())  # there is no sound in it
    except (av.BlockingIOError, av.EOFError):
        return


def upright_size(frame: av.VideoFrame, aspect: float) -> tuple[int, int]:
    width, height = max(1, round(frame.width * aspect)), frame.height
    return (height, width) if round(frame.rotation / 90) % 2 else (width, height)


def upright(frame: av.VideoFrame, aspect: float, convert: Converter) -> Image.Image:
    """Return a frame as RGB with square pixels, turned as its display matrix says (which FFmpeg leaves to the
    player)."""
    picture = convert(frame)
    if aspect != 1:
        picture = picture.resize((max(1, round(frame.width * aspect)), frame.height), Image.Resampling.BICUBIC)
    turn = STILL_TURN.get(round(frame.rotation / 90) % 4)
    return picture if turn is None else picture.transpose(turn)
