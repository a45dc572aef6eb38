"""One step of a constrained beam search as one compiled loop (numba). Importing this imports numba. Internal.

A search fills in one :class:`Call`, sizes and addresses, and hands it over at every step: arrays would be counted in
and out, and arguments converted one by one, which took longer than a step for one user. What the functions may read
and write is checked by :mod:`genrec.decoding.steps`, their only caller.

Axes: B batch, W beams, S symbols of a level, D dead nodes, F filters, P picked.
"""

# mypy: disable-error-code="untyped-decorator"
from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, from_dtype, njit, types
from numba.cpython.unsafe.numbers import trailing_zeros
from numba.extending import intrinsic

logger = logging.getLogger(__name__)

F32 = np.float32
NEG_INF = F32(-np.inf)
INF = F32(np.inf)
BLOCK = 16
"""Scores that are compared at once; buffers of scores are padded to a multiple."""
_LOW32 = (1 << 32) - 1


class Call(ctypes.Structure):
    """One step: sizes, and addresses of arrays in one piece; 0 = no such array. No two searches share one."""

    batch: int
    n_beams: int
    nodes: int  # int64 [B, W], -1 = no beam
    scores: int  # float32 [B, W]
    n_symbols: int
    values: int  # float32 [B, W, S]
    totals: int  # float32 [B, W]; without it the step normalises
    by_children: int  # over the children, not over the S symbols
    width: int  # the most children at the level
    ranked: int  # edges have other ranks than their numbers
    n_dead: int
    dead: int  # int64 [B, D]
    n_words: int
    words: int  # uint64 [F, n_words]
    before: int  # int64 [F, n_words + 1]
    filter_of: int  # int64 [B], -1 = no filter
    bars: int  # float32 [B]
    keys: int  # scratch: int64 [P + 1]
    buffer: int  # scratch: float32 [width + BLOCK]
    n_picked: int
    place: int  # result: int64 [3, B, P], node, parent and code
    score: int  # result: float32 [B, P]
    pruned: int  # float32 [B]: raised where something better is left out, NaN where the model is broken

    _fields_ = [(name, ctypes.c_int64) for name in __annotations__]


class Level(NamedTuple):
    """Edges of a level: code and first rank of every edge, first edge of every node; width >= most children.

    ranked: False = an edge is its own rank.
    """

    tokens: Any
    pointers: Any
    ranks: Any
    ranked: Any
    width: Any


class Limits(NamedTuple):
    """What one row may not enter: dead nodes ``[D]``, ascending, then -1; what its filter, if any, does not allow;
    scores of bar or less.
    """

    dead: Any
    n_dead: Any
    filtered: Any
    words: Any
    before: Any
    bar: Any


class Heap(NamedTuple):
    """The ``room`` best keys so far, the smallest first; scores: a buffer for one beam's children."""

    keys: Any
    room: Any
    scores: Any


@intrinsic
def _pointer(_: Any, address: Any, kind: Any) -> Any:
    """An address as a pointer to numbers of a kind, a type of numpy's."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(kind.dtype)(address, kind), generate


@intrinsic
def _at(_: Any, pointer: Any, offset: Any) -> Any:
    """``pointer + offset`` elements."""
    return pointer(pointer, types.int64), lambda context, builder, sig, args: builder.gep(args[0], [args[1]])


@intrinsic
def _above(_: Any, scores: Any, bar: Any) -> Any:
    """Bit k of the result: ``scores[k] > bar``, for the first BLOCK scores, in one vector comparison."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lanes, zeros = ir.VectorType(ir.FloatType(), BLOCK), ir.VectorType(ir.IntType(32), BLOCK)
        block = builder.load(builder.bitcast(args[0], lanes.as_pointer()), align=4)
        one = builder.insert_element(ir.Constant(lanes, ir.Undefined), args[1], ir.IntType(32)(0))
        bars = builder.shuffle_vector(one, one, ir.Constant(zeros, [0] * BLOCK))
        mask = builder.bitcast(builder.fcmp_ordered(">", block, bars), ir.IntType(BLOCK))
        return builder.zext(mask, ir.IntType(64))

    return types.int64(scores, types.float32), generate


