import contextlib
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from genrec import recipes
from genrec.errors import ConfigError, MissingExtra


@dataclass(frozen=True)
class Flat:
    level_size: int
    learning_rate: float = 1e-3
    name: str | None = None
    mode: Literal["fast", "exact"] = "fast"
    sizes: tuple[int, ...] = (256, 256)
    where: Path = Path("runs")
    share: Annotated[float, Field(ge=0, le=1)] = 0.5
    on: bool = False
    weights: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        if self.level_size < 2:
            raise ConfigError(f"level_size: expected at least 2, got {self.level_size}", hint="use 256")


@dataclass(frozen=True)
class KMeans:
    kind: Literal["kmeans"] = "kmeans"
    n_levels: int = 3


@dataclass(frozen=True)
class Vae:
    kind: Literal["vae"] = "vae"
    n_levels: int = 4
    inner: Flat = field(default_factory=lambda: Flat(8, sizes=(1, 2)))


@dataclass(frozen=True)
class Block:
    source: KMeans | Vae
    dim: int | None = None


@dataclass(frozen=True)
class Job:
    tokenizer: KMeans | Vae = field(default_factory=lambda: KMeans(n_levels=7))
    blocks: tuple[Block, ...] = (Block(KMeans()), Block(Vae(), 3))
    by_name: dict[str, Block] = field(default_factory=dict)
    maybe: Flat | None = None
    pair: tuple[KMeans, int] = (KMeans(), 1)
    anything: Any = None


def problem(text, model=Flat, overrides=()):
    with pytest.raises(ConfigError) as caught:
        recipes.load(text, model, overrides)
    return str(caught.value)


# --- reading -----------------------------------------------------------------------------------------------


def test_a_file_with_every_type(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text(
        "level_size: 16\nlearning_rate: 1e-4  # text in YAML 1.1\nname: no\nmode: exact\n"
        "sizes: [010, 0x10, 1_000]\nwhere: a/b\nshare: 1\non: true\nweights: {a: .5, b: 2}\n"
    )
    found = recipes.load(file, Flat)
    assert found.value == Flat(16, 1e-4, "no", "exact", (10, 16, 1000), Path("a/b"), 1.0, True, {"a": 0.5, "b": 2.0})
    assert recipes.load(str(file), Flat).value == found.value
    assert found.given == set(found.as_dict()) - {"weights"} | {"weights.a", "weights.b"}


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("-1.5E+3", -1500.0), (".5", 0.5), ("1_0.", 10.0), ("0o17", 15), ("+3", 3)]
    + [(word, word) for word in ("yes", "off", "1:30", "2020-01-01", "1.2.3", "e5", "0x", "'3'"[1:-1] + "a")]
    + [("'3'", "3"), ("~", None), ("", None), ("TRUE", True)],
)
def test_how_plain_words_are_read(text, value):
    found = recipes.load(f"anything: {text}\n", Job).value.anything
    assert (found, type(found)) == (value, type(value))


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_that_python_prints_is_read_back(x):
    assert recipes.load(f"level_size: 2\nlearning_rate: {x!r}\n", Flat).value.learning_rate == x


def test_unions_lists_and_dicts_of_settings():
    text = """
tokenizer: {kind: vae, inner: {level_size: 5}}
blocks:
  - source: {kind: kmeans}
    dim: 2
by_name:
  x: {source: {kind: vae}}
maybe: {level_size: 3}
pair: [{n_levels: 1}, 2]
"""
    assert recipes.load(text, Job).value == Job(
        tokenizer=Vae(inner=Flat(5)),
        blocks=(Block(KMeans(), 2),),
        by_name={"x": Block(Vae())},
        maybe=Flat(3),
        pair=(KMeans(n_levels=1), 2),
    )


def test_a_union_as_model_and_choosing_by_kind_first():
    assert recipes.load("kind: vae\n", KMeans | Vae).value == Vae()
    assert recipes.kind_of("kind: vae\n") == "vae"
    assert recipes.kind_of("kind: vae\n", ["n_levels=2", "kind=kmeans"]) == "kmeans"
    with pytest.raises(ConfigError, match="kind: expected a name, got None"):
        recipes.kind_of("n_levels: 3\n")


