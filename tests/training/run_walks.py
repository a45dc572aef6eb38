"""Child process of the tests: train the tiny model in the folder given, print where it stopped.

usage: run_walks.py FOLDER KIND JSON_SETTINGS [RESULT.safetensors]

KIND: decoder, t5, or lora: a Qwen2 with adapters and new rows.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from genrec.models.adapters import LoraSettings, add_lora
from genrec.models.pretrained import extend_rows
from genrec.testing.text_models import tiny_text_model
from genrec.testing.walks import tiny_model, walks
from genrec.training.dataset import TrainingData
from genrec.training.finetune import finetune
from genrec.training.module import trainable
from genrec.training.progress import save_weights
from genrec.training.settings import TrainSettings
from genrec.vocab.text_vocabulary import extend_vocabulary


def started(kind: str, dropout: float) -> tuple[Any, TrainingData]:
    """The model and its data."""
    data = walks(tied=True)
    if kind != "lora":
        return tiny_model(kind, data, dropout=dropout), data
    model, words = tiny_text_model("qwen2")
    vocabulary = extend_vocabulary(words, data.codes)
    extend_rows(model, vocabulary)
    adapted = add_lora(model, vocabulary.token_map, LoraSettings(r=2, dropout=dropout))
    return adapted, dataclasses.replace(data, token_map=vocabulary.token_map)


def main() -> None:
    torch.set_num_threads(1)
    folder, kind, settings = Path(sys.argv[1]), sys.argv[2], TrainSettings(**json.loads(sys.argv[3]))
    if os.environ.get("RANK") == "1" and (seconds := os.environ.get("GENREC_TEST_SECOND_RANK_SAVES")):
        settings = dataclasses.replace(settings, save_seconds=float(seconds))  # as if its clock ran ahead
    model, data = started(kind, float(os.environ.get("GENREC_TEST_DROPOUT", "0.2")))

    first = os.environ.get("RANK", "0") == "0"  # two processes would write into each other's lines

    def say(text: str) -> None:
        if first:
            print(text, flush=True)

    def evaluate(_: object) -> dict[str, float]:
        say("step")
        return {"recall@10": 0.0}

    result = finetune(model, data, settings, folder, evaluate=evaluate)
    say(json.dumps({"status": result.status, "steps": result.steps, "log": result.log}))
    if len(sys.argv) > 4 and first:
        save_weights(trainable(result.model), Path(sys.argv[4]))


if __name__ == "__main__":
    main()
