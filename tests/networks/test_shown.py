"""Text from outside as it comes before people: one line, short, and nothing that a terminal obeys."""

import logging

import pytest
from motion_files import EVERYTHING, info_of, trained
from stillmotion.networks.motion_file import MotionFileError, read_motion_file, write_motion_file
from stillmotion.networks.shown import ShownFilter, shown, shown_lines


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a cat, ein „Ball“ — 球 é", "a cat, ein „Ball“ — 球 é"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("two\nlines\r", "two\\nlines\\r"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\ud800", "\\ud800"),
        (b"\x00", "b'\\x00'"),
    ],
)
def test_what_a_terminal_obeys_is_escaped(text, expected):
    assert shown(text) == expected
    assert shown(text).isprintable()


def test_of_what_is_long_the_ends_are_kept():
    text = shown("start" + "a" * 10**6 + "end", 90)
    assert len(text) <= 95 and text.startswith("start") and text.endswith("end") and "…" in text
    assert len(shown("\x1b" * 10**6, 90)) < 500


def test_lines_stay_lines():
    assert shown_lines("a\n\x1bb") == "a\n\\x1bb"


def test_the_log_shows_nothing_else(caplog):
    logger = logging.getLogger("stillmotion.test_shown")
    logger.addFilter(ShownFilter())
    logger.warning("%s: %d %%\n%s", "\x1b[2Jname", 3, "b" * 10**5)
    assert "\x1b" not in caplog.text and "\\x1b[2Jname: 3 %" in caplog.text and len(caplog.text) < 5000


def test_a_hostile_name_and_value_come_out_harmless(tmp_path):
    path = tmp_path / "a\x1b[31m.safetensors"
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(MotionFileError, match="GGUF file of quantised weights") as caught:
        read_motion_file(path)
    assert str(caught.value).isprintable()
    with pytest.raises(FileNotFoundError) as missing:
        read_motion_file(tmp_path / "none\x07")
    assert str(missing.value).isprintable()


def test_a_caption_that_is_no_text_for_a_header_can_be_written(tmp_path):
    info = info_of(EVERYTHING)
    info = type(info)(**{**info.__dict__, "captions": ("\ud83d red",)})
    write_motion_file(tmp_path / "a.safetensors", trained(EVERYTHING), info)
    assert read_motion_file(tmp_path / "a.safetensors")[0].captions == ("\ud83d red",)