def test_an_empty_file_is_all_defaults(tmp_path):
    (tmp_path / "e.yaml").write_text("# nothing\n")
    assert recipes.load(tmp_path / "e.yaml", Job).value == Job()


# --- refusing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("level_size: 3\nlevel_sise: 4\n", "recipe:2: level_sise: unknown key; did you mean 'level_size'?"),
        (
            "name: x\n",
            "recipe:1: level_size: expected a value (it has no default), but 'level_size' is missing",
        ),
        ("level_size: '3'\n", "recipe:1: level_size: expected a valid integer, got '3'"),
        ("level_size: true\n", "level_size: expected a valid integer, got True"),
        ("level_size: 3.0\n", "level_size: expected a valid integer, got 3.0"),
        ("level_size: 3\n\nname: 4\n", "recipe:3: name: expected a valid string or null, got 4"),
        ("level_size: 3\nmode: fats\n", "recipe:2: mode: expected 'fast' or 'exact', got 'fats'"),
        ("level_size: 3\nsizes:\n- 1\n- x\n", "recipe:4: sizes.1: expected a valid integer, got 'x'"),
        ("level_size: 3\nshare: 2\n", "recipe:2: share: expected less than or equal to 1, got 2"),
        ("level_size: 3\non: yes\n", "recipe:2: on: expected a valid boolean, got 'yes'"),
        ("level_size: 3\nweights:\n  a: b\n", "recipe:3: weights.a: expected a valid number, got 'b'"),
        ("name: x\nlevel_size: 1\n", "recipe:2: level_size: expected at least 2, got 1"),
        ("level_size: 3\nlevel_size: 3\n", "recipe:2: the key 'level_size' appears twice"),
        ("level_size: 3\nlearning_rate: .inf\n", "recipe:2: expected a finite number, got .inf"),
        ("level_size: 3\nlearning_rate: 1e999\n", "recipe:2: expected a finite number, got 1e999"),
        ("a: &x 3\nlevel_size: *x\n", "recipe:2: aliases (*name) are not allowed"),
        ("level_size: 3\n<<: {a: 1}\n", "recipe:2: merge keys (<<) are not allowed"),
        ("level_size: 3\nname: !!python/name:os.system x\n", "recipe:2: the tag"),
        ("level_size: 3\nname: !!binary aaaa\n", "recipe:2: the tag"),
        ("level_size: !!int x\n", "recipe:1: 'x' is no int"),
        ("name: a: b\n", "recipe:1: a second 'key: ' in one line"),
        ("level_size: 3\nname\non: true\n", "recipe:2: expected 'key: value'"),
        ("weights:\n\ta: 1\n", "recipe:2: a tab; indent with spaces"),
        ("level_size: 3\nname: @x\n", "recipe:2: a text that begins with such a sign needs quotes"),
        ("weights:\n  a: 1\n b: 2\n", "recipe:3: the line does not fit the lines above"),
        ("level_size: 3\nname: 'x\non: true\n", "recipe:2: a quote that is not closed"),
        ("level_size: 3\nname: ]\n", "recipe:2: expected a value"),
        ("level_size: 3\nname: a\0b\n", "recipe:2: '\\x00' is no printable character"),
        ("level_size: [1\n\n", "recipe:1: a '[' or '{' that is not closed"),
        ("? [a]\n: b\n", "recipe:1: expected a word as key"),
        ("- 1\n", "recipe:1: expected a mapping, got [1]"),
        ("--- {}\n--- {}\n", "recipe:2: expected one recipe in a file"),
        ("[" * 5000 + "\n", "nested too deeply"),
    ],
)
def test_each_mistake_names_line_path_and_values(text, message):
    assert message in problem(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "tokenizer: {kind: kmean}\n",
            "tokenizer.kind: expected one of kmeans, vae, got 'kmean'; did you mean 'kmeans'?",
        ),
        ("tokenizer: {n_levels: 3}\n", "tokenizer.kind: expected one of kmeans, vae, it is missing"),
        ("tokenizer: 3\n", "tokenizer: expected a mapping, got 3"),
        ("tokenizer: null\n", "tokenizer: expected a mapping, got None"),
        ("tokenizer: {kind: vae, inner: {level_size: 3, x: 1}}\n", "tokenizer.inner.x: unknown key"),
        (
            "blocks:\n- source: {kind: vae}\n  dims: 3\n",
            "recipe:3: blocks.0.dims: unknown key; did you mean 'dim'?",
        ),
        ("blocks: {}\n", "blocks: expected a list, got {}"),
        ("by_name:\n  x: {source: {kind: vae}, y: 1}\n", "recipe:2: by_name.x.y: unknown key"),
        ("by_name:\n- 1\n", "recipe:1: by_name: expected a mapping, got [1]"),
        ("pair: [{}]\n", "pair: expected 2 elements, got 1"),
        ("maybe: {level_size: 0}\n", "maybe.level_size: expected at least 2, got 0"),
    ],
)
def test_mistakes_inside_nested_settings(text, message):
    assert message in problem(text, Job)


