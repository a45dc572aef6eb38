"""A finished run up to its identifiers, and a way to call the command line in this process."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from genrec.cli.main import main
from genrec.data.catalog import ItemCatalog
from genrec.data.interactions import Interactions
from genrec.data.splits import leave_one_out
from genrec.embeddings.base import ItemEmbeddings
from genrec.item_tokenizers.base import TokenizerSource
from genrec.item_tokenizers.rqkmeans import RqKMeans, RqKMeansSettings

N = 90


@pytest.fixture
def genrec() -> Callable[..., tuple[int, str, str]]:
    """Exit code, output and errors of ``genrec ARGS``."""

    def call(*args: object) -> tuple[int, str, str]:
        out, err, code = io.StringIO(), io.StringIO(), 0
        argv = mock.patch.object(sys, "argv", ["genrec", *map(str, args)])
        path = mock.patch.object(sys, "path", list(sys.path))
        with argv, path, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main()
            except SystemExit as stop:
                code = int(stop.code or 0)
        return code, out.getvalue(), err.getvalue()

    return call


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Path]:
    """Write a run folder: nine groups of ten items, users stay in their group, every tenth item a duplicate."""

    def make(folder: Path, *, prefix: str = "item", **settings: object) -> Path:
        generator = np.random.default_rng(0)
        group = np.arange(N) // 10
        titles = [f"group {g} thing {n}" for n, g in enumerate(group.tolist())]
        titles[3] = "<script>alert('x')</script> & more"
        fields = {"title": titles, "categories": [["shop", f"kind {g}"] for g in group.tolist()]}
        catalog = ItemCatalog(tuple(f"{prefix}{n}" for n in range(N)), fields)
        vectors = (3 * np.eye(9, 10)[group] + generator.normal(size=(N, 10))).astype(np.float32)
        vectors[1::10] = vectors[::10]
        rows = [generator.integers(10, size=6) + 10 * (u % 9) for u in range(90)]
        users = [f"u{u}" for u, row in enumerate(rows) for _ in row]
        log = Interactions.from_arrays(users, np.concatenate(rows), None, n_items=N, catalog=catalog.fingerprint)
        embeddings = ItemEmbeddings(vectors, catalog.fingerprint)
        source = TokenizerSource.of(catalog, embeddings=embeddings, seed=0)
        chosen: dict[str, object] = {"n_levels": 2, "level_size": 9, **settings}
        tokenizer = RqKMeans(RqKMeansSettings(**chosen))  # type: ignore[arg-type]
        codes = tokenizer.fit(source, seed=0)
        catalog.save(folder / "catalog")
        leave_one_out(log).save(folder / "split")
        embeddings.save(folder / "embeddings")
        tokenizer.save(folder / "item_tokenizer")
        codes.save(folder / "codes")
        (folder / "recipe.json").write_text(json.dumps({"seed": 0, "baselines": [], "model": {"kind": "decoder"}}))
        return folder

    return make


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, make_run: Callable[..., Path]) -> Path:
    """A run whose identifiers end in a suffix level."""
    return make_run(tmp_path_factory.mktemp("runs") / "suffixed")
