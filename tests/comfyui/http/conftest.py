"""A real ComfyUI server with the pack, a small random base and motion files, driven as its web page does."""

import asyncio
import copy
import itertools
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import safetensors.torch
import torch

PACK = Path(__file__).resolve().parents[3]
SD15 = "v1-5-pruned-emaonly-fp16.safetensors"  # what templates for any checkpoint name, here the toy
START = 240  # seconds; ten on an idle machine


@dataclass
class Result:
    """What became of one prompt: files on disk by node class, the classes that ran, the error as the user sees it."""

    files: dict[str, list[Path]] = field(default_factory=dict)
    ran: set[str] = field(default_factory=set)
    error: str = ""
    interrupted: bool = False


class Server:
    def __init__(self, comfyui, folder):
        self.folder, self.log = folder, folder / "log.txt"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        command = [sys.executable, str(comfyui / "main.py"), "--cpu", "--port", self.address.rpartition(":")[2]]
        command += ["--base-directory", str(folder), "--extra-model-paths-config", str(folder / "extra.yaml")]
        command += ["--database-url", "sqlite:///:memory:", "--disable-api-nodes", "--disable-auto-launch"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=environment)
        self._wait()
        self.object_info = self.get("/object_info")

    def _wait(self):
        deadline = time.monotonic() + START
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                return self.get("/queue")
            except urllib.error.URLError:
                time.sleep(0.2)
        self.stop()
        pytest.fail(f"ComfyUI did not start:\n{self.log.read_text()[-3000:]}")

    def stop(self):
        self.process.kill()
        self.process.wait()

    def get(self, path, raw=False):
        with urllib.request.urlopen(f"http://{self.address}{path}", timeout=60) as answer:
            return answer.read().decode() if raw else json.loads(answer.read())

    def post(self, path, data):
        body = json.dumps(data).encode()
        request = urllib.request.Request(f"http://{self.address}{path}", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or "{}")

    def run(self, prompt, interrupt_at=None):
        """Runs a prompt (API format) to its end; `interrupt_at` cancels it once the sampler has done so many steps."""
        return asyncio.run(self._run(prompt, interrupt_at))

    async def _run(self, prompt, interrupt_at):
        import aiohttp

        client, result = uuid.uuid4().hex, Result()
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"http://{self.address}/ws?clientId={client}", max_msg_size=0) as socket,
        ):
            try:
                asked = self.post("/prompt", {"prompt": prompt, "client_id": client})
            except urllib.error.HTTPError as refused:
                result.error = refused.read().decode()
                return result
            async for message in socket:
                if message.type != aiohttp.WSMsgType.TEXT:
                    continue
                kind, data = (json.loads(message.data).get(key) for key in ("type", "data"))
                if kind == "executing" and data["node"] is None:
                    break
                self._note(result, prompt, kind, data)
                if kind == "progress" and interrupt_at and data["value"] == interrupt_at:
                    self.post("/interrupt", {})
        outputs = self.get(f"/history/{asked['prompt_id']}")[asked["prompt_id"]]["outputs"]
        for node, output in outputs.items():
            saved = [item for items in output.values() for item in items if isinstance(item, dict)]
            paths = [self.folder / "output" / item["subfolder"] / item["filename"] for item in saved]
            result.files[prompt[node]["class_type"]] = paths
        return result

    @staticmethod
    def _note(result, prompt, kind, data):
        if kind == "executing":
            result.ran.add(prompt[data["node"]]["class_type"])
        elif kind == "execution_error":
            result.error = f"{data['node_type']}: {data['exception_message']}"
        elif kind == "execution_interrupted":
            result.interrupted = True

    def to_api(self, workflow):
        """The API format of a graph as the editor saves it: its links, and its widgets in the order of /object_info."""
        origins = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
        prompt = {}
        for node in workflow["nodes"]:
            if node["type"] == "MarkdownNote":
                continue
            values = iter(node["widgets_values"])
            inputs = dict(self._widgets(self.object_info[node["type"]]["input"], values))
            assert not (left := list(values)), f"{node['type']} has widget values left over: {left}"
            inputs |= {i["name"]: origins[i["link"]] for i in node["inputs"] if i["link"] is not None}
            prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
        return prompt

    def _widgets(self, specification, values, prefix=""):
        """Name and value of each widget; one that offers others, as newer hosts have them, comes before these."""
        for name, (kind, *rest) in [
            *specification.get("required", {}).items(),
            *specification.get("optional", {}).items(),
        ]:
            options = rest[0] if rest else {}
            if options.get("hidden") or not is_widget(kind):
                continue
            value = next(values, MISSING)
            if value is MISSING:
                assert name in specification.get("optional", {}), f"no value for {prefix}{name}"
                continue
            if options.get("control_after_generate"):
                assert next(values) in ("fixed", "randomize", "increment", "decrement")
            yield prefix + name, value
            if kind == "COMFY_DYNAMICCOMBO_V3":
                (chosen,) = [option for option in options["options"] if option["key"] == value]
                yield from self._widgets(chosen["inputs"], values, f"{prefix}{name}.")


MISSING = object()


def is_widget(kind):
    return isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3")


