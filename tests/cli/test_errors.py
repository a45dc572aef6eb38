"""What the command line says to somebody who gives it the wrong file, folder or name: one line, and what to do."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from genrec.cli.main import main
from genrec.pipeline import runner

ROOT = Path(__file__).resolve().parents[2]
DEMO, FSQ = ROOT / "train" / "pipelines" / "demo.yaml", ROOT / "tokenizers" / "fsq.yaml"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a file, an empty recipe, a broken one, and a folder."""
    (tmp_path / "file").touch()
    (tmp_path / "empty.yaml").touch()
    (tmp_path / "broken.yaml").write_text("name: x\ndata: [1\n")
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(monkeypatch: pytest.MonkeyPatch, args: list[str]) -> int:
    monkeypatch.setattr(sys, "argv", ["genrec", *args])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


READY = "`genrec init DIR` copies ready pipelines ("


@pytest.mark.parametrize(
    ("args", "said", "hint"),
    [
        (["run", "DEMO", "--out", "file"], "file: File exists", "a file is in the way of a folder"),
        (["demo", "--out", "file"], "file: File exists", "a file is in the way of a folder"),
        (["init", "file/mine"], "cannot write file/mine: Not a directory", "give a new folder"),
        (["run", "empty.yaml"], "empty.yaml: data: expected a value", READY),
        (["run", "empty.yaml", "--data", "folder"], "empty.yaml: data.reader.format: expected", READY),
        (
            ["run", "FSQ"],
            "FSQ is the recipe of an item tokenizer",
            "use it in one: genrec run train/pipelines/own.yaml",
        ),
        (["run", "demo"], "cannot read the recipe demo: No such file", READY),
        (["run", "demo.yaml"], "cannot read the recipe demo.yaml: No such file", READY),
        (["run", "folder"], "cannot read the recipe folder: Is a directory", READY),
        (["run", "empty"], "cannot read the recipe empty: No such file", "did you mean empty.yaml?"),
        (["run", "broken.yaml"], "broken.yaml:2: a '[' or '{' that is not closed", None),
        (["run", "DEMO", "--data", "folder"], "DEMO makes its own data (data.synthetic)", "leave --data out"),
        (
            ["run", "DEMO", "--set", "tokenizer.kind=rqvea"],
            "DEMO: tokenizer.kind: expected one of",
            "did you mean 'rqvae'",
        ),
        (["run", "DEMO", "--until", "trian"], "--until: expected one of", "did you mean 'train'?"),
        (["run", "DEMO", "--set", "train.epochs"], "--set train.epochs: expected", "for example --set train.epochs=4"),
    ],
)
def test_an_error_is_one_line_and_a_hint(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    args: list[str],
    said: str,
    hint: str | None,
) -> None:
    names = {"DEMO": str(DEMO), "FSQ": str(FSQ)}
    assert call(monkeypatch, [names.get(arg, arg) for arg in args]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: " + said.replace("DEMO", str(DEMO)).replace("FSQ", str(FSQ)))
    assert len(lines) == (1 if hint is None else 2)
    assert hint is None or lines[1].startswith(f"hint: {hint}")
    assert hint != READY or "demo.yaml" in lines[1]
    assert not (place / "runs").exists()


@pytest.mark.parametrize("error", [FileNotFoundError(2, "No such file", "part.json"), OSError("no path")])
def test_what_may_be_a_bug_keeps_its_traceback(place: Path, monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr(runner, "plan", fail)
    monkeypatch.setattr(sys, "argv", ["genrec", "demo", "--plan"])
    with pytest.raises(OSError, match=error.strerror or "no path"):
        main()
