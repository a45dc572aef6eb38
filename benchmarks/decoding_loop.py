"""Figures of the loop: whole searches beside Hugging Face ``generate`` with a dictionary trie, the same items asserted.

12,101 items of 4 codes of 256, random and distinct; beam 20, top-10, no length penalty. Models have random weights.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
from run import Figure, Measured, Options

N_ITEMS, N_LEVELS, LEVEL_SIZE = 12_101, 4, 256
N_BEAMS, TOP_K, N_HISTORY = 20, 10, 20
TEXT_VOCAB = 152_960  # item tokens included
GRID = {"128x1": (128, 1, 5), "128x4": (128, 4, 2), "512x1": (512, 1, 2)}  # prompt tokens, users, repeats
LEVEL_TARGET = {"128x1": 13, "128x4": 17, "512x1": 19}
SCORE_TOLERANCE = 5e-5
ABOUT = "12,101 random items of 4 codes of 256, beam 20, top-10, random weights, one thread, interleaved"


@dataclass
class Setup:
    """A model, the catalog and what both sides need of it."""

    model: Any
    tokens: Any
    index: Any
    tokens_NL: np.ndarray
    trie: dict[int, Any]


def setup(make_model: Callable[[Any], Any]) -> Setup:
    """The catalog, and the model that ``make_model`` returns for its vocabulary."""
    import torch

    from genrec.decoding.index import CatalogIndex
    from genrec.item_tokenizers.codes import ItemCodes
    from genrec.testing.oracles import ITEMS, dict_trie
    from genrec.vocab.token_map import TokenMap

    torch.set_num_threads(1)
    keys = np.random.default_rng(0).choice(LEVEL_SIZE**N_LEVELS, N_ITEMS, replace=False)
    rows = np.stack([keys // LEVEL_SIZE**power % LEVEL_SIZE for power in range(N_LEVELS - 1, -1, -1)], 1)
    codes = ItemCodes.from_int(rows, (LEVEL_SIZE,) * N_LEVELS, "catalog of the benchmark")
    tokens = TokenMap.of(codes)
    tokens_NL = tokens.token_ids(rows)
    trie = {k: v for k, v in dict_trie(tokens_NL, ragged=False).items() if k != ITEMS}
    return Setup(make_model(tokens), tokens, CatalogIndex.build(codes), tokens_NL, trie)


def t5(tokens: Any) -> Any:
    """T5 of the size of TIGER."""
    from genrec.models.backbone import T5Settings, build

    return build(T5Settings(), tokens, seed=0)


def decoder(_: Any) -> Any:
    """A decoder of 0.2B weights like Qwen3 whose item tokens are part of a text vocabulary."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=TEXT_VOCAB, hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12,
        num_key_value_heads=4, head_dim=64, tie_word_embeddings=True, max_position_embeddings=2048,
        pad_token_id=0, eos_token_id=1, bos_token_id=2,
    )  # fmt: skip
    return Qwen3ForCausalLM(config).eval()


def ours(setup: Setup, prompts: Any, normalize: str, model: Any = None) -> Callable[[], Any]:
    """A search of ours: token rows ``[B, 10, L]`` and scores ``[B, 10]``."""
    from genrec.decoding.beam import beam_search
    from genrec.decoding.select import DeviceIndex
    from genrec.models.backbone import scorer_of

    scorer = scorer_of(model or setup.model, setup.tokens)
    index = DeviceIndex(setup.index, scorer.device)

    def search() -> Any:
        found = beam_search(scorer, index, prompts, n_beams=N_BEAMS, normalize=normalize)  # type: ignore[arg-type]
        # the first item of a leaf; none has two here
        items = setup.index.items[setup.index.leaf_ranks[found.leaves[:, :TOP_K]]]
        return setup.tokens_NL[items], found.scores[:, :TOP_K]

    return search


def generate(setup: Setup, prompts: Any, processor: bool = False) -> Callable[[], Any]:
    """The same by ``generate``, with a trie of dicts or with our logits processor."""
    import torch

    from genrec.decoding.processors import CatalogLogitsProcessor

    skip = 1 if setup.model.config.is_encoder_decoder else prompts.tokens_BT.shape[1]

    def allowed(_: int, ids: Any) -> list[int]:
        node = setup.trie
        for token in ids.tolist()[skip:]:
            if token not in node:  # a beam that never lived
                return [0]
            node = node[token]
        return list(node)

    def search() -> Any:
        how: dict[str, Any] = {"prefix_allowed_tokens_fn": allowed}
        if processor:
            how = {"logits_processor": [CatalogLogitsProcessor(setup.index, setup.tokens, prompt_length=skip)]}
        out = setup.model.generate(
            input_ids=torch.from_numpy(prompts.tokens_BT),
            attention_mask=torch.from_numpy(prompts.mask_BT).long(),
            num_beams=N_BEAMS, num_return_sequences=TOP_K, length_penalty=0.0, early_stopping="never",
            do_sample=False, max_new_tokens=N_LEVELS, min_new_tokens=None, eos_token_id=None,
            return_dict_in_generate=True, output_scores=True, **how,
        )  # fmt: skip
        rows = out.sequences[:, skip:].numpy().reshape(-1, TOP_K, N_LEVELS)
        return rows, out.sequences_scores.numpy().reshape(-1, TOP_K)

    return search


