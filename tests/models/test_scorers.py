from copy import deepcopy

import numpy as np
import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MT5Config,
    MT5ForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from genrec.data.histories import Histories
from genrec.decoding.beam import beam_search
from genrec.decoding.select import DeviceIndex
from genrec.errors import ConfigError, FingerprintMismatch
from genrec.models.backbone import layout_of, scorer_of
from genrec.models.decoder_scorer import DecoderScorer
from genrec.models.head import output_scale
from genrec.models.prompting import build_prompts, item_tokens
from genrec.models.t5_scorer import T5Scorer
from genrec.testing.oracles import END, dict_trie, generate_items
from genrec.vocab.token_map import TokenMap

NORMALIZERS = ["vocab", "level", "children"]


def prompts_of(case, rows=None):
    histories = case.histories if rows is None else case.histories.take(rows)
    tokens = item_tokens(case.codes, case.token_map)
    return build_prompts(layout_of(case.model), histories, tokens, case.token_map)


def forward_logits(model, token_map, prompt, codes):
    """Float32 logits ``[V]`` of the next token by the whole model on one sequence without padding."""
    continuation = [token_map.level_offset[level] + code for level, code in enumerate(codes)]
    ids = torch.tensor([prompt])
    with torch.no_grad():
        if layout_of(model) == "encoder":
            start = model.config.decoder_start_token_id
            out = model(input_ids=ids, decoder_input_ids=torch.tensor([[start, *continuation]]))
        else:
            out = model(input_ids=torch.tensor([[*prompt, *continuation]]))
    return out.logits[0, -1].float()


def expected_logp(logits, token_map, level, normalize):
    offset = token_map.level_offset[level] if level < token_map.n_levels else 0
    size = token_map.level_sizes[level] if level < token_map.n_levels else 0
    rows = list(range(offset, offset + size)) + [token_map.eos_id] * token_map.ragged
    if normalize == "vocab":
        return logits.log_softmax(-1)[rows]
    return logits[rows].log_softmax(-1)


def walk_and_compare(model, token_map, prompts, *, normalize, atol, n_beams=4, seed=0):
    """Follow random beams that reorder and repeat, and compare every answer with the whole forward."""
    random = np.random.default_rng(seed)
    scorer = scorer_of(model, token_map)
    state = scorer.start(prompts, normalize)
    batch = len(prompts)
    prefixes = [[()] for _ in range(batch)]
    parents = codes = None
    with torch.inference_mode():
        for level in range(token_map.n_tokens_per_item):
            logp = scorer.step(state, parents, codes).logp()
            if normalize == "children":  # only defined up to a constant per beam
                logp = logp.log_softmax(-1)
            assert logp.dtype == torch.float32
            for b in range(batch):
                prompt = prompts.tokens_BT[b][prompts.mask_BT[b]].tolist()
                for w, prefix in enumerate(prefixes[b]):
                    logits = forward_logits(model, token_map, prompt, prefix)
                    expected = expected_logp(logits, token_map, level, normalize)
                    torch.testing.assert_close(logp[b, w], expected, atol=atol, rtol=0)
            if level == token_map.n_levels:
                break
            width = n_beams + level  # the number of beams may change
            parent = random.integers(0, len(prefixes[0]), (batch, width))
            code = random.integers(0, token_map.level_sizes[level], (batch, width))
            prefixes = [
                [(*prefixes[b][p], int(c)) for p, c in zip(parent[b], code[b], strict=True)] for b in range(batch)
            ]
            parents, codes = torch.from_numpy(parent), torch.from_numpy(code)