@njit(fastmath={"contract"}, error_model="numpy")
def _exp(x: Any) -> Any:
    """exp of a float32 between -87 and 88 (others are clamped), about 1e-7 relative, without branches.

    x = n ln 2 + r with |r| <= ln 2 / 2: a polynomial gives exp(r) (that of Cephes' expf, Moshier 1989), then n is added
    to the exponent. Adding 1.5 · 2^23 rounds to n and leaves n in the low bits.
    """
    x = F32(-87.0) if x < F32(-87.0) else x  # these comparisons let NaN pass
    x = F32(88.0) if x > F32(88.0) else x
    t = x * F32(1.44269504) + F32(12582912.0)
    n = t - F32(12582912.0)
    r = x - n * F32(0.693359375)
    r = r - n * F32(-2.12194440e-4)
    p = F32(1.9875691500e-4)
    p = p * r + F32(1.3981999507e-3)
    p = p * r + F32(8.3334519073e-3)
    p = p * r + F32(4.1665795894e-2)
    p = p * r + F32(1.6666665459e-1)
    p = p * r + F32(5.0000001201e-1)
    p = (p * r) * r + r + F32(1.0)
    return np.int32(F32(p).view(np.int32) + (F32(t).view(np.int32) << 23)).view(np.float32)


@njit(fastmath={"contract", "reassoc"}, error_model="numpy")  # reassoc: the sum may be taken in vector lanes
def _sum_exp(values: Any, n: Any, shift: Any) -> Any:
    out = F32(0.0)
    for i in range(n):
        out += _exp(values[i] - shift)
    return out


@njit(fastmath={"reassoc"}, error_model="numpy")
def _sum(values: Any, n: Any) -> Any:
    out = F32(0.0)
    for i in range(n):
        out += values[i]
    return out


@njit(error_model="numpy")
def _log_sum_exp(values: Any, n: Any) -> Any:
    """Without looking for the maximum first, unless the plain sum overflows or vanishes. NaN if any value is."""
    plain = _sum_exp(values, n, F32(0.0))
    if F32(1e-20) < plain < F32(1e38):
        return F32(np.log(plain))
    if plain != plain:
        return plain
    most = NEG_INF
    for i in range(n):
        most = max(most, values[i])
    if most in (INF, NEG_INF):
        return most
    return most + F32(np.log(_sum_exp(values, n, most)))


@njit(error_model="numpy")
def _before(words: Any, before: Any, rank: Any) -> Any:
    """Allowed ranks before a rank; only whole words lie before the end of the last one."""
    word, rest = rank >> 6, np.uint64(rank & 63)
    if rest == np.uint64(0):
        return before[word]
    x = words[word] & ((np.uint64(1) << rest) - np.uint64(1))
    x = x - ((x >> np.uint64(1)) & np.uint64(0x5555555555555555))  # count bits: by 2, by 4, by 8, all bytes
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return before[word] + np.int64((x * np.uint64(0x0101010101010101)) >> np.uint64(56))


@njit(error_model="numpy")
def _is_dead(limits: Any, node: Any) -> Any:
    """Bisection; the padding -1 behind the nodes counts as larger than all."""
    low, high = 0, limits.n_dead
    while low < high:
        middle = (low + high) >> 1
        if 0 <= limits.dead[middle] < node:
            low = middle + 1
        else:
            high = middle
    return low < limits.n_dead and limits.dead[low] == node


@njit(error_model="numpy")
def _allowed(level: Any, limits: Any, node: Any) -> Any:
    if limits.n_dead > 0 and _is_dead(limits, node):
        return False
    if not limits.filtered:
        return True
    low, high = node, node + 1
    if level.ranked:
        low, high = np.int64(level.ranks[node]), np.int64(level.ranks[node + 1])
    word, start = low >> 6, np.uint64(low & 63)
    bits = limits.words[word] >> start
    if high - low + np.int64(start) < 64:  # all in one word
        return bits & ((np.uint64(1) << np.uint64(high - low)) - np.uint64(1)) != np.uint64(0)
    return bits != np.uint64(0) or _before(limits.words, limits.before, high) > limits.before[word + 1]


