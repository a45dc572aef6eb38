import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.data.histories import Histories
from genrec.errors import DataError, FingerprintMismatch
from genrec.item_tokenizers.codes import ItemCodes
from genrec.models.prompting import build_prompts, item_tokens, users_asked
from genrec.vocab.token_map import TextBase, TokenMap

CODES = ItemCodes.from_int([[0, 1], [3, 2], [1, -1]], (4, 3), "c")
FIXED = ItemCodes.from_int([[0, 1], [3, 2], [1, 0]], (4, 3), "c")


def spelled(prompts, token_map):
    words = token_map.tokens()
    return [" ".join(words[t] for t in row) for row in prompts.tokens_BT]


def test_both_layouts_read_as_documented():
    token_map = TokenMap.of(FIXED, n_user_tokens=2)
    histories = Histories.from_lists([[1, 0], [], [2]])
    users = token_map.user_offset + np.array([[0], [1], [0]])
    tokens = item_tokens(FIXED, token_map)
    encoder = build_prompts("encoder", histories, tokens, token_map, users)
    assert spelled(encoder, token_map) == [
        "<u_0> <a_3> <b_2> <a_0> <b_1> </s>",
        "<u_1> </s> <pad> <pad> <pad> <pad>",
        "<u_0> <a_1> <b_0> </s> <pad> <pad>",
    ]
    assert encoder.mask_BT.sum(1).tolist() == [6, 2, 4] and encoder.mask_BT[:, 0].all()
    decoder = build_prompts("decoder", histories, tokens, token_map, users)
    assert spelled(decoder, token_map) == [
        "<s> <u_0> <a_3> <b_2> <a_0> <b_1>",
        "<pad> <pad> <pad> <pad> <s> <u_1>",
        "<pad> <pad> <s> <u_0> <a_1> <b_0>",
    ]
    assert decoder.mask_BT.sum(1).tolist() == [6, 2, 4] and decoder.mask_BT[:, -1].all()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 2), max_size=4), min_size=1, max_size=4),
    st.sampled_from(["encoder", "decoder"]),
    st.booleans(),
    st.sampled_from([None, TextBase(9, 3, 3, None, "t"), TextBase(9, 3, 4, 5, "t")]),
)
def test_prompts_are_the_concatenation_of_their_items(lists, layout, ragged, base):
    codes = CODES if ragged else FIXED
    token_map = TokenMap.of(codes, base=base)
    tokens = item_tokens(codes, token_map)
    prompts = build_prompts(layout, Histories.from_lists(lists), tokens, token_map)
    for row, items in enumerate(lists):
        lengths = (codes.as_int() >= 0).sum(1) + ragged
        body = [t for item in items for t in tokens[item, : lengths[item]].tolist()]
        start = [] if token_map.bos_id is None else [token_map.bos_id]
        # a prompt of nothing is </s> alone
        expected = [*start, *body] or [token_map.eos_id] if layout == "decoder" else [*body, token_map.eos_id]
        assert prompts.tokens_BT[row][prompts.mask_BT[row]].tolist() == expected
        assert (prompts.tokens_BT[row][~prompts.mask_BT[row]] == token_map.pad_id).all()


def test_wrong_inputs_are_refused():
    token_map = TokenMap.of(FIXED)
    tokens = item_tokens(FIXED, token_map)
    with pytest.raises(DataError, match="item numbers"):
        build_prompts("encoder", Histories.from_lists([[3]]), tokens, token_map)
    with pytest.raises(DataError, match="user tokens"):
        build_prompts("encoder", Histories.from_lists([[0]]), tokens, TokenMap.of(FIXED, n_user_tokens=4))
    with pytest.raises(FingerprintMismatch, match="levels"):
        item_tokens(CODES, token_map)


def test_user_tokens_follow_the_id_not_the_number():
    token_map = TokenMap.of(FIXED, n_user_tokens=50)
    ids = ["ann", "bob", "eve"]
    by_id = users_asked(token_map, ids, 3)
    assert users_asked(token_map, np.array([2, 0]), 2, user_ids=ids).tolist() == by_id[[2, 0]].tolist()
    assert users_asked(TokenMap.of(FIXED), ids, 3) is None and users_asked(token_map, None, 3) is None
    with pytest.raises(DataError, match="numbers"):
        users_asked(token_map, np.array([1]), 1)
