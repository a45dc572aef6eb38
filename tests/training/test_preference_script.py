"""train/preference.py as a user starts it, and its stage: on a run folder, on a bundle, on adapters."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from genrec import artifacts
from genrec.data.splits import Split
from genrec.decoding.index import CatalogIndex
from genrec.errors import ArtifactError, ConfigError
from genrec.models.adapters import LoraSettings, add_lora
from genrec.models.bundle import load_bundle, save_bundle
from genrec.models.pretrained import PretrainedSettings, extend_rows, load_pretrained
from genrec.models.recommender import DecodingSettings, GenerativeRecommender
from genrec.models.template_prompts import TemplatePrompts
from genrec.pipeline.preference_stage import PreferencePaths, PreferenceRecipe, compare_stage, preference_stage
from genrec.prompts.encode import ExampleEncoder
from genrec.prompts.tasks import load_task
from genrec.prompts.wrapper import Wrapper
from genrec.recipes import load
from genrec.testing.text_models import tiny_text_model
from genrec.testing.walks import N_ITEMS, tiny_model, walk_codes, walks
from genrec.training.preference_figures import DegenerateRun
from genrec.vocab.text_vocabulary import extend_vocabulary

ROOT = Path(__file__).parents[2]
SMALL = [
    "train.max_steps=2", "train.eval_every=1", "train.batch_size=16", "train.warmup_steps=1", "train.eval_users=10",
    "train.eval_beams=10", "train.bf16=false", "evaluate.n_bootstrap=10", "evaluate.n_beams=10", "alarms.max_kl=null",
    "alarms.min_coverage=0", "alarms.min_reward=0", "alarms.min_valid=0",
]  # fmt: skip


def write_split(folder, codes):
    lengths = np.random.default_rng(0).integers(4, 9, 20)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = np.concatenate([(s + np.arange(n)) % N_ITEMS for s, n in enumerate(lengths)]).astype(np.int32)
    Split(items, offsets, offsets[1:] - 2, offsets[1:] - 1, N_ITEMS, codes.catalog).save(folder / "split")


@pytest.fixture
def run_folder(tmp_path):
    """A finished run, as far as it is read."""
    data, codes = walks(), walk_codes()
    write_split(tmp_path / "run", codes)
    index = CatalogIndex.build(codes, keep=np.arange(N_ITEMS) != 4)  # one item is not offered any more
    settings = DecodingSettings(n_beams=10, loss="vocab", max_items=5)
    recommender = GenerativeRecommender(tiny_model("decoder", data), data.token_map, codes, index, settings)
    save_bundle(tmp_path / "run" / "bundle", recommender)
    return tmp_path / "run"


def recipe_of(method, *more):
    return load(ROOT / "train" / "preference" / f"{method}.yaml", PreferenceRecipe, [*SMALL, *more]).value


def start(run, *more, launcher=()):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path}
    command = [sys.executable, *launcher, str(ROOT / "train" / "preference.py"), str(run)]
    command += [str(ROOT / "train" / "preference" / "dpo.yaml"), *more]
    for change in SMALL:
        command += ["--set", change]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_two_processes_give_what_one_gives(run_folder, tmp_path):
    two = start(run_folder, launcher=["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"])
    assert two.returncode == 0 and two.stdout.count("bundle:") == 1, two.stderr
    assert start(run_folder, "--out", str(tmp_path / "one")).returncode == 0
    found = [
        load_bundle(each).recommender.score([[1, 2], [5]]) for each in (run_folder / "preference-dpo", tmp_path / "one")
    ]
    np.testing.assert_allclose(*found, atol=1e-5)


@pytest.mark.slow
def test_script(run_folder):
    stopped = start(run_folder, "--max-seconds", "1e-6")
    assert stopped.returncode == 75 and "run the same command" in stopped.stderr, stopped.stderr
    assert not (run_folder / "preference-dpo" / "bundle").exists()
    done = start(run_folder)
    assert done.returncode == 0, done.stderr
    assert "going on from step 1 of 2" in done.stderr and done.stdout.count("recall@10") == 2
    out = run_folder / "preference-dpo"
    new, old = (load_bundle(each).recommender for each in (out, run_folder))
    assert new.settings == old.settings and (new.index.items == old.index.items).all()
    assert not np.allclose(new.score([[1, 2]]), old.score([[1, 2]]))
    log = json.loads((out / "training" / "log.json").read_text())
    assert [entry["step"] for entry in log] == [1, 2] and {"kl", "coverage@10", "valid_mass"} <= set(log[0])


def test_a_bundle_is_not_changed_and_a_finished_one_is_read(run_folder, tmp_path):
    bundle, recipe = run_folder / "bundle", recipe_of("grpo", "method.n_rollouts=4", "method.add_target=true")
    before = (bundle / "genrec.json").read_bytes()
    with pytest.raises(ArtifactError, match="no split"):
        PreferencePaths.of(bundle, "grpo", split=tmp_path)
    paths = PreferencePaths.of(bundle, "grpo", split=run_folder / "split", out=tmp_path / "out")
    assert PreferencePaths.of(bundle, "grpo").out == run_folder / "preference-grpo"
    first = preference_stage(paths, recipe)
    reports = compare_stage(paths, recipe, first)
    assert [each.name for each in reports] == ["before", "after"] and (bundle / "genrec.json").read_bytes() == before
    written = (tmp_path / "out" / "bundle" / "genrec.json").read_bytes()
    preference_stage(paths, replace(recipe, evaluate=replace(recipe.evaluate, n_beams=5)))
    assert (tmp_path / "out" / "bundle" / "genrec.json").read_bytes() == written
    assert json.loads(written)["parents"]["bundle"] == artifacts.read(bundle).digest
    with pytest.raises(ConfigError, match="softmax"):
        preference_stage(paths, recipe_of("grpo", "train.softmax=children"))
    with pytest.raises(DegenerateRun, match="distance"):
        preference_stage(paths, recipe_of("grpo", "method.add_target=true", "alarms.max_kl=1e-9"))
    assert (tmp_path / "out" / "bundle" / "genrec.json").read_bytes() == written


def test_a_bundle_of_adapters_stays_one_and_keeps_its_prompt(tmp_path):
    for each in tiny_text_model("qwen3"):
        each.save_pretrained(tmp_path / "base")
    codes = walk_codes()
    write_split(tmp_path / "run", codes)
    vocabulary = extend_vocabulary(tiny_text_model("qwen3")[1], codes)
    model = load_pretrained(PretrainedSettings(str(tmp_path / "base")))
    extend_rows(model, vocabulary)
    model = add_lora(model, vocabulary.token_map, LoraSettings(r=2))
    encoder = ExampleEncoder(vocabulary, codes, layout="decoder", wrapper=Wrapper.named("plain"), max_tokens=256)
    asked = TemplatePrompts(load_task("sequential").template, encoder)
    settings = DecodingSettings(n_beams=10, loss="level")
    recommender = GenerativeRecommender(
        model, vocabulary.token_map, codes, CatalogIndex.build(codes), settings, prompts=asked
    )
    save_bundle(tmp_path / "run" / "bundle", recommender, vocabulary=vocabulary)
    paths = PreferencePaths.of(tmp_path / "run", "dpo")
    tuned = preference_stage(paths, recipe_of("dpo", "train.learning_rate=0.01"))
    kept = tuned.recommender.prompts
    assert kept is not None and kept.template.fingerprint == asked.template.fingerprint
    assert (paths.out / "bundle" / "model" / "adapter").is_dir()
    assert not np.allclose(tuned.recommender.score([[1, 2]]), load_bundle(tmp_path / "run").recommender.score([[1, 2]]))
