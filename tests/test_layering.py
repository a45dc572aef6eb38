"""Who imports whom, what needs torch, and which calls are banned: read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import genrec

PACKAGE = Path(genrec.__file__).parent
WORKBENCH = [PACKAGE.parent / name for name in ("tokenizers", "prompts", "train", "serve")]

# a layer may import itself and lower numbers; two names with one number may not import each other
LAYERS = {
    "data": 1,
    "embeddings": 2,
    "item_tokenizers": 3,
    "vocab": 4,
    "decoding": 5,
    "prompts": 5,
    "baselines": 6,
    "models": 6,
    "evaluation": 7,
    "training": 8,
    "pipeline": 9,
    "serving": 10,
    "cli": 11,
    "testing": 12,
}
BASE = {
    "artifacts",
    "disk",
    "errors",
    "formats",
    "manifest",
    "progress",
    "recipe_build",
    "recipe_leaves",
    "recipe_text",
    "recipes",
    "schedules",
    "seeding",
    "workbench",
}
# imported inside the function that needs them
LAZY = {"pyarrow", "pydantic", "vllm", "fastapi", "matplotlib", "sentence_transformers", "faiss", "datasets"}
MAY_IMPORT_LAZY_ONES = {"serving", "cli", "testing"}
BANNED_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
WITHOUT_TORCH = [
    "genrec.data",
    "genrec.metrics",
    "genrec.decoding.index",
    "genrec.item_tokenizers.codes",
    "genrec.prompts",
]
WITHOUT_TORCH += ["genrec", "genrec.serving.supervisor", *(f"genrec.{name}" for name in sorted(BASE))]


def modules():
    """(dotted name, file) of every module of the package."""
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        if "_workbench" not in parts:
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), file


def imports(source):
    """Full names that a piece of source imports, at any depth."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def at_module_level(source):
    """Top-level modules that are imported when the source is imported (TYPE_CHECKING blocks excepted)."""
    pending = list(ast.parse(source).body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            pending += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
            pending += getattr(node, "handlers", [])


def violation(importer, imported):
    """Why ``importer`` (dotted) may not import ``imported`` (dotted), or None."""
    parts = imported.split(".")
    if parts[0] != "genrec" or len(parts) == 1 or parts[1].startswith("__"):
        return None
    mine, other = (*importer.split("."), "")[1], parts[1]
    if mine in ("", other) or mine == "testing":
        return None
    if mine == "metrics":
        return "metrics imports none of ours"
    if mine in BASE:
        return None if other in BASE else f"{mine} is below {other}"
    if other in BASE or other == "metrics":
        return None
    return None if LAYERS[other] < LAYERS[mine] else f"{mine} is not above {other}"


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("genrec.data.catalog", "genrec.artifacts.read", True),
        ("genrec.data.catalog", "genrec.metrics.ranking", True),
        ("genrec.data.catalog", "genrec.vocab.token_map", False),
        ("genrec.models.lora", "genrec.baselines.sasrec", False),
        ("genrec.training.finetune", "genrec.evaluation.run", True),
        ("genrec.evaluation.run", "genrec.training.finetune", False),
        ("genrec.artifacts", "genrec.data.catalog", False),
        ("genrec.artifacts", "genrec.__version__", True),
        ("genrec.metrics.ranking", "genrec.errors.DataError", False),
        ("genrec.cli.main", "genrec.testing.oracles", False),
        ("genrec.testing.oracles", "genrec.cli.main", True),
        ("genrec.data.catalog", "numpy.random", True),
    ],
)
def test_the_rule_itself(importer, imported, allowed):
    assert (violation(importer, imported) is None) == allowed


def test_imports_only_point_downwards():
    wrong = []
    for name, file in modules():
        for imported in imports(file.read_text()):
            if reason := violation(name, imported):
                wrong.append(f"{name} imports {imported}: {reason}")
    assert wrong == []


def test_every_part_has_a_layer():
    parts = {name.split(".")[1] for name, _ in modules() if "." in name}
    assert parts - {"metrics"} - BASE - set(LAYERS) == set()


def test_metrics_needs_numpy_only():
    for name, file in modules():
        if name.startswith("genrec.metrics"):
            outside = {i.split(".")[0] for i in imports(file.read_text())} - set(sys.stdlib_module_names)
            assert outside <= {"numpy", "genrec"}, name


def test_optional_and_heavy_packages_are_imported_where_they_are_needed():
    wrong = []
    for name, file in modules():
        found = set(at_module_level(file.read_text())) & LAZY
        if found and name.split(".")[1:2] not in [[part] for part in MAY_IMPORT_LAZY_ONES]:
            wrong.append((name, sorted(found)))
    assert wrong == []


def test_what_works_without_torch():
    names = [
        name
        for name, _ in modules()
        if any(name == prefix or name.startswith(prefix + ".") for prefix in WITHOUT_TORCH if prefix != "genrec")
    ]
    code = f"""
import importlib, sys
import genrec
assert "torch" not in sys.modules and "numpy" not in sys.modules, "import genrec is not cheap"
for name in {names!r}:
    importlib.import_module(name)
    for heavy in ("torch", "transformers"):
        assert heavy not in sys.modules, f"{{name}} imports {{heavy}}"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def banned(source):
    """Calls and imports that can run code from data, one text each."""
    found = [f"import {name}" for name in imports(source) if name.split(".")[0] in BANNED_MODULES]
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name, options = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        if name in ("eval", "exec", "os.system", "os.popen"):
            found.append(name)
        if name == "torch.load" and options.get("weights_only") != "True":
            found.append("torch.load without weights_only=True")
        if name in ("yaml.unsafe_load", "yaml.full_load") or (
            name in ("yaml.load", "yaml.load_all") and "Safe" not in ast.unparse(node)
        ):
            found.append(name)
        found += [f"{o}=True" for o in ("shell", "trust_remote_code", "allow_pickle") if options.get(o) == "True"]
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "eval('1')",
        "exec(x)",
        "os.system('ls')",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "yaml.load(f, Loader=yaml.Loader)",
        "yaml.unsafe_load(f)",
        "run('ls', shell=True)",
        "AutoModel.from_pretrained(p, trust_remote_code=True)",
        "def f():\n    return np.load(p, allow_pickle=True)",
    ],
)
def test_banned_calls_are_recognised(source):
    assert len(banned(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "torch.load(f, weights_only=True)",
        "yaml.load(f, Loader=yaml.SafeLoader)",
        "np.load(p)",
    ],
)
def test_harmless_calls_are_not(source):
    assert banned(source) == []


def test_no_banned_call_anywhere():
    files = [file for _, file in modules()] + [f for folder in WORKBENCH for f in folder.rglob("*.py")]
    assert {str(f): found for f in files if (found := banned(f.read_text()))} == {}
