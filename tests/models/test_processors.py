import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.decoding.beam import beam_search
from genrec.decoding.index import CatalogIndex
from genrec.decoding.processors import CatalogLogitsProcessor, prefix_allowed_tokens_fn
from genrec.decoding.select import DeviceIndex
from genrec.errors import DataError
from genrec.item_tokenizers.codes import ItemCodes
from genrec.models.backbone import layout_of, scorer_of
from genrec.models.prompting import build_prompts, item_tokens
from genrec.testing.oracles import END, ITEMS, dict_trie, walk
from genrec.vocab.token_map import TextBase, TokenMap


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_mask_is_the_dict_trie_for_any_prefix(data):
    n = data.draw(st.integers(1, 8))
    rows = np.array(data.draw(st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=n, max_size=n)))
    if data.draw(st.booleans()):
        rows[:: data.draw(st.integers(1, 3)), 1:] = -1
    codes = ItemCodes.from_int(rows, (3, 3, 3), "c")
    # also where <pad> and </s> are one token of a text vocabulary
    base = data.draw(st.sampled_from([None, TextBase(7, 5, 5, None, "t"), TextBase(7, 0, 1, 2, "t")]))
    tokens = TokenMap.of(codes, base=base)
    index = CatalogIndex.build(codes)
    processor = CatalogLogitsProcessor(index, tokens, prompt_length=2)
    level = data.draw(st.integers(0, 2))
    prefixes = data.draw(st.lists(st.tuples(*[st.integers(0, 2)] * level), min_size=1, max_size=5))
    offsets = np.array(tokens.level_offset[:level], dtype=np.int64)
    after = np.array(prefixes, dtype=np.int64).reshape(len(prefixes), level) + offsets
    ids = torch.cat([torch.full((len(prefixes), 2), 9), torch.from_numpy(after)], 1)
    scores = torch.arange(float(len(prefixes) * tokens.vocab_size)).view(len(prefixes), -1)
    out = processor(ids, scores)
    trie = dict_trie(rows, ragged=codes.ragged)
    one_by_one = prefix_allowed_tokens_fn(index, tokens, prompt_length=2)
    for row, prefix in enumerate(prefixes):
        node = walk(trie, prefix)
        expected = (
            {tokens.pad_id}
            if node is None
            else {tokens.eos_id if c == END else tokens.level_offset[level] + c for c in node if c != ITEMS}
        )
        assert set(torch.isfinite(out[row]).nonzero().flatten().tolist()) == expected
        assert one_by_one(row, ids[row]) == sorted(expected)
        for token in expected:
            assert out[row, token] == scores[row, token]


@pytest.mark.parametrize("end", [5, 1])
def test_after_the_end_there_is_only_padding(end):
    codes = ItemCodes.from_int([[0, -1, -1], [0, 1, 2]], (3, 3, 3), "c")
    tokens, index = TokenMap.of(codes, base=TextBase(7, 5, end, None, "t")), CatalogIndex.build(codes)
    processor = CatalogLogitsProcessor(index, tokens, prompt_length=0)
    allowed = prefix_allowed_tokens_fn(index, tokens, prompt_length=0)
    for prefix in ([7, end], [7, end, 5]):
        ids = torch.tensor([prefix])
        assert torch.isfinite(processor(ids, torch.zeros(1, 16)))[0].nonzero().tolist() == [[5]]
        assert allowed(0, ids[0]) == [5]


def test_generate_with_it_equals_our_search(case):
    tokens = case.token_map
    table = item_tokens(case.codes, tokens)
    prompts = build_prompts(layout_of(case.model), case.histories, table, tokens)
    skip = 1 if layout_of(case.model) == "encoder" else prompts.tokens_BT.shape[1]
    options = {
        "input_ids": torch.from_numpy(prompts.tokens_BT),
        "attention_mask": torch.from_numpy(prompts.mask_BT).long(),
        "num_beams": 6,
        "num_return_sequences": 6,
        "length_penalty": 0.0,
        "early_stopping": "never",
        "do_sample": False,
        "max_new_tokens": case.index.depth,
        "eos_token_id": tokens.eos_id if tokens.ragged else None,
        "return_dict_in_generate": True,
        "output_scores": True,
    }
    masked = [CatalogLogitsProcessor(case.index, tokens, prompt_length=skip)]
    out = case.model.generate(**options, logits_processor=masked)
    allowed = prefix_allowed_tokens_fn(case.index, tokens, prompt_length=skip)
    assert case.model.generate(**options, prefix_allowed_tokens_fn=allowed).sequences.tolist() == out.sequences.tolist()
    scorer = scorer_of(case.model, tokens)
    found = beam_search(scorer, DeviceIndex(case.index, scorer.device), prompts, n_beams=6, normalize="vocab")
    ours = table[case.index.items[case.index.leaf_ranks[found.leaves]]]
    generated = np.zeros((30, tokens.n_tokens_per_item), dtype=np.int64)
    rows = out.sequences[:, skip:].numpy()
    # generate repeats </s> behind an end where <pad> has number 0
    rows = np.where(np.cumsum(rows == tokens.eos_id, axis=1) - (rows == tokens.eos_id) > 0, tokens.pad_id, rows)
    generated[:, : rows.shape[1]] = rows
    assert generated.reshape(ours.shape).tolist() == ours.tolist()
    np.testing.assert_allclose(out.sequences_scores.view(5, 6), found.scores, atol=1e-5)


def test_reading_beyond_an_identifier_is_an_error(fixed_case):
    processor = CatalogLogitsProcessor(fixed_case.index, fixed_case.token_map, prompt_length=0)
    with pytest.raises(DataError, match="at most 3 tokens"):
        processor(torch.zeros((1, 3), dtype=torch.int64), torch.zeros((1, 20)))
    allowed = prefix_allowed_tokens_fn(fixed_case.index, fixed_case.token_map, prompt_length=0)
    with pytest.raises(DataError, match="at most 3 tokens"):
        allowed(0, torch.zeros(3, dtype=torch.int64))