class Graph:
    """The shipped workflow in API format, small enough for tests, with its nodes by class and changes chained."""

    def __init__(self, prompt, frames=4, steps=3, seed=0):
        self.prompt = copy.deepcopy(prompt)
        self.set("KSampler", steps=steps, seed=seed).set("EmptyLatentImage", batch_size=frames, width=64, height=64)
        self.add("SaveLatent", samples=[self.id("KSampler"), 0], filename_prefix="test")

    def id(self, kind):
        return next(id for id, node in self.prompt.items() if node["class_type"] == kind)

    def inputs(self, kind):
        return self.prompt[self.id(kind)]["inputs"]

    def add(self, kind, **inputs):
        id = str(1 + max(map(int, self.prompt)))  # nodes may have been removed
        self.prompt[id] = {"class_type": kind, "inputs": inputs}
        return id

    def set(self, kind, **inputs):
        self.inputs(kind).update(inputs)
        return self

    def remove(self, *kinds):
        self.prompt = {id: node for id, node in self.prompt.items() if node["class_type"] not in kinds}
        return self


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A base directory of ComfyUI with the pack, a random base and random motion files for it."""
    folder = tmp_path_factory.mktemp("comfyui")
    for name in ("custom_nodes", "input", "output", "user", "models/checkpoints", "models/stillmotion", "more/motion"):
        (folder / name).mkdir(parents=True)
    (folder / "custom_nodes" / "Still-Motion").symlink_to(PACK, target_is_directory=True)
    (folder / "extra.yaml").write_text(f"mine:\n  base_path: {folder / 'more'}\n  stillmotion: motion\n")
    write_base(folder / "models/checkpoints/toy.safetensors")
    (folder / f"models/checkpoints/{SD15}").hardlink_to(folder / "models/checkpoints/toy.safetensors")
    return folder


def write_base(path):
    """The untrained toy with a decoder whose pictures are full of contrast."""
    from stillmotion.trainer.commands.toy import make_toy
    from stillmotion.trainer.options import ToyOptions

    make_toy(ToyOptions(output=path, steps=0, unet="small"))
    tensors = safetensors.torch.load_file(path)
    for name, tensor in tensors.items():
        if "taesd_decoder" in name and len(tensor) == 3:  # the last layer, to red, green and blue
            tensor.mul_(20) if tensor.ndim > 1 else tensor.fill_(0.2)
    safetensors.torch.save_file(tensors, path)


@pytest.fixture(scope="session")
def structure(models):
    from safetensors import safe_open
    from stillmotion.networks.sites import structure_from_ldm

    prefix = "model.diffusion_model."
    with safe_open(models / "models/checkpoints/toy.safetensors", "pt") as file:
        names = [name for name in file.keys() if name.startswith(prefix)]
        return structure_from_ldm({n.removeprefix(prefix): tuple(file.get_slice(n).get_shape()) for n in names})


@pytest.fixture(scope="session")
def motion(models, structure):
    """Writes a motion file of random weights, as if it had been trained."""
    from stillmotion.networks.inflation import Inflation
    from stillmotion.networks.motion_file import MotionInfo, write_motion_file

    def write(path, config, seed=0, fits=structure):
        generator = torch.Generator().manual_seed(seed)
        inflation = Inflation(config, fits)
        for name, parameter in inflation.named_parameters():
            mean = float("gamma" in name or name.endswith("norm.weight"))
            torch.nn.init.normal_(parameter, mean, 0.05, generator=generator)
        info = MotionInfo(config, fits, frames=4, fps=8.0, width=64, height=64)
        write_motion_file(models / path, inflation.state_dict(), info)
        return info

    return write


@pytest.fixture(scope="session")
def server(comfyui, models):
    """One for all tests: starting it takes longer than most of them."""
    server = Server(comfyui, models)
    yield server
    server.stop()


@pytest.fixture
def shipped():
    return json.loads((PACK / "workflows/few_shot_motion.json").read_text(encoding="utf-8"))


@pytest.fixture
def graph(server, shipped):
    """Makes a small graph out of the shipped workflow, or of another one."""
    return lambda workflow=shipped, **settings: Graph(server.to_api(workflow), **settings)


@pytest.fixture(scope="session")
def unet(models):
    prefix, path = "model.diffusion_model.", models / "models/checkpoints/toy.safetensors"
    tensors = safetensors.torch.load_file(path)
    return {n.removeprefix(prefix): t.float() for n, t in tensors.items() if n.startswith(prefix)}


@pytest.fixture(scope="session")
def lora(models, unet):
    """A random LoRA of rank 2 on every key and value matrix, in the names of its usual trainers."""
    tensors = {}
    for name, weight in unet.items():
        if name.endswith((".to_k.weight", ".to_v.weight")):
            key = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
            tensors[f"{key}.lora_up.weight"] = torch.randn(weight.shape[0], 2)
            tensors[f"{key}.lora_down.weight"] = torch.randn(2, weight.shape[1]) * 0.1
            tensors[f"{key}.alpha"] = torch.tensor(2.0)
    save(tensors, models / "models/loras/style.safetensors")
    return "style.safetensors"


@pytest.fixture(scope="session")
def controlnet(models, unet):
    """The encoder of the base with random layers around it, in the names of the original ControlNet."""
    tensors = {n: t for n, t in unet.items() if n.startswith(("time_embed", "input_blocks", "middle_block"))}
    widths = [3, 16, 16, 32, 32, 96, 96, 256, 320]
    layers = {f"input_hint_block.{2 * i}": (b, a, 3, 3) for i, (a, b) in enumerate(itertools.pairwise(widths))}
    blocks = 1 + max(int(n.split(".")[1]) for n in tensors if n.startswith("input_blocks"))
    layers |= {f"zero_convs.{i}.0": (320, 320, 1, 1) for i in range(blocks)} | {"middle_block_out.0": (320, 320, 1, 1)}
    for name, shape in layers.items():
        tensors |= {f"{name}.weight": torch.randn(shape) * 0.1, f"{name}.bias": torch.zeros(shape[0])}
    save(tensors, models / "models/controlnet/shape.safetensors")
    return "shape.safetensors"


def save(tensors, path):
    path.parent.mkdir(exist_ok=True)
    safetensors.torch.save_file({name: tensor.half().contiguous() for name, tensor in tensors.items()}, path)