def test_all_problems_are_told_at_once_with_the_known_keys():
    with pytest.raises(ConfigError) as caught:
        recipes.load("level_size: x\nnaem: y\nmode: z\n", Flat)
    text = str(caught.value)
    assert text.startswith("3 problems:")
    assert all(part in text for part in ("level_size: expected", "naem: unknown", "mode: expected"))
    assert "level_size, learning_rate" in caught.value.hint


def test_the_hint_of_the_settings_class_is_kept():
    with pytest.raises(ConfigError) as caught:
        recipes.load("level_size: 1\n", Flat)
    assert caught.value.hint == "use 256"


def test_a_missing_file_and_bytes_that_are_no_text(tmp_path):
    (tmp_path / "rqvae.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ConfigError, match="cannot read the recipe") as caught:
        recipes.load(tmp_path / "rqave.yaml", Flat)
    assert "rqvae.yaml" in caught.value.hint
    (tmp_path / "rqvae-notes.txt").touch()
    (tmp_path / "folder.yaml").mkdir()
    for unlike in ("nowhere.yaml", "rqvae-note.txt", "folder.yaml", "folder"):
        with pytest.raises(ConfigError, match="cannot read the recipe") as caught:
            recipes.load(tmp_path / unlike, Flat)
        assert caught.value.hint is None, unlike
    with pytest.raises(ConfigError, match="UTF-8"):
        recipes.load(tmp_path / "rqvae.yaml", Flat)
    (tmp_path / "rqvae.yaml").write_text("level_size: x")
    assert f"{tmp_path / 'rqvae.yaml'}:1: level_size" in problem(tmp_path / "rqvae.yaml")


def test_a_file_that_may_not_be_read_is_not_suggested(tmp_path, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "mine.yaml").touch()
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ConfigError, match="Permission denied") as caught:
        recipes.load(tmp_path / "mine.yaml", Flat)
    assert caught.value.hint is None


def test_infinity_when_it_is_allowed():
    text = "level_size: 3\nlearning_rate: -.inf\n"
    assert recipes.load(text, Flat, allow_nonfinite=True).value.learning_rate == float("-inf")


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=40))
def test_any_text_gives_settings_or_a_config_error(text):
    with contextlib.suppress(ConfigError):
        recipes.load("# a recipe\n" + text, Job)


# --- overrides ---------------------------------------------------------------------------------------------