@njit(error_model="numpy")
def _key(score: Any, column: Any) -> Any:
    """Score and column in one int64 that orders as ``select.best`` does: higher score, then earlier column."""
    bits = np.int64(F32(score + F32(0.0)).view(np.int32))
    return ((bits ^ ((bits >> 31) & 0x7FFFFFFF)) << 32) | (_LOW32 - column)


@njit(error_model="numpy")
def _score(key: Any) -> Any:
    ordered = key >> 32
    return np.int32(ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(np.float32)


@njit(error_model="numpy")
def _push(heap: Any, size: Any, key: Any) -> None:
    """Add a key to a binary heap whose root is the smallest."""
    at = size
    while at > 0 and heap[(at - 1) >> 1] > key:
        heap[at] = heap[(at - 1) >> 1]
        at = (at - 1) >> 1
    heap[at] = key


@njit(error_model="numpy")
def _replace_root(heap: Any, size: Any, key: Any) -> None:
    at, child = 0, 1
    while child < size:
        child += int(heap[child] > heap[min(child + 1, size - 1)])  # no branch that could be guessed wrong
        if heap[child] >= key:
            break
        heap[at] = heap[child]
        at, child = child, 2 * child + 1
    heap[at] = key


@njit(error_model="numpy")
def _gather(tokens: Any, count: Any, values: Any, n_symbols: Any, out: Any) -> None:
    """The values of a beam's children."""
    if count == n_symbols:  # all symbols, in order
        for j in range(count):
            out[j] = values[j]
    else:
        for j in range(count):
            out[j] = values[min(np.int64(tokens[j]), n_symbols - 1)]


@njit(error_model="numpy")
def _to_scores(values: Any, count: Any, score: Any, total: Any) -> None:
    """Values to scores, in the order of additions of ``select.expand``; a block's rest is -inf."""
    for j in range(count):
        values[j] = score + (values[j] - total)
    for j in range(count, -(-count // BLOCK) * BLOCK):
        values[j] = NEG_INF


@njit(error_model="numpy")
def _offer(heap: Any, size: Any, count: Any, first: Any, column: Any, limits: Any, level: Any) -> Any:
    """Enter those of a beam's children that are good enough and allowed; returns the heap's new size."""
    bar = _score(heap.keys[0]) if size == heap.room else limits.bar
    for start in range(0, count, BLOCK):
        above = _above(_at(heap.scores, start), bar)
        while above:
            j = start + trailing_zeros(above)
            above &= above - 1
            if not heap.scores[j] > bar or not _allowed(level, limits, first + j):
                continue
            key = _key(heap.scores[j], column + j)
            if size < heap.room:
                _push(heap.keys, size, key)
                size += 1
            else:
                _replace_root(heap.keys, size, key)
            if size == heap.room:
                bar = _score(heap.keys[0])
    return size


@njit(error_model="numpy")
def _write(call: Any, row: Any, level: Any, nodes: Any, heap: Any, size: Any) -> None:
    """Empty the heap into the results of a row, the smallest key first, from the end."""
    n = call.n_picked
    node, score = _at(_pointer(call.place, np.int64), row * n), _at(_pointer(call.score, np.float32), row * n)
    parent, code = _at(node, call.batch * n), _at(node, 2 * call.batch * n)
    pruned = _at(_pointer(call.pruned, np.float32), row)
    for at in range(size, n):
        node[at], parent[at], code[at], score[at] = -1, 0, 0, NEG_INF
    while size > 0:
        key = heap.keys[0]
        size -= 1
        _replace_root(heap.keys, size, heap.keys[size])
        if size == n:
            if _score(key) > pruned[0]:
                pruned[0] = _score(key)
            continue
        column = _LOW32 - (key & _LOW32)
        beam = column // level.width
        child = np.int64(level.pointers[nodes[beam]]) + column % level.width
        node[size], parent[size], code[size] = child, beam, np.int64(level.tokens[child])
        score[size] = _score(key)


@njit(error_model="numpy")
def _limits(call: Any, row: Any) -> Any:
    own = _pointer(call.filter_of, np.int64)[row] if call.n_words > 0 else -1
    bar = _pointer(call.bars, np.float32)[row] if call.bars != 0 else NEG_INF
    which = max(own, 0)
    dead = _at(_pointer(call.dead, np.int64), row * call.n_dead)
    words = _at(_pointer(call.words, np.uint64), which * call.n_words)
    before = _at(_pointer(call.before, np.int64), which * (call.n_words + 1))
    return Limits(dead, call.n_dead, own >= 0, words, before, bar)


def _select(calls: Any, tokens: Any, pointers: Any, ranks: Any) -> None:
    """What :class:`genrec.decoding.steps.Step` says, for all rows; every row by itself.

        for each beam, for each child that beats the smallest of the P + 1 best: enter it if it is allowed

    calls: one :class:`Call`. tokens, pointers, ranks: of the level, see :class:`Level`.
    """
    call = carray(calls, 1)[0]
    level = Level(tokens, pointers, ranks, call.ranked > 0, call.width)
    heap = Heap(_pointer(call.keys, np.int64), call.n_picked + 1, _pointer(call.buffer, np.float32))
    totals, pruned = _pointer(call.totals, np.float32), _pointer(call.pruned, np.float32)
    given, by_children, n_symbols = call.totals != 0, call.by_children != 0, call.n_symbols
    for row in range(call.batch):
        limits, size = _limits(call, row), 0
        nodes = _at(_pointer(call.nodes, np.int64), row * call.n_beams)
        for beam in range(call.n_beams):
            if nodes[beam] < 0:
                continue
            at = row * call.n_beams + beam
            first = np.int64(pointers[nodes[beam]])
            count = np.int64(pointers[nodes[beam] + 1]) - first
            values = _at(_pointer(call.values, np.float32), at * n_symbols)
            _gather(_at(tokens, first), count, values, n_symbols, heap.scores)
            if given:
                total = totals[at]
            elif by_children:
                total = _log_sum_exp(heap.scores, count)
            else:
                total = _log_sum_exp(values, n_symbols)
            if not total < INF or ((given or by_children) and not _sum(values, n_symbols) < INF):
                pruned[row] = F32(np.nan)
            _to_scores(heap.scores, count, _pointer(call.scores, np.float32)[at], total)
            size = _offer(heap, size, count, first, beam * level.width, limits, level)
        _write(call, row, level, nodes, heap, size)


@functools.cache
def compiled(tokens: str, pointers: str, ranks: str) -> Callable[[Call, int, int, int], None]:
    """The step for an index with arrays of these types (names of numpy's); it takes a call and their addresses.

    Compiling takes some seconds. The result is kept on disk, beside this file or in the user's cache folder, by numba's
    rules: it is renewed when this file changes, so nothing that is compiled may be moved elsewhere.
    """
    kinds = [types.CPointer(getattr(types, name)) for name in (tokens, pointers, ranks)]
    signature = types.void(types.CPointer(from_dtype(np.dtype(Call))), *kinds)
    try:
        code = cfunc(signature, cache=True)(_select)
    except Exception as error:  # a folder that cannot be written, a damaged cache; our mistakes come up again below
        logger.warning(
            "the search step is compiled in this process, which takes seconds: numba's cache failed (%s: %s); "
            "NUMBA_CACHE_DIR can name a folder for it",
            type(error).__name__,
            error,
        )
        code = cfunc(signature)(_select)
    call: Any = ctypes.CFUNCTYPE(None, ctypes.POINTER(Call), *[ctypes.c_void_p] * 3)(code.address)
    call.keep = code
    return call  # type: ignore[no-any-return]
