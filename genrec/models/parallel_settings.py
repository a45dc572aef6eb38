"""What a parallel model is: its transformer, how items enter it, and how the next item is read off.

Axes: n parts of an item, K codes of a part, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from genrec.errors import ConfigError
from genrec.item_tokenizers.sets import SetRecSettings
from genrec.models.adapters import LoraSettings
from genrec.models.backbone import DecoderSettings, T5Settings
from genrec.models.pretrained import PretrainedSettings

Method = Literal["setrec", "recgpt", "rpg"]
ParallelBackbone = DecoderSettings | T5Settings | PretrainedSettings
NO_POSITIONS = "readout: positions needs a decoder-only backbone"


@dataclass(frozen=True)
class ParallelSettings:
    """A model that predicts all parts of the next item's identifier at once; see :func:`preset` for published ones.

    backbone: the transformer: with random weights, or a pretrained language model, of which the layers are used and not
        the rows of its tokens. lora: train adapters on a pretrained one instead of its own weights (``train_rows``
        plays no part: there are no rows). instruction: text that a pretrained one reads before the history; its rows
        are copied, and are trained like the start vector that follows them.
    target: ``codes`` = a distribution over the codes of every part; ``vectors`` = a vector for every part, compared
        with those of all items.
    item: ``slots`` = one position for each part; ``pooled`` = one position, the mean of the parts.
    readout: ``queries`` = learned queries, one for each part, which see the history and not each other; ``heads`` = one
        head for each part over one state; ``positions`` = position j of an item predicts part j of the next one, and
        the parts of an item see each other (decoder-only).
    temperature: None = a linear output layer for codes; a number = cosines with the codes' own embeddings, divided by
        it. content: items also enter with vectors that nothing has quantized (RecGPT's auxiliary text).
    joint: the settings of the ``setrec`` item tokenizer whose autoencoder goes on learning with the model; None = slots
        as they are. reconstruction: weight of its loss then.

    Raises ConfigError for parts that do not fit together. Stability: experimental.
    """

    kind: Literal["parallel"] = "parallel"
    backbone: ParallelBackbone = field(default_factory=DecoderSettings)
    lora: LoraSettings | None = None
    instruction: str = ""
    target: Literal["codes", "vectors"] = "codes"
    item: Literal["slots", "pooled"] = "slots"
    readout: Literal["queries", "heads", "positions"] = "queries"
    temperature: float | None = None
    content: bool = False
    joint: SetRecSettings | None = None
    reconstruction: float = 0.7

    def __post_init__(self) -> None:
        for name, values in (
            ("target", ("codes", "vectors")),
            ("item", ("slots", "pooled")),
            ("readout", ("queries", "heads", "positions")),
        ):
            if getattr(self, name) not in values:
                raise ConfigError(f"{name}: expected one of {', '.join(values)}, got {getattr(self, name)!r}")
        vectors, text_model = self.target == "vectors", isinstance(self.backbone, PretrainedSettings)
        drawn = not text_model or getattr(self.backbone, "random_weights", False)
        held = getattr(self.backbone, "weights", "float32")
        for wrong, message in (
            (self.readout == "positions" and self.item == "pooled", "readout: positions needs item: slots"),
            (self.readout == "positions" and isinstance(self.backbone, T5Settings), NO_POSITIONS),
            (self.lora is not None and drawn, "lora: only for a pretrained backbone with its own weights"),
            (self.lora is not None and self.lora.r == 0, "lora.r: expected above 0, as there are no rows to train"),
            (self.lora is None and held != "float32", "backbone.weights: trained whole, so in float32; or add lora"),
            (
                bool(self.instruction) and not text_model,
                "instruction: only for a pretrained backbone",
            ),
            (self.temperature is not None and not self.temperature > 0, "temperature: expected above 0, or none"),
            (self.temperature is not None and vectors, "temperature: only for target: codes"),
            (self.content and vectors, "content: only for target: codes; the slots of target: vectors have it"),
            (self.joint is not None and not vectors, "joint: only for target: vectors"),
            (self.joint is not None and self.joint.level_size > 0, "joint: expected continuous slots, level_size: 0"),
            (self.reconstruction < 0, "reconstruction: expected 0 or more"),
        ):
            if wrong:
                raise ConfigError(f"{message}; got {self}")

    @property
    def together(self) -> bool:
        """Whether a decoder-only model lets the parts of an item see each other: the hybrid mask of RecGPT."""
        return self.readout == "positions"

    @property
    def dropout(self) -> float:
        """Of the input embeddings, in training; a T5 drops them itself, a pretrained decoder does not."""
        return self.backbone.dropout if isinstance(self.backbone, DecoderSettings) else 0.0


_METHODS: dict[str, dict[str, Any]] = {
    "setrec": {"target": "vectors", "item": "slots", "readout": "queries"},
    "recgpt": {"target": "codes", "item": "slots", "readout": "positions", "content": True},
    "rpg": {"target": "codes", "item": "pooled", "readout": "heads", "temperature": 0.07},
}


def preset(method: Method, backbone: ParallelBackbone | None = None, **changes: Any) -> ParallelSettings:
    """The settings of a published method, on a small decoder with random weights unless told otherwise (experimental).

    ``setrec`` (Lin et al. 2025, 2502.10833): set identifiers, learned queries, the softmax over the catalog.
    ``recgpt`` (Jiang et al. 2025, 2506.06270): independent FSQ codes with the unquantized vectors beside them, hybrid
    attention. ``rpg`` (Hou et al. 2025, 2506.05781): product codes, pooled items, one head for each code. Raises
    ConfigError for another name, and for changes that do not fit.
    """
    if method not in _METHODS:
        raise ConfigError(f"method: expected one of {', '.join(_METHODS)}, got {method!r}")
    return replace(ParallelSettings(), **{**_METHODS[method], "backbone": backbone or DecoderSettings(), **changes})
