"""Child process of the tests: train the tiny model in the folder given, print where it stopped.

usage: run_walks.py FOLDER KIND JSON_SETTINGS [RESULT.safetensors]
"""

import dataclasses
import json
import os
import sys
from pathlib import Path

import torch

from genrec.testing.walks import tiny_model, walks
from genrec.training.finetune import finetune
from genrec.training.module import trainable
from genrec.training.progress import save_weights
from genrec.training.settings import TrainSettings


def main() -> None:
    torch.set_num_threads(1)
    folder, kind, settings = Path(sys.argv[1]), sys.argv[2], TrainSettings(**json.loads(sys.argv[3]))
    if os.environ.get("RANK") == "1" and (seconds := os.environ.get("GENREC_TEST_SECOND_RANK_SAVES")):
        settings = dataclasses.replace(settings, save_seconds=float(seconds))  # as if its clock ran ahead
    data = walks(tied=True)
    dropout = float(os.environ.get("GENREC_TEST_DROPOUT", "0.2"))

    first = os.environ.get("RANK", "0") == "0"  # two processes would write into each other's lines

    def say(text: str) -> None:
        if first:
            print(text, flush=True)

    def evaluate(_: object) -> dict[str, float]:
        say("step")
        return {"recall@10": 0.0}

    result = finetune(tiny_model(kind, data, dropout=dropout), data, settings, folder, evaluate=evaluate)
    say(json.dumps({"status": result.status, "steps": result.steps, "log": result.log}))
    if len(sys.argv) > 4 and first:
        save_weights(trainable(result.model), Path(sys.argv[4]))


if __name__ == "__main__":
    main()