@pytest.mark.parametrize("normalize", NORMALIZERS)
def test_every_step_equals_the_whole_forward(case, normalize):
    walk_and_compare(case.model, case.token_map, prompts_of(case), normalize=normalize, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "options", "scales"),
    [
        (
            (T5Config, T5ForConditionalGeneration),
            {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
            False,
        ),
        ((T5Config, T5ForConditionalGeneration), {}, True),
        ((MT5Config, MT5ForConditionalGeneration), {}, False),
    ],
)
def test_t5_variants(family, options, scales):
    torch.manual_seed(0)
    token_map = TokenMap((5, 4, 3))
    config = family[0](
        vocab_size=token_map.vocab_size,
        d_model=24,
        d_kv=8,
        d_ff=40,
        num_layers=2,
        num_decoder_layers=3,
        num_heads=4,
        relative_attention_num_buckets=4,
        decoder_start_token_id=0,
        **options,
    )
    model = family[1](config).eval()
    assert (output_scale(model) != 1.0) is scales
    walk_and_compare(model, token_map, prompts_for(token_map, "encoder"), normalize="vocab", atol=2e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", [(Qwen2Config, Qwen2ForCausalLM), (LlamaConfig, LlamaForCausalLM)])
def test_other_decoders_with_grouped_heads(family, attention):
    torch.manual_seed(0)
    token_map = TokenMap((5, 4, 3))
    config = family[0](
        vocab_size=token_map.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        attn_implementation=attention,
        initializer_range=0.2,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    model = family[1](config).eval()
    walk_and_compare(model, token_map, prompts_for(token_map, "decoder"), normalize="level", atol=1e-5)


def prompts_for(token_map, layout):
    tokens = token_map.token_ids(np.array([[1, 2, 0], [4, 3, 2], [0, 0, 1]]))
    return build_prompts(layout, Histories.from_lists([[0, 2], [1], [2, 2, 1]]), tokens, token_map)


def test_bfloat16_stays_close_to_its_own_forward(fixed_case):
    model = deepcopy(fixed_case.model).to(torch.bfloat16)
    prompts = prompts_of(fixed_case)
    walk_and_compare(model, fixed_case.token_map, prompts, normalize="level", atol=0.15)


@pytest.mark.parametrize("n_beams", [2, 6])
def test_beams_equal_generate(case, n_beams):
    """Items and scores of Hugging Face generate with a dict trie, no length penalty."""
    tokens, index = case.token_map, case.index
    prompts = prompts_of(case)
    encoder = layout_of(case.model) == "encoder"
    generated = generate_items(
        case.model,
        dict_trie(case.codes.as_int(), ragged=tokens.ragged),
        lambda level, code: tokens.eos_id if code == END else tokens.level_offset[level] + code,
        {
            "input_ids": torch.from_numpy(prompts.tokens_BT),
            "attention_mask": torch.from_numpy(prompts.mask_BT).long(),
        },
        n_beams=n_beams,
        max_new_tokens=index.depth,
        eos_id=tokens.eos_id if tokens.ragged else None,
        skip=1 if encoder else prompts.tokens_BT.shape[1],
    )
    scorer = scorer_of(case.model, tokens)
    found = beam_search(
        scorer,
        DeviceIndex(index, scorer.device),
        prompts,
        n_beams=n_beams,
        normalize="vocab",
    )
    rows = tokens.token_ids(case.codes.as_int())
    for b, expected in enumerate(generated):
        first_items = index.items[index.leaf_ranks[found.leaves[b]]]
        ours = [tuple(t for t in rows[item].tolist() if t != tokens.pad_id) for item in first_items]
        assert ours == [identifier for identifier, _ in expected]
        np.testing.assert_allclose(found.scores[b], [score for _, score in expected], atol=1e-5)


def test_the_prompt_runs_once_per_user(case):
    scorer = scorer_of(case.model, case.token_map)
    fed = []
    runner = case.model.encoder if layout_of(case.model) == "encoder" else case.model.model
    hook = runner.register_forward_pre_hook(
        lambda module, args, kwargs: fed.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    prompts = prompts_of(case)
    try:
        beam_search(scorer, DeviceIndex(case.index, scorer.device), prompts, n_beams=6, normalize="vocab")
    finally:
        hook.remove()
    assert fed[0] == prompts.tokens_BT.shape
    # a decoder-only step feeds the beams as tokens of the user's one row
    assert all(shape[0] == len(prompts) and shape[1] <= 6 for shape in fed[1:])


def test_padding_changes_nothing(case):
    scorer = scorer_of(case.model, case.token_map)
    index = DeviceIndex(case.index, scorer.device)
    together = beam_search(scorer, index, prompts_of(case), n_beams=5, normalize="vocab")
    for row in range(len(case.histories)):
        alone = beam_search(scorer, index, prompts_of(case, [row]), n_beams=5, normalize="vocab")
        assert alone.leaves[0].tolist() == together.leaves[row].tolist()
        np.testing.assert_allclose(alone.scores[0], together.scores[row], atol=1e-5)


def test_another_vocabulary_is_refused(fixed_case):
    other = TokenMap((4, 3, 5), n_user_tokens=3)
    with pytest.raises(FingerprintMismatch, match="vocabulary"):
        scorer_of(fixed_case.model, other)
    with pytest.raises(FingerprintMismatch, match="output rows"):
        scorer_of(fixed_case.model, TokenMap((400, 3, 5)))


def test_models_that_cannot_be_decoded_are_refused(fixed_case):
    model, tokens = fixed_case.model, fixed_case.token_map
    other = DecoderScorer if layout_of(model) == "encoder" else T5Scorer
    with pytest.raises(ConfigError, match="model: expected"):
        other(model, tokens)
    config = Qwen2Config(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        use_sliding_window=True,
        sliding_window=4,
        max_window_layers=0,
    )
    with pytest.raises(ConfigError, match="full attention"):
        DecoderScorer(Qwen2ForCausalLM(config), tokens)


def test_training_mode_is_refused(fixed_case):
    scorer = scorer_of(fixed_case.model, fixed_case.token_map)
    fixed_case.model.train()
    try:
        with pytest.raises(AssertionError, match="eval"):
            scorer.start(prompts_of(fixed_case), "vocab")
    finally:
        fixed_case.model.eval()
