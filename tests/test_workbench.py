import pytest

from genrec import workbench
from genrec.errors import ConfigError


def fake(folder, *names):
    for name in (*(f"{f}/.gitkeep" for f in workbench.FOLDERS), *names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"text of {name}")
    return folder


@pytest.fixture
def bench(tmp_path, monkeypatch):
    folder = fake(tmp_path / "src", "tokenizers/rqvae.yaml", "train/a/b.yaml", "train/__pycache__/x.pyc")
    monkeypatch.setattr(workbench, "_PACKAGE", folder / "genrec")
    return folder


def test_the_real_workbench_hides_no_module():
    assert workbench.problems() == []


def test_every_pipeline_stands_in_the_table_of_train():
    table = workbench.find("train/README.md").read_text()
    pipelines = [name.removeprefix("train/") for name in workbench.files() if name.startswith("train/pipelines/")]
    assert "pipelines/own.yaml" in pipelines
    assert [name for name in pipelines if f"| `{name}` |" not in table] == []


def test_no_package_of_the_repository_is_called_tokenizers():
    base = workbench._PACKAGE
    for top in (base, base.parent / "tests"):
        found = [p for p in top.rglob("tokenizers") if p.is_dir() and "_workbench" not in p.parts]
        assert found == []


def test_it_is_found_beside_the_package_or_inside_it(bench):
    assert workbench.root() == bench
    inside = fake(bench / "genrec" / "_workbench")
    assert workbench.root() == inside


def test_no_workbench_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(workbench, "_PACKAGE", tmp_path / "genrec")
    with pytest.raises(ConfigError, match="no workbench"):
        workbench.root()


def test_files_and_find(bench):
    assert workbench.files() == ["tokenizers/rqvae.yaml", "train/a/b.yaml"]
    assert workbench.find("train/a/b.yaml").read_text() == "text of train/a/b.yaml"
    with pytest.raises(ConfigError, match=r"no file 'tokenizers/rqave\.yaml'") as caught:
        workbench.find("tokenizers/rqave.yaml")
    assert "tokenizers/rqvae.yaml" in caught.value.hint
    with pytest.raises(ConfigError):
        workbench.find("../src/train/a/b.yaml")


def test_copy(bench, tmp_path):
    written = workbench.copy(tmp_path / "new" / "bench")
    assert sorted(p.relative_to(tmp_path / "new" / "bench").as_posix() for p in written) == workbench.files()
    assert written[0].read_text() == "text of tokenizers/rqvae.yaml"


def test_copy_overwrites_nothing(bench, tmp_path):
    (tmp_path / "there" / "train").mkdir(parents=True)
    (tmp_path / "there" / "mine.txt").write_text("x")
    with pytest.raises(ConfigError, match="exists already"):
        workbench.copy(tmp_path / "there")
    assert sorted(p.name for p in (tmp_path / "there").iterdir()) == ["mine.txt", "train"]
    with pytest.raises(ConfigError, match="not a folder"):
        workbench.copy(tmp_path / "there" / "mine.txt")
    (tmp_path / "there" / "train").rmdir()
    workbench.copy(tmp_path / "there")
    assert (tmp_path / "there" / "mine.txt").read_text() == "x"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tokenizers/__init__.py", "holds no packages"),
        ("prompts/deep/__init__.py", "holds no packages"),
        ("train/torch.py", "hides the module 'torch'"),
        ("serve/logging.py", "hides the module 'logging'"),
        ("train/numpy/x.yaml", "hides the module 'numpy'"),
    ],
)
def test_what_hides_a_module_is_found(tmp_path, name, message):
    found = workbench.problems(fake(tmp_path, "train/finetune.py", name))
    assert len(found) == 1
    assert name.rpartition("/")[0] in found[0]
    assert message in found[0]