def test_overrides_start_from_the_file_and_the_defaults():
    found = recipes.load(
        "blocks: [{source: {kind: vae}}]\n",
        Job,
        [
            "tokenizer.n_levels=2",
            "blocks.0.dim=9",
            "maybe.level_size=4",
            "by_name.x={source: {kind: kmeans}}",
        ],
    )
    assert found.value == Job(
        tokenizer=KMeans(n_levels=2),
        blocks=(Block(Vae(), 9),),
        by_name={"x": Block(KMeans())},
        maybe=Flat(4),
    )
    # the default of the field counts, not the default of its class
    assert recipes.load("{}\n", Vae, ["inner.name=a"]).value.inner == Flat(8, name="a", sizes=(1, 2))
    assert recipes.load("{}\n", Vae, ["inner.sizes.1=9"]).value.inner.sizes == (1, 9)
    assert recipes.load("{}\n", Job, ["blocks.1.dim=null"]).value.blocks == (Block(KMeans()), Block(Vae()))


def test_an_override_may_change_the_kind_whatever_the_order():
    for order in (1, -1):
        found = recipes.load("{}\n", Job, ["tokenizer.inner.level_size=6", "tokenizer.kind=vae"][::order])
        assert found.value.tokenizer == Vae(inner=Flat(6, sizes=(1, 2)))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "tokenizer.nlevels=2",
            "--set tokenizer.nlevels: tokenizer.nlevels: unknown key; did you mean 'n_levels'?",
        ),
        ("tokeniser.x=2", "--set tokeniser.x: tokeniser: unknown key; did you mean 'tokenizer'?"),
        (
            "tokenizer.n_levels=two",
            "--set tokenizer.n_levels: tokenizer.n_levels: expected a valid integer, got 'two'",
        ),
        ("blocks.5.dim=2", "expected an index from 0 to 1, got '5'"),
        ("blocks.x.dim=2", "expected an index from 0 to 1, got 'x'"),
        ("tokenizer.n_levels.x=2", "'x' is not inside a mapping or a list: the value there is 7"),
        ("tokenizer", "expected path.to.field=value"),
        ("a..b=1", "expected path.to.field=value"),
        ("anything={a", "--set anything:1: "),
        ("anything=.nan", "expected a finite number"),
    ],
)
def test_wrong_overrides(override, message):
    assert message in problem("{}\n", Job, [override])


def test_a_long_value_is_cut():
    text = problem("[" + "x, " * 300 + "]\n")
    assert text.startswith("recipe:1: expected a mapping, got ['x', 'x', ") and text.endswith("...") and len(text) < 130
    assert len(problem(f"level_size: {'x' * 500}\n")) < 160
    assert len(problem(f"level_size: 3\nshare: {'x' * 500}\n")) < 160
    assert len(problem(f"tokenizer: {{kind: {'x' * 500}}}\n", Job)) < 180


@dataclass(frozen=True)
class Heads:
    width: int = 8
    n_heads: int = 2

    def __post_init__(self):
        if self.width % self.n_heads:
            raise ConfigError(f"width: expected a multiple of {self.n_heads}, got {self.width}")


def test_an_override_that_makes_another_setting_wrong_is_named():
    said = "recipe:1: width: expected a multiple of 5, got 8"
    assert problem("width: 8\n", Heads, ["n_heads=5"]) == said + " (with --set n_heads)"
    assert problem("{width: 8, n_heads: 5}\n", Heads) == said
    assert problem("n_heads: 5\n", Heads, ["width=8"]).startswith("--set width: width: ")
    assert "with" not in problem("n_heads: 5\n", Heads, ["width=8"])


def test_another_kind_over_a_written_block_is_told_to_replace_the_block():
    with pytest.raises(ConfigError) as caught:
        recipes.load("tokenizer: {kind: vae, inner: {level_size: 3}}\n", Job, ["tokenizer.kind=kmeans"])
    assert "tokenizer.inner: unknown key" in str(caught.value)
    assert "replace the whole block, --set 'tokenizer={kind: kmeans}'" in caught.value.hint
    with pytest.raises(ConfigError) as caught:
        recipes.load("tokenizer: {kind: kmeans, inner: 3}\n", Job)
    assert "whole block" not in caught.value.hint


def test_an_override_without_a_value_is_shown_one():
    with pytest.raises(ConfigError) as caught:
        recipes.load("{}\n", Job, ["train.epochs"])
    assert caught.value.hint == "for example --set train.epochs=4"


