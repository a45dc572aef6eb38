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
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from genrec.data.histories import Histories
from genrec.decoding.beam import beam_search
from genrec.decoding.select import DeviceIndex
from genrec.errors import ConfigError, FingerprintMismatch
from genrec.models.backbone import T5Settings, build, layout_of, scorer_of
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


def walk(model, token_map, prompts, *, normalize, n_beams=4, seed=0):
    """Follow random beams that reorder and repeat: (prompt, prefix, log-probabilities) of every beam of every step."""
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
                    yield prompt, prefix, logp[b, w]
            if level == token_map.n_levels:
                break
            width = n_beams + level  # the number of beams may change
            parent = random.integers(0, len(prefixes[0]), (batch, width))
            code = random.integers(0, token_map.level_sizes[level], (batch, width))
            prefixes = [
                [(*prefixes[b][p], int(c)) for p, c in zip(parent[b], code[b], strict=True)] for b in range(batch)
            ]
            parents, codes = torch.from_numpy(parent), torch.from_numpy(code)


def walk_and_compare(model, token_map, prompts, *, normalize, atol, n_beams=4):
    """Compare every answer of :func:`walk` with the whole forward."""
    for prompt, prefix, logp in walk(model, token_map, prompts, normalize=normalize, n_beams=n_beams):
        expected = expected_logp(forward_logits(model, token_map, prompt, prefix), token_map, len(prefix), normalize)
        torch.testing.assert_close(logp, expected, atol=atol, rtol=0)


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


DECODERS = {
    "llama": (LlamaConfig, LlamaForCausalLM, {"attention_bias": True, "mlp_bias": True}),
    "llama3": (
        LlamaConfig,
        LlamaForCausalLM,
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 100.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8,
            }
        },
    ),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 12, "attention_bias": True, "tie_word_embeddings": True}),
}


def grouped_decoder(name, token_map, **options):
    """Four query heads on two key heads, random biases and norms."""
    torch.manual_seed(0)
    config, model, own = DECODERS[name]
    built = model(
        config(
            **{
                "vocab_size": token_map.vocab_size,
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "tie_word_embeddings": False,
                "initializer_range": 0.2,
                "pad_token_id": 0,
                "eos_token_id": 1,
                "bos_token_id": 2,
                **own,
                **options,
            }
        )
    ).eval()
    for name, parameter in built.named_parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.3)
    return built


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", sorted(DECODERS))
def test_other_decoders_with_grouped_heads(name, attention):
    token_map = TokenMap((5, 4, 3))
    model = grouped_decoder(name, token_map, attn_implementation=attention)
    walk_and_compare(model, token_map, prompts_for(token_map, "decoder"), normalize="level", atol=1e-5)


def small_t5(token_map):
    return build(T5Settings(d_model=32, n_layers=2, n_heads=2, d_kv=16, d_ff=48), token_map, seed=0)


class Adapted(torch.nn.Module):
    """A projection with something added to it, as adapters do."""

    def __init__(self, base, seed):
        super().__init__()
        self.base = base
        torch.manual_seed(seed)
        self.low = torch.nn.Linear(base.in_features, 2)
        self.high = torch.nn.Linear(2, base.out_features)

    @property
    def weight(self):
        return self.base.weight

    def forward(self, x):
        return self.base(x) + self.high(self.low(x))


