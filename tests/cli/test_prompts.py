"""``genrec prompts``: what the tasks are, and examples of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from genrec import workbench
from genrec.prompts.tasks import TASKS


def test_list(genrec):
    code, out, _ = genrec("prompts", "list")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1::2]] == list(TASKS)
    assert "history, target, user" in out


def test_show_examples_of_a_made_up_shop(genrec):
    first, again, other = (genrec("prompts", "show", "sequential", "--n", 2, "--seed", s)[1] for s in (0, 0, 1))
    assert first == again != other
    assert "[2] sequential, version 1, wording" in first
    assert first.count("=> <a_") == 2
    assert "4 item tokens" in first and "-> 4 item tokens and 0 words" in first


def test_show_examples_of_a_run(genrec, finished):
    code, out, err = genrec("prompts", "show", "text_from_item", "--run", finished, "--n", 20)
    assert code == 0, err
    assert "‹group " in out and "thing" in out


def test_users_are_shown_where_they_are_asked_for(genrec):
    assert "<user " not in genrec("prompts", "show", "sequential", "--n", 12)[1]
    assert "<user " in genrec("prompts", "show", "sequential", "--n", 12, "--users")[1]
    assert "<user " in genrec("prompts", "show", "user_history", "--n", 1)[1]


def test_a_task_of_ones_own(genrec, tmp_path, monkeypatch):
    """The worked task of the workbench, as it is copied, and its template changed."""
    for name in ("my_task.py", "fill_gap.jinja"):
        shutil.copy(workbench.find(f"prompts/{name}"), tmp_path / name)
    monkeypatch.chdir(tmp_path)
    code, out, err = genrec("prompts", "show", "my_task:fill_gap", "--n", 4)
    assert code == 0, err
    assert out.count("=> <a_") == 4
    changed = tmp_path / "other.jinja"
    changed.write_text((tmp_path / "fill_gap.jinja").read_text().replace("Fill the gap", "Mind the gap"))
    out = genrec("prompts", "show", "my_task:fill_gap", "--n", 8, "--template", changed)[1]
    assert "Mind the gap" in out


def test_the_documentation_shows_the_worked_task():
    page = (Path(__file__).resolve().parents[2] / "docs" / "prompts.md").read_text(encoding="utf-8")
    code = workbench.find("prompts/my_task.py").read_text(encoding="utf-8").split("\n", 2)[2]
    assert f"```python\n{code}```" in page
    assert f"```\n{workbench.find('prompts/fill_gap.jinja').read_text(encoding='utf-8')}```" in page


def test_a_recipe_gives_the_wrapper_and_the_lengths(genrec, tmp_path):
    recipe = tmp_path / "m.yaml"
    recipe.write_text("tasks: [{task: search}]\nwrapper: instruction\nmax_text: 6\n")
    out = genrec("prompts", "show", "text_from_item", "--recipe", recipe, "--n", 5)[1]
    assert "## Answer" in out
    assert all(len(text.split("›")[0]) <= 6 for text in out.split("‹")[1:])


def test_tokens_are_counted_with_a_text_tokenizer(genrec, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", unk_token="<unk>").save_pretrained(tmp_path)
    code, out, err = genrec("prompts", "show", "sequential", "--tokenizer", tmp_path, "--n", 1, "--users")
    assert code == 0, err
    assert "tokens -> 5 tokens, all of the target with a loss" in out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["sequental"], "did you mean 'sequential'"),
        (["search", "--run", "nowhere"], "no catalog there"),
        (["search", "--template", "nowhere.jinja"], "cannot be read"),
        (["nowhere:f"], "cannot import"),
    ],
)
def test_errors_say_what_to_do(genrec, args, message):
    code, _, err = genrec("prompts", "show", *args)
    assert code == 1
    assert message in err and "Traceback" not in err
