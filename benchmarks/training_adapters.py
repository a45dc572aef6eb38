"""An adapter beside the whole model: bytes on disk, memory of a training, logits after merging."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from genrec.data.histories import Histories
from genrec.decoding.index import CatalogIndex
from genrec.item_tokenizers.codes import ItemCodes
from genrec.models.adapters import LoraSettings, add_lora
from genrec.models.bundle import save_bundle
from genrec.models.export import export_merged
from genrec.models.pretrained import PretrainedSettings, extend_rows, load_pretrained
from genrec.models.recommender import DecodingSettings, GenerativeRecommender
from genrec.testing.text_models import byte_level_tokenizer
from genrec.training.dataset import TrainingData
from genrec.training.finetune import finetune
from genrec.training.settings import TrainSettings
from genrec.vocab.text_vocabulary import extend_vocabulary, load_tokenizer

SHAPE: dict[str, Any] = {
    "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 64, "tie_word_embeddings": True,
}  # fmt: skip
"""About 26 million weights beside the table."""
QWEN3_06B: dict[str, Any] = {
    "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
    "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True, "vocab_size": 151_936,
}  # fmt: skip
N_STEPS, N_ITEMS, LORA = 20, 2000, LoraSettings(r=16)


def shop() -> tuple[ItemCodes, Histories]:
    """Drawn items with three codes of 256, and drawn histories of 6 of them."""
    draw = np.random.default_rng(0)
    flat = draw.choice(256**3, N_ITEMS, replace=False)
    codes = ItemCodes.from_int(np.stack([flat // 65536, flat // 256 % 256, flat % 256], 1), (256,) * 3, "shop")
    return codes, Histories.from_lists(list(draw.integers(0, N_ITEMS, (160, 6))))


def trained(base: Path, folder: Path, lora: LoraSettings | None) -> tuple[GenerativeRecommender, Any]:
    """A recommender after a few steps, and its text vocabulary."""
    codes, histories = shop()
    vocabulary = extend_vocabulary(load_tokenizer(base), codes)
    model: Any = load_pretrained(PretrainedSettings(str(base)))
    extend_rows(model, vocabulary)
    if lora is not None:
        model = add_lora(model, vocabulary.token_map, lora)
    settings = TrainSettings(
        batch_size=8, max_steps=N_STEPS, learning_rate=1e-3, warmup_steps=2, softmax="vocab", eval_every=0,
        save_every=0, bf16=False,
    )  # fmt: skip
    finetune(model, TrainingData(histories, codes, vocabulary.token_map), settings, folder)
    index = CatalogIndex.build(codes)
    return GenerativeRecommender(model, vocabulary.token_map, codes, index, DecodingSettings(loss="vocab")), vocabulary


def megabytes(*files: Path) -> float:
    """Of files, and of all in folders."""
    return sum(each.stat().st_size for file in files for each in [file, *file.rglob("*")] if each.is_file()) / 1e6


def peak(base: Path, how: str) -> float:
    """Peak resident megabytes of a process that trains ``how`` (nothing, adapters, whole); Linux."""
    command = [sys.executable, __file__, str(base), how]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.strip().splitlines()[-1])


def of_qwen3_06b() -> float:
    """Megabytes of the trained weights of an adapter for the shape of Qwen3-0.6B, from their shapes."""
    codes, _ = shop()
    with torch.device("meta"):
        model = Qwen3ForCausalLM(Qwen3Config(**QWEN3_06B))
    layers = model.model.layers
    ends = ("q_proj", "k_proj", "v_proj", "o_proj")
    sides = sum(sum(getattr(layer.self_attn, name).weight.shape) for layer in layers for name in ends)
    return 4 * (LORA.r * sides + sum(codes.level_sizes) * QWEN3_06B["hidden_size"]) / 1e6


def measured() -> dict[str, float]:
    """All that this module says."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made:
        base, out = Path(made, "base"), Path(made)
        words = byte_level_tokenizer()
        torch.manual_seed(0)
        Qwen3ForCausalLM(Qwen3Config(vocab_size=len(words), **SHAPE)).save_pretrained(base)
        words.save_pretrained(base)
        recommender, vocabulary = trained(base, out / "checkpoints", LORA)
        save_bundle(out / "bundle", recommender, vocabulary=vocabulary)
        exported = export_merged(out / "bundle", out / "plain")
        found = {
            "adapter_megabytes": megabytes(out / "bundle" / "model" / "adapter"),
            "whole_model_megabytes": megabytes(*(out / "plain").glob("*.safetensors")),
            "qwen3_06b_adapter_megabytes": of_qwen3_06b(),
            "merge_logit_difference": exported.difference,
        }
        baseline = peak(base, "nothing")
        for how in ("adapters", "whole"):
            found[f"peak_megabytes_{how}"] = peak(base, how) - baseline
    return found


def main() -> None:
    """Train as asked, print the peak memory of this process."""
    base, how = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    if how != "nothing":
        with tempfile.TemporaryDirectory() as folder:
            trained(base, Path(folder), dataclasses.replace(LORA) if how == "adapters" else None)
    # not ru_maxrss, which a process inherits from the one that started it
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(int(status["VmHWM"].split()[0]) / 1024)


if __name__ == "__main__":
    main()
