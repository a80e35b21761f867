"""How much memory `python -m tajax.merge` takes for vectors or checkpoints of a large ViT, in copies of the model.

No data are needed. Weights and vectors are drawn and written to a directory that is removed afterwards. Anonymous
memory is what the process holds itself; pages of files that the system has read for it come and go as there is room.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import transformers

from tajax import encoders, trees, vector_files

MODELS = {
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    "base": {},
    "toy": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128},
}
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", choices=tuple(MODELS), default="large", help="geometry of the ViT, patches of 16")
    parser.add_argument("--vectors", type=int, default=8, help="how many are merged")
    parser.add_argument("--whole", action="store_true", help="merge fine-tuned models and not task-vector files")
    parser.add_argument("--prepare", nargs="*", default=[], help="what is done to the vectors before")
    parser.add_argument("--methods", nargs="+", default=["task_arithmetic", "ties"], help="merging methods")
    parser.add_argument("--scratch", type=Path, help="where to write, several copies of the model a vector")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        size, places = _written(Path(scratch), MODELS[options.model], options.vectors, whole=options.whole)
        what = "fine-tuned models" if options.whole else "vectors"
        print(f"{options.model}: {size / MIB:,.0f} MiB a copy, {options.vectors} {what}", flush=True)
        for method in options.methods:
            out = Path(scratch, method)
            command = ["-m", "tajax.merge", *places, "--family=vit", f"--method={method}", f"--out={out}", "--quiet"]
            command += [f"--prepare={name}" for name in options.prepare]
            seconds, own, whole = _watched([sys.executable, *command])
            print(
                f"{method:18} {seconds:6.1f} s, at most {own / MIB:,.0f} MiB = {own / size:.2f} copies; "
                f"with pages of files {whole / size:.2f}",
                flush=True,
            )


def _written(home: Path, geometry: dict[str, int], count: int, *, whole: bool) -> tuple[int, list[str]]:
    """The bytes of the model, and the places of the base and of the vectors, or of whole models."""
    transformers.ViTModel(transformers.ViTConfig(**geometry), add_pooling_layer=False).save_pretrained(home / "base")
    transformers.ViTImageProcessor().save_pretrained(home / "base")
    encoder = encoders.load(str(home / "base"), family="vit")
    places = [str(home / "base")]
    for number in range(count):
        rng = np.random.default_rng(number)
        tau = jax.tree.map(
            lambda x, rng=rng: np.float32(1e-3) * rng.standard_normal(np.shape(x), np.float32), encoder.params
        )
        if whole:
            finetuned = jax.tree.map(lambda x, t: np.asarray(x) + t, encoder.params, tau)
            encoder.save(home / str(number), finetuned, format="huggingface")
            places.append(str(home / str(number)))
            continue
        made = vector_files.vector_metadata(
            model="base", base_sha256=encoder.identity.sha256, task=str(number), family="vit"
        )
        vector_files.save_task_vector(home / f"{number}.safetensors", tau, made)
        places.append(str(home / f"{number}.safetensors"))
    return 4 * trees.count_params(encoder.params), places


def _watched(command: list[str]) -> tuple[float, int, int]:
    """Seconds, and the largest anonymous and whole resident memory in bytes, looked at every 20 ms."""
    start, own, whole = time.monotonic(), 0, 0
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            try:
                lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            except OSError:
                break
            found = {
                line.split(":")[0]: int(line.split()[1]) * 1024
                for line in lines
                if line.startswith(("RssAnon", "VmRSS"))
            }
            own, whole = max(own, found.get("RssAnon", 0)), max(whole, found.get("VmRSS", 0))
            time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return time.monotonic() - start, own, whole


if __name__ == "__main__":
    main()
