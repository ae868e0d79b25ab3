"""Time the opening of motion files over the path of the nodes, against reading and hashing their bytes once.

python benchmarks/loading.py [--rounds 5] [--megabytes 900] [--threads 1]

The node's peak memory is that of a process of its own, over the file's size (Linux only).
"""

import argparse
import hashlib
import multiprocessing
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from comfyui import load_comfyui
from side_by_side import measure, print_costs, print_header
from stillmotion.networks.config import InflationConfig, Temporal
from stillmotion.networks.formats.animatediff import to_animatediff
from stillmotion.networks.formats.modules import sd15_like
from stillmotion.networks.inflation import Inflation
from stillmotion.networks.motion_file import MotionInfo, write_motion_file
from stillmotion.networks.tensor_file import write_tensors

WIDTHS, UNITS = [320, 640, 1280, 1280], [2, 2, 2, 2]
CPU = torch.device("cpu")
CONFIG = InflationConfig(Temporal(middle=True))


def write_files(folder, megabytes):
    """Write AnimateDiff's size of module, in half precision, in its form and in ours; smaller where asked for."""
    scale = min(1.0, (megabytes / 900) ** 0.5)
    structure = sd15_like([max(32, int(width * scale) // 32 * 32) for width in WIDTHS], UNITS)
    info = MotionInfo(CONFIG, structure, schedule="linear")
    tensors = {n: torch.randn(t.shape).mul(0.02).half() for n, t in Inflation(CONFIG, structure).state_dict().items()}
    files = {"AnimateDiff's": folder / "animatediff.safetensors", "ours": folder / "motion.safetensors"}
    with open(files["AnimateDiff's"], "wb") as file:
        write_tensors(file, to_animatediff(info, tensors), {"format": "pt"})
    write_motion_file(files["ours"], tensors, info)
    return files


def read_and_hash(path):
    return hashlib.sha256(path.read_bytes()).digest()


def load_in_a_node(path):
    from stillmotion.nodes.motion import load_motion

    return load_motion(path)


def peak_bytes(run, path):
    """Return by how much the peak of a process of its own grows."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_growth, (run, path))


def _growth(run, path):
    load_comfyui()
    import stillmotion.networks.formats.files  # noqa: F401
    import stillmotion.nodes.motion  # noqa: F401

    before = high_water()
    kept = run(path)
    del kept
    return high_water() - before


def high_water():
    """Return the most bytes that this process ever had; what `resource` tells is inherited from its parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument("--megabytes", type=int, default=900, help="default 900")
    parser.add_argument("--threads", type=int, default=1, help="default 1")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    load_comfyui()
    with tempfile.TemporaryDirectory() as folder:
        files = write_files(Path(folder), options.megabytes)
        print_header("read and hash")
        for name, path in files.items():
            ways = {"read and hash": partial(read_and_hash, path), "node": partial(load_in_a_node, path)}
            costs = measure(ways, options.rounds, CPU)
            print_costs(f"{name}, {path.stat().st_size / 1e6:.0f} MB", costs, "read and hash")
            grown = peak_bytes(load_in_a_node, path)
            print(f"  peak memory of the node's process: {grown / path.stat().st_size:.2f} of the file's size")
            kept = load_in_a_node(path)
            began = time.perf_counter()
            assert all(load_in_a_node(path) is kept for _ in range(1000))
            print(f"  a second time: {1e3 * (time.perf_counter() - began):.0f} µs")
            del kept


if __name__ == "__main__":
    main()