def test_overrides_do_not_change_the_callers_data():
    assert recipes.load("{}\n", Job, ["blocks.0.dim=4"]).value != recipes.load("{}\n", Job).value
    assert Job().blocks[0].dim is None


# --- what is kept ------------------------------------------------------------------------------------------


def test_describe_tells_given_default_and_derived():
    found = recipes.load("tokenizer: {kind: vae, n_levels: 4}\n", Job, ["anything=[1, 2]"])
    origin = {row.path: (row.value, row.origin) for row in found.describe()}
    assert origin["tokenizer.n_levels"] == (4, "given")
    assert origin["tokenizer.inner.level_size"] == (8, "default")
    assert origin["anything"] == ([1, 2], "given")
    assert origin["blocks.1.dim"] == (3, "default")
    final = replace(found.value, maybe=Flat(2), tokenizer=replace(found.value.tokenizer, n_levels=5))
    origin = {row.path: (row.value, row.origin) for row in found.describe(final)}
    assert origin["tokenizer.n_levels"] == (5, "derived")
    assert origin["maybe.level_size"] == (2, "derived")
    assert origin["tokenizer.kind"] == ("vae", "given")


FLATS = st.builds(
    Flat,
    level_size=st.integers(2, 2**40),
    learning_rate=st.floats(allow_nan=False, allow_infinity=False),
    name=st.none() | st.text(),
    mode=st.sampled_from(["fast", "exact"]),
    sizes=st.lists(st.integers(), max_size=3).map(tuple),
    where=st.sampled_from([Path("a/b"), Path("/x")]),
    share=st.floats(0, 1),
    on=st.booleans(),
    weights=st.dictionaries(st.text(), st.floats(-9, 9), max_size=2),
)
TOKENIZERS = st.builds(KMeans, n_levels=st.integers()) | st.builds(Vae, n_levels=st.integers(), inner=FLATS)
BLOCKS = st.builds(Block, source=TOKENIZERS, dim=st.none() | st.integers())
JOBS = st.builds(
    Job,
    tokenizer=TOKENIZERS,
    blocks=st.lists(BLOCKS, max_size=2).map(tuple),
    by_name=st.dictionaries(st.text(), BLOCKS, max_size=2),
    maybe=st.none() | FLATS,
    pair=st.tuples(st.builds(KMeans), st.integers()),
    anything=st.none() | st.lists(st.integers()) | st.text(),
)


@settings(max_examples=40, deadline=None)
@given(JOBS)
def test_settings_come_back_from_json_with_and_without_pydantic(job):
    data = recipes.to_json(job)
    assert recipes.from_dict(Job, data) == job
    assert recipes.validate(data, Job) == job


def test_validate_names_its_place():
    with pytest.raises(ConfigError, match=r"job\.yaml: tokenizer: n_levels: expected a valid integer"):
        recipes.validate({"n_levels": "x"}, KMeans, where="job.yaml: tokenizer")


@pytest.mark.parametrize(
    "data",
    [
        {},
        [],
        {"level_size": True},
        {"level_size": 3, "mode": "x"},
        {"level_size": 3, "old": 1},
        {"level_size": 3, "sizes": 4},
        {"level_size": 3, "weights": []},
        {"level_size": 3, "where": 5},
    ],
)
def test_from_dict_is_as_strict(data):
    with pytest.raises(ConfigError):
        recipes.from_dict(Flat, data)


@pytest.mark.parametrize("value", [float("nan"), object(), {1, "a"}])
def test_to_json_refuses_what_has_no_json_form(value):
    with pytest.raises((ConfigError, TypeError)):
        recipes.to_json(Job(anything=value))


def test_without_pydantic_only_recipes_are_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydantic", None)
    with pytest.raises(MissingExtra, match="pydantic") as caught:
        recipes.load("level_size: 3\n", Flat)
    assert caught.value.hint == "pip install pydantic"
    assert recipes.from_dict(Flat, {"level_size": 3}) == Flat(3)


def test_importing_recipes_does_not_import_pydantic():
    code = "import sys, genrec.recipes; print('pydantic' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False False"