@pytest.mark.parametrize("layout", ["encoder", "decoder"])
def test_adapters_on_projections_count(layout):
    token_map = TokenMap((5, 4, 3))
    if layout == "decoder":
        model = grouped_decoder("qwen3", token_map)
    else:
        model = small_t5(token_map)
    wrapped = {"q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "q", "k", "v", "o", "wi", "wo"}
    places = [(m, n, c) for m in model.modules() for n, c in m.named_children() if n in wrapped]
    for seed, (parent, name, child) in enumerate(places):
        setattr(parent, name, Adapted(child, seed))
    walk_and_compare(model.eval(), token_map, prompts_for(token_map, layout), normalize="level", atol=2e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers for an old name
def test_lora_counts():
    peft = pytest.importorskip("peft")
    token_map = TokenMap((5, 4, 3))
    names = ["q_proj", "v_proj", "down_proj"]
    settings = peft.LoraConfig(r=2, target_modules=names, init_lora_weights=False, task_type="CAUSAL_LM")
    model = peft.get_peft_model(grouped_decoder("qwen3", token_map), settings).eval()
    walk_and_compare(model, token_map, prompts_for(token_map, "decoder"), normalize="level", atol=1e-5)


@pytest.mark.parametrize("layout", ["encoder", "decoder"])
def test_a_large_output_layer_in_pieces(layout, monkeypatch):
    token_map = TokenMap((5, 4, 3))
    monkeypatch.setattr("genrec.models.head.LEAST_ROWS", 3)
    monkeypatch.setattr("genrec.models.head.LOGITS_AT_ONCE", {"cpu": 8})
    if layout == "decoder":
        model = grouped_decoder("qwen3", token_map)
    else:
        model = small_t5(token_map)
    walk_and_compare(model, token_map, prompts_for(token_map, layout), normalize="vocab", atol=1e-5)


def prompts_for(token_map, layout):
    tokens = token_map.token_ids(np.array([[1, 2, 0], [3, 2, 2], [0, 0, 1]]))
    return build_prompts(layout, Histories.from_lists([[0, 2], [1], [2, 2, 1]]), tokens, token_map)


def test_bfloat16_is_no_further_from_float32_than_its_own_forward(fixed_case):
    model, token_map = fixed_case.model, fixed_case.token_map
    half = deepcopy(model).to(torch.bfloat16)
    ours, theirs = [], []
    for prompt, prefix, logp in walk(half, token_map, prompts_of(fixed_case), normalize="level"):
        exact, own = (
            expected_logp(forward_logits(each, token_map, prompt, prefix), token_map, len(prefix), "level")
            for each in (model, half)
        )
        ours.append((logp - exact).abs().mean())
        theirs.append((own - exact).abs().mean())
    assert np.mean(ours) < 1.2 * np.mean(theirs)
    assert np.max(ours) < 2 * np.max(theirs)


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
    if layout_of(case.model) == "encoder":
        projections = [case.model.encoder.block[0].layer[0].SelfAttention.k]
        projections += [block.layer[1].EncDecAttention.v for block in case.model.decoder.block]
    else:
        projections = [layer.self_attn.k_proj for layer in case.model.model.layers]
    hooks = [
        each.register_forward_hook(lambda module, args, out: fed.append(out.shape[:-1].numel())) for each in projections
    ]
    prompts = prompts_of(case)
    try:
        beam_search(scorer, DeviceIndex(case.index, scorer.device), prompts, n_beams=6, normalize="vocab")
    finally:
        for hook in hooks:
            hook.remove()
    assert fed[: len(projections)] == [prompts.tokens_BT.size] * len(projections)
    # a decoder-only step feeds the last token of every beam, and no prompt
    assert all(n_tokens <= 6 * len(prompts) for n_tokens in fed[len(projections) :])
    assert layout_of(case.model) == "decoder" or len(fed) == len(projections)


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
    capped = grouped_decoder("qwen3", tokens, final_logit_softcapping=30.0)
    with pytest.raises(ConfigError, match="softcapping"):
        DecoderScorer(capped, tokens)
    for rope in (
        {"rope_type": "dynamic"},
        {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
    ):
        rope = {"rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 8, **rope}
        stretched = grouped_decoder("llama", tokens, rope_parameters=rope, max_position_embeddings=8)
        with pytest.raises(ConfigError, match="rotary positions of type"):
            DecoderScorer(stretched, tokens)
    spread = grouped_decoder("qwen3", tokens)
    spread.hf_device_map = {"model.layers.0": 0, "model.layers.1": "cpu"}
    with pytest.raises(ConfigError, match="one device"):
        DecoderScorer(spread, tokens)


def test_training_mode_is_refused(fixed_case):
    scorer = scorer_of(fixed_case.model, fixed_case.token_map)
    fixed_case.model.train()
    try:
        with pytest.raises(AssertionError, match="eval"):
            scorer.start(prompts_of(fixed_case), "vocab")
    finally:
        fixed_case.model.eval()
