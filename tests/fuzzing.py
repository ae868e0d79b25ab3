"""Ways to damage files, by seeds, and the rule that what reads them ends well or says why in a line."""

import json
import os
import resource
import struct
import time
from contextlib import contextmanager
from random import Random

SECONDS, BYTES = 10.0, 3 * 2**30
"""Of one case: of time, and of memory beyond what the process had."""

VALUES = [
    *(None, True, False, 0, -1, 1, 2, 3, 7, 1.5, -0.0, 1e308, float("nan"), float("inf"), 2**31, 2**62, 10**400),
    *("", "x", "\x1b[2J\x07", "\ud800", "a" * 100_000, "org/kernel", "../../etc/passwd", [], {}, [[]], {"a": {}}),
    *([0], [2**62] * 3, ["x"], list(range(1000)), json.loads("[" * 500 + "]" * 500)),
]


def damaged_bytes(data, random):
    """Change a few bytes, cut, lengthen, blank or repeat a part."""
    data, size = bytearray(data), max(1, len(data))
    way = random.randrange(7)
    start, end = sorted(random.randrange(size) for _ in range(2))
    if way == 0:
        for _ in range(random.choice((1, 1, 3, 20))):
            data[random.randrange(size)] ^= 1 << random.randrange(8)
    elif way == 1:
        for _ in range(random.choice((1, 8))):  # where headers are
            data[random.randrange(min(size, 400))] = random.randrange(256)
    elif way == 2:
        del data[start:]
    elif way == 3:
        del data[start : start + random.choice((1, 8, 100))]
    elif way == 4:
        data[start:end] = bytes(end - start)
    elif way == 5:
        data[start:start] = random.randbytes(random.choice((1, 8, 100)))
    else:
        data += data[start:end] or b"\n"
    return bytes(data)


def damaged_value(value, random):
    """Put a strange value somewhere into nested lists and objects, or take something away, or add it."""
    if not isinstance(value, dict | list) or not value or random.random() < 0.15:
        return random.choice(VALUES)
    value = type(value)(value)
    key = random.choice(list(value) if isinstance(value, dict) else range(len(value)))
    way = random.random()
    if way < 0.1:
        del value[key]
    elif way < 0.15 and isinstance(value, dict):
        value[random.choice(("", "more", "\x1b[31m", "a" * 5000))] = random.choice(VALUES)
    else:
        value[key] = damaged_value(value[key], random)
    return value


def as_json(value):
    try:
        return json.dumps(value).encode()
    except ValueError:  # a number of 401 digits
        return json.dumps(value, default=str).encode()


def damaged_header(data, random):
    """Damage what a safetensors file says of its tensors or, in its metadata, of itself."""
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    own = header.get("__metadata__", {}).get("stillmotion")
    if own and random.random() < 0.6:
        header["__metadata__"]["stillmotion"] = as_json(damaged_value(json.loads(own), random)).decode()
    else:
        header = damaged_value(header, random)
    text = as_json(header)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def damaged(data, random):
    looks_right = 2 <= int.from_bytes(data[:8], "little") < len(data)
    return (damaged_header if looks_right and random.random() < 0.5 else damaged_bytes)(data, random)


@contextmanager
def limited():
    """Give this process so much more memory, and no more."""
    pages = int(open("/proc/self/statm").read().split()[0]) if os.path.exists("/proc/self/statm") else None
    before = resource.getrlimit(resource.RLIMIT_AS)
    if pages:
        resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def check(cases, read, make, names=()):
    """Assert of so many seeds that `read(make(Random(seed)))` ends, or fails with a line of text that has one of
    `names` in it, in time and memory; tells how often each happened."""
    ended = refused = 0
    with limited():
        for seed in range(cases):
            start = time.monotonic()
            print("seed", seed)  # the last one is that of any other error, which ends the test as it is
            try:
                read(make(Random(seed)))
                ended += 1
            except (ValueError, OSError) as error:
                said = " ".join(str(error).split())
                assert said and len(said) < 3000 and said.isprintable(), f"seed {seed}: {said[:300]!r}"
                assert not names or any(str(name) in said for name in names), f"seed {seed} names no file: {said[:300]}"
                refused += 1
            assert time.monotonic() - start < SECONDS, f"seed {seed} takes {time.monotonic() - start:.0f} s"
    return ended, refused
