"""What processes that train a LoRA of one base on one machine hold of it: each its own copy, or one for all.

    python benchmarks/shared_base.py
    python benchmarks/shared_base.py --widths 320 640 1280 1280 --precision bf16 --processes 2

Builds a base in Stable Diffusion 1's layout with random weights in a temporary folder, starts 1, 2 and 4 processes that
load it, put a LoRA into it and compute its first gradients, and reads from /proc (Linux) what each holds then. `base`
are the weights as they are held; `its own` is what a process has written (Anonymous); `its share` also counts pages of
files, each divided by the number of processes that have it (Pss). A process that only imported its libraries comes
first. Also prints a hash of the gradients of each process, which is the same for all.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from femtobooth.core.console import Terminal
from femtobooth.core.events import listening, table
from femtobooth.core.machine import give_back_freed_memory
from femtobooth.generator import adapter_layers, locate
from femtobooth.generator.families.family import Family
from femtobooth.generator.formats.folder import save_folder
from femtobooth.generator.load import load
from femtobooth.generator.memory import held, told
from femtobooth.generator.train_settings import LoraSettings


def build(folder: Path, widths: list[int]) -> None:
    """Write a base of these widths; its tokenizer and text encoder are the bundled base's."""
    model = load(str(locate.bundled_folder()))
    width = model.text_encoders["text_encoder"].config.hidden_size
    unet = {"sample_size": 64, "block_out_channels": widths, "attention_head_dim": 8, "cross_attention_dim": width}
    model.unet = UNet2DConditionModel(**unet)  # type: ignore[attr-defined]
    model.vae = AutoencoderKL(block_out_channels=(64,), latent_channels=4, sample_size=64)
    save_folder(model, folder, card="# random weights\n")


def train(base: str, precision: str) -> tuple[Family, dict[str, int | str]]:
    """Do what a process does before its first optimizer step."""
    torch.manual_seed(0)
    before = memory()["Anonymous"]
    model = load(base, held=precision)  # type: ignore[arg-type]
    bytes_of_base = sum(held([*one.parameters(), *one.buffers()]) for one in model.trainable.values())
    adapter_layers.install(model, LoraSettings(), seed=0)
    unet = model.denoiser
    condition = model.condition(model.tokenize(["a dog"]))
    noisy = torch.randn(1, unet.config.in_channels, 8, 8)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision != "fp32"):
        model.denoise(noisy, torch.tensor([500]), condition).square().mean().backward()
    digest = hashlib.sha256()
    for one in unet.parameters():
        if one.grad is not None:
            digest.update(one.grad.numpy().tobytes())
    gc.collect()
    give_back_freed_memory()
    return model, {"base": bytes_of_base, "before": before, "gradients": digest.hexdigest()[:12]}


def memory() -> dict[str, int]:
    """Read what this process holds, in bytes, by the kernel's names."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
    return {name: 1024 * int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}


def child(base: str, precision: str) -> None:
    """Train, say so, and wait until all have, before looking."""
    held, facts = train(base, precision)
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(facts | memory()), flush=True)
    sys.stdin.readline()
    del held


def measured(count: int, base: Path, precision: str, shared: bool) -> list[dict[str, int]]:
    """Let so many processes train at once; returns what each held."""
    environment = {**os.environ, "FEMTOBOOTH_CACHE": str(base.parent / "cache"), "OMP_NUM_THREADS": "1"}
    environment |= {locate.SHARED: "1"} if shared else {}
    words = [sys.executable, __file__, "--child", str(base), "--precision", precision]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    started = [subprocess.Popen(words, **pipes) for _ in range(count)]  # type: ignore[call-overload]
    for one in started:
        one.stdout.readline()  # that it is ready
    for one in started:
        print(file=one.stdin, flush=True)
    found = [json.loads(one.stdout.readline()) for one in started]
    for one in started:
        one.communicate("\n")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs=4, default=[128, 256, 512, 512], help="of the UNet's levels")
    parser.add_argument("--precision", default="fp32", help="what the base is held in")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.precision)
        return
    with tempfile.TemporaryDirectory() as name:
        base = Path(name) / "base"
        if os.fork() == 0:  # so that what building takes is given back
            build(base, options.widths)
            os._exit(0)
        os.wait()
        rows = []
        for shared in (False, True):
            for count in options.processes:
                found = measured(count, base, options.precision, shared)
                share = [one["Pss"] for one in found]
                row = ["one for all" if shared else "each its own", count, told(found[0]["base"])]
                row += [told(max(one["Anonymous"] for one in found)), told(max(share)), told(sum(share))]
                rows.append([*row, ", ".join({str(one["gradients"]) for one in found})])
        columns = ["base", ">processes", ">base", ">its own", ">its share", ">all", "gradients"]
        rows.insert(0, ["none", 1, "", told(found[0]["before"]), "", "", ""])
        table(f"UNet of {options.widths}, {options.precision}", columns, rows)


if __name__ == "__main__":
    with listening(Terminal()):
        main()