def compare(sides: dict[str, Callable[[], Any]], repeats: int) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """CPU seconds of every side, run in turns, and what each found; our sides run once before that."""
    found = {name: search() for name, search in sides.items() if not name.startswith("generate")}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, search in sides.items():
            start = time.process_time()
            found[name] = search()
            seconds[name].append(time.process_time() - start)
    return seconds, found


def difference(found: Any, wanted: Any) -> float:
    """The largest difference of scores; ends where the items are not the same, in the same order."""
    assert (found[0] == wanted[0]).all(), "the items differ from those of generate"
    worst = float(np.abs(found[1] - wanted[1]).max())
    assert worst < SCORE_TOLERANCE, f"scores differ by {worst}"
    return worst


def overlap(found: Any, wanted: Any) -> float:
    """Mean share of the lists that both have."""
    pairs = zip(found[0].tolist(), wanted[0].tolist(), strict=True)
    return statistics.mean(len(set(map(tuple, a)) & set(map(tuple, b))) / TOP_K for a, b in pairs)


def _spread(seconds: dict[str, list[float]], users: int) -> dict[str, Any]:
    """Milliseconds of every side, its ratio to ``generate``, and listed tokens per millisecond."""
    ms = {name: [round(s * 1e3, 2) for s in each] for name, each in seconds.items()}
    median = {name: statistics.median(each) * 1e3 for name, each in seconds.items()}
    return {
        "cpu_ms": ms,
        "ratio": {name: round(median["generate"] / each, 2) for name, each in median.items()},
        "tokens_per_ms": {name: round(users * TOP_K * N_LEVELS / each, 3) for name, each in median.items()},
    }


def t5_ratio(options: Options, users: int, repeats: int) -> Measured:
    """`generate` over our search for a T5 of TIGER's size and 80 prompt tokens."""
    import torch

    from genrec.data.histories import Histories
    from genrec.models.prompting import build_prompts

    made = options.cache.get("loop t5") or setup(t5)
    options.cache["loop t5"] = made
    items = np.random.default_rng(1).integers(0, N_ITEMS, (users, N_HISTORY))
    prompts = build_prompts("encoder", Histories.from_lists(list(items)), made.tokens_NL, made.tokens)
    sides = {
        "vocab": ours(made, prompts, "vocab"),
        "generate": generate(made, prompts),
        "bfloat16": ours(made, prompts, "vocab", deepcopy(made.model).to(torch.bfloat16)),
        "generate_with_our_processor": generate(made, prompts, processor=True),
    }
    seconds, found = compare(sides, repeats)
    spread = _spread(seconds, users) | {
        "score_difference": difference(found["vocab"], found["generate"]),
        "score_difference_processor": difference(found["generate_with_our_processor"], found["generate"]),
        "bfloat16_overlap": overlap(found["bfloat16"], found["vocab"]),
    }
    return Measured(spread["ratio"]["vocab"], spread, f"{ABOUT}, {repeats} repeats")


def _decoder(options: Options, case: str) -> dict[str, Any]:
    """All figures of one prompt length and batch, kept for the other figures of the run."""
    from genrec.decoding.scorer import Prompts

    if (key := f"loop decoder {case}") not in options.cache:
        made = options.cache.get("loop decoder") or setup(decoder)
        options.cache["loop decoder"] = made
        length, users, repeats = GRID[case]
        tokens = np.random.default_rng(1).integers(made.tokens.vocab_size, TEXT_VOCAB, (users, length))
        prompts = Prompts(tokens, np.ones(tokens.shape, dtype=bool))
        sides = {
            "vocab": ours(made, prompts, "vocab"),
            "level": ours(made, prompts, "level"),
            "generate": generate(made, prompts),
        }
        seconds, found = compare(sides, repeats)
        spread = _spread(seconds, users) | {"score_difference": difference(found["vocab"], found["generate"])}
        options.cache[key] = spread | {"level_target": f">= {LEVEL_TARGET[case]}"}
    return options.cache[key]  # type: ignore[no-any-return]


def decoder_ratio(options: Options, case: str, side: str = "vocab") -> Measured:
    """`generate` over our search for a decoder of 0.2B weights."""
    spread = _decoder(options, case)
    return Measured(spread["ratio"][side], spread, f"{ABOUT}, {GRID[case][2]} repeats (generate takes 6-24 s)")


BASELINE = "generate with a dictionary trie"
FIGURES = [
    Figure("t5_ratio_b1", "ratio", lambda o: t5_ratio(o, 1, 21), ">= 4", BASELINE, True),
    Figure("t5_ratio_b32", "ratio", lambda o: t5_ratio(o, 32, 3), ">= 7.5", BASELINE, True),
    Figure("decoder_ratio_128x1", "ratio", lambda o: decoder_ratio(o, "128x1"), ">= 6", BASELINE),
    Figure("decoder_ratio_128x4", "ratio", lambda o: decoder_ratio(o, "128x4"), ">= 9", BASELINE),
    Figure("decoder_ratio_512x1", "ratio", lambda o: decoder_ratio(o, "512x1"), ">= 12", BASELINE),
    Figure("decoder_level_ratio_128x1", "ratio", lambda o: decoder_ratio(o, "128x1", "level"), ">= 13", BASELINE),
    Figure("decoder_level_ratio_128x4", "ratio", lambda o: decoder_ratio(o, "128x4", "level"), ">= 17", BASELINE),
    Figure("decoder_level_ratio_512x1", "ratio", lambda o: decoder_ratio(o, "512x1", "level"), ">= 19", BASELINE),
]
