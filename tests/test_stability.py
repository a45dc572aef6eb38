"""Every public name below serving says how much it may be relied on: stable, experimental or internal."""

import importlib
import inspect
import pkgutil
import re

import pytest

PACKAGES = ["data", "embeddings", "item_tokenizers", "vocab", "prompts", "metrics", "evaluation", "baselines"]


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_have_a_stability_word(package):
    root = importlib.import_module(f"genrec.{package}")
    missing, n_seen = [], 0
    for found in pkgutil.walk_packages(root.__path__, f"genrec.{package}."):
        module = importlib.import_module(found.name)
        for name, member in vars(module).items():
            ours = getattr(member, "__module__", None) == found.name
            if name.startswith("_") or not ours or not (inspect.isclass(member) or inspect.isfunction(member)):
                continue
            n_seen += 1
            if not re.search(r"\b(stable|experimental|internal)\b", f"{module.__doc__} {member.__doc__}", re.I):
                missing.append(f"{found.name}.{name}")
    assert n_seen and not missing
