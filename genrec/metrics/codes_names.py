"""Names of the metrics of identifiers: what each says, which direction is better, what the literature calls it.

Stability: experimental. Axes: N items, L levels, K codes of a level.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Better = Literal["higher", "lower", "neither"]


class Metric(NamedTuple):
    """One sentence, and the better direction (``neither`` where it depends, or where a control decides) (stable)."""

    meaning: str
    better: Better
    per_level: bool = False


METRICS: dict[str, Metric] = {
    # collisions
    "collision_rate": Metric("1 - distinct identifiers / N", "lower"),
    "collision_share": Metric("share of items whose identifier another item has too", "lower"),
    "collision_pair_rate": Metric("chance that two different random items share an identifier", "lower"),
    "largest_group": Metric("items of the most crowded identifier", "lower"),
    "group_sizes": Metric("number of identifiers by number of items that share them", "neither"),
    "traffic_share": Metric("share of training events on items that share their identifier", "lower"),
    "identifier_gini": Metric("FORGE's Gini coefficient of items per occupied identifier", "lower"),
    # load of the levels
    "usage": Metric("share of the level's K codes with at least one item (utilisation)", "higher", True),
    "dead_codes": Metric("number of the level's codes without an item", "lower", True),
    "entropy": Metric("bits of the level's code of a random item", "higher", True),
    "perplexity": Metric("2 ** entropy; K = perfectly even", "higher", True),
    "perplexity_share": Metric("perplexity / K", "higher", True),
    "gini": Metric("Gini coefficient of items per code over all K codes, dead ones included", "lower", True),
    "load_cv": Metric("standard deviation / mean of items per code", "lower", True),
    # the tree
    "identifier_entropy": Metric("bits of the identifier of a random item; log2 N without collisions", "higher"),
    "conditional_entropy": Metric("H(c_l | c_<l) in bits, plug-in, items alike", "neither", True),
    "conditional_entropy_miller_madow": Metric("the same with the Miller-Madow correction", "neither", True),
    "conditional_entropy_weighted": Metric("the same, items weighted by training events", "lower", True),
    "branching": Metric("mean children of the prefixes that go on, by depth", "neither", True),
    "mean_branching": Metric("mean children over the prefixes of all depths", "lower"),
    "trie_nodes": Metric("distinct non-empty prefixes", "lower"),
    "first_bits": Metric("entropy of the first code in bits: the widest single choice of the decoder", "neither"),
    "mean_length": Metric("codes per identifier, mean", "lower"),
    "max_length": Metric("codes per identifier, longest", "lower"),
    "level_nmi": Metric("normalised mutual information of the codes of two levels, a matrix", "neither"),
    # popularity
    "popularity_gini": Metric("Gini over all first codes of the training events on their items", "lower"),
    "size_popularity_correlation": Metric("Spearman of identifier group size and training events, over items", "lower"),
    # fidelity
    "reconstruction_error": Metric("sum |z - zhat|^2 / sum |z - mean|^2; 1 = predicting the mean", "lower"),
    "reconstruction_cosine": Metric("mean cos(z, zhat)", "higher"),
    "neighbours_kept": Metric("|kNN_Z and kNN_Zhat| / k, expected over ties", "higher"),
    "neighbour_prefix_rate": Metric("P(equal prefix | nearest neighbour in Z), by prefix length", "higher", True),
    "neighbour_prefix_lift": Metric("neighbour_prefix_rate / random_prefix_rate", "higher", True),
    "random_prefix_rate": Metric("P(equal prefix | two different random items), exact", "neither", True),
    "direction_coherence": Metric(
        "mean cosine of offsets from the parent's mean, items of equal code below different parents; "
        "from the second level",
        "higher",
    ),
    "direction_coherence_all": Metric("the same over all pairs, as in ReSID's table 10", "higher"),
    # behaviour
    "pair_prefix_rate": Metric("P(equal prefix | adjacent training events)", "higher", True),
    "pair_prefix_lift": Metric("pair_prefix_rate / random_prefix_rate (CF alignment)", "higher", True),
    "history_overlap": Metric(
        "ReSID's overlap ratio: share of the earlier events of a history with the next item's code at the level",
        "higher",
        True,
    ),
    "raw_hit_rate": Metric("FORGE's embedding hit-rate on the item vectors: the upper bound", "neither"),
    "quantised_hit_rate": Metric("FORGE's embedding hit-rate on the quantised vectors", "higher"),
    "hit_rate_ratio": Metric("quantised_hit_rate / raw_hit_rate: the headline", "higher"),
    "next_code_perplexity": Metric(
        "of the next item's code given its prefix and the previous item, counted on other users", "lower", True
    ),
    "next_code_information": Metric("bits that the previous item saves at the level", "higher", True),
    "next_identifier_bits": Metric("bits per next identifier under the count model", "lower"),
    "next_item_bits": Metric("the same with the bits to tell items of one identifier apart", "lower"),
    # categories
    "category_ami": Metric("adjusted mutual information of prefix and category, by prefix length", "higher", True),
    "category_purity": Metric("weighted purity of prefixes; 1 for lone items: never read alone", "neither", True),
    "category_purity_lift": Metric("purity minus that of size-preserving shuffles", "higher", True),
    # new items
    "cold_occupied": Metric("share of new items whose prefix some known item has", "higher", True),
    "cold_new_identifier": Metric("share of new items whose identifier no known item has", "neither"),
    "cold_warm_collision": Metric("share of new items whose identifier a known item has", "lower"),
    "cold_collision": Metric("share of new items that share their identifier with another new item", "lower"),
    "cold_error": Metric("reconstruction_error of new items, against the mean of the known ones", "lower"),
    "cold_error_ratio": Metric("cold_error / reconstruction_error of the known items", "lower"),
    # append, then the same item tokenizer fitted again on all items
    "append_moved": Metric("share of published items that another identifier was given by append: must be 0", "lower"),
    "append_adjusted_rand": Metric(
        "adjusted Rand index of the prefixes after append and after a new fit, by prefix length", "higher", True
    ),
    "append_pairs_kept": Metric(
        "share of pairs with equal prefix after append that keep it in a new fit", "higher", True
    ),
    "append_occupied": Metric("share of appended items whose prefix a published item has", "higher", True),
    # two tables
    "adjusted_rand": Metric("adjusted Rand index of the prefixes in two tables, by prefix length", "higher", True),
    "pairs_kept": Metric("share of pairs with equal prefix that keep it in the other table", "higher", True),
}
"""By key without ``held_out.`` in front, ``@k`` or ``.<category depth>`` behind; held-out variants mean the same on
pairs (last event of a history, target)."""


def metric_of(key: str) -> Metric:
    """The metric that a key of a report names; KeyError for none (stable).

    >>> metric_of("held_out.quantised_hit_rate@50").better
    'higher'
    """
    return METRICS[key.removeprefix("held_out.").partition("@")[0].partition(".")[0]]
