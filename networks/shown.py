"""The one filter for text from files, names and options before it is shown in an error, a log or a table."""

from __future__ import annotations

import logging

LONGEST, LONGEST_LINE = 1000, 2000


def shown(value: object, most: int = LONGEST) -> str:
    """Return text in one line: what a terminal would obey is escaped, and of what is longer the ends are kept.

    Args:
        most: characters before escaping, which may make ten of one.
    """
    text = str(value)
    if len(text) > most:  # first, so that a megabyte is not escaped to be thrown away
        text = f"{text[: most * 2 // 3]} … {text[-(most // 3) :]}"
    return _escaped(text)


def shown_lines(text: str) -> str:
    """Return text whose lines stay lines, each as `shown` has it."""
    return "\n".join(shown(line, LONGEST_LINE) for line in text.split("\n"))


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class ShownFilter(logging.Filter):
    """For the project's logger: whatever comes into a message, no line of it can do harm to a terminal or a log."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        clean = shown_lines(message)
        if clean != message:
            record.msg, record.args = clean, ()  # without arguments a message is not formatted again
        return True
