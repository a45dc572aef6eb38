"""One candidate of the 1e6-item comparison, in a process of its own: what it took, as one line of JSON.

    python benchmarks/residual_kmeans.py ours 1000000 384 1
    python benchmarks/residual_kmeans.py faiss 1000000 384 5     # beam 5
    python benchmarks/residual_kmeans.py sklearn 1000000 384 1   # KMeans level by level
    python benchmarks/residual_kmeans.py vqp 1000000 384 1       # ResidualVQ of vector-quantize-pytorch

Residual k-means, 3 levels of 256 codes, 64 training rows per code; all candidates get the same vectors and train on
the same rows. Vectors are drawn in clusters whose dimensions have falling variance, as those of texts have.
"""

from __future__ import annotations

import json
import resource
import sys
import time

import numpy as np
import numpy.typing as npt

from genrec.item_tokenizers.base import TokenizerSource
from genrec.item_tokenizers.rqkmeans import RqKMeans, RqKMeansSettings
from genrec.seeding import rng

LEVELS, CODES, ROWS = 3, 256, 64
BLOCK = 16_384


def vectors(n: int, width: int) -> npt.NDArray[np.float32]:
    """Float32 ``[n, width]``, made block by block so that the making leaves no second copy."""
    generator = rng(0, "a million items")
    scale = (np.arange(1, width + 1) ** -0.5).astype(np.float32)
    centres = generator.normal(size=(1000, width)).astype(np.float32) * scale
    x = np.empty((n, width), dtype=np.float32)
    for start in range(0, n, BLOCK):
        part = x[start : start + BLOCK]
        part[:] = generator.standard_normal(part.shape, dtype=np.float32)
        part *= 0.7 * scale
        part += centres[generator.integers(1000, size=len(part))]
    return x


def ours(x: npt.NDArray[np.float32], beam: int) -> dict[str, float]:
    """RqKMeans: fit (which encodes the catalog too), then encode once more."""
    settings = RqKMeansSettings(n_levels=LEVELS, level_size=CODES, rows_per_code=ROWS, collisions="shared")
    source, tokenizer = TokenizerSource.of_vectors(x), RqKMeans(settings)
    start = time.process_time()
    tokenizer.fit(source, seed=0)
    fitted = time.process_time()
    tokenizer.encode(source)
    left = tokenizer.report["mean_square_left"]
    return {
        "cpu_seconds": fitted - start,
        "encode_seconds": time.process_time() - fitted,
        "error_left": left[-1] / left[0],
    }


def training_rows(n: int) -> npt.NDArray[np.int64] | None:
    """The rows that all candidates train on; None = all."""
    return RqKMeans(RqKMeansSettings(n_levels=LEVELS, level_size=CODES, rows_per_code=ROWS))._sample(n, 0)


def sklearn(x: npt.NDArray[np.float32], beam: int) -> dict[str, float]:
    """sklearn.cluster.KMeans (k-means++, one start, 50 iterations at most) of what the levels before have left."""
    from sklearn.cluster import KMeans

    rows = training_rows(len(x))
    start = time.process_time()
    left = x - x.mean(axis=0, dtype=np.float64).astype(np.float32)
    paused = time.process_time()
    total = _squares(left)
    start += time.process_time() - paused  # the error is not part of the job
    encode = 0.0
    for level in range(LEVELS):
        books = KMeans(CODES, n_init=1, max_iter=50, random_state=level).fit(left if rows is None else left[rows])
        began = time.process_time()
        for at in range(0, len(left), BLOCK):
            part = left[at : at + BLOCK]
            part -= books.cluster_centers_[books.predict(part)]
        encode += time.process_time() - began
    end = time.process_time()
    return {"cpu_seconds": end - start, "encode_seconds": encode, "error_left": _squares(left) / total}


def vqp(x: npt.NDArray[np.float32], beam: int) -> dict[str, float]:
    """ResidualVQ with k-means start and moving averages, ten epochs over the training rows in batches of 1,024."""
    import torch
    from vector_quantize_pytorch import ResidualVQ

    torch.manual_seed(0)
    torch.set_num_threads(1)
    rows = training_rows(len(x))
    start = time.process_time()
    centred = x - x.mean(axis=0, dtype=np.float64).astype(np.float32)
    model = ResidualVQ(dim=x.shape[1], codebook_size=CODES, num_quantizers=LEVELS, kmeans_init=True, kmeans_iters=10)
    sample = torch.from_numpy(centred if rows is None else centred[rows])
    with torch.no_grad():
        model(sample[: 8 * CODES])  # the k-means start sees eight rows per code
        for _ in range(10):
            for batch in torch.randperm(len(sample)).split(1024):
                model(sample[batch])
    trained = time.process_time()
    left, encode = 0.0, 0.0
    model.eval()
    with torch.no_grad():
        for at in range(0, len(x), BLOCK):
            part = torch.from_numpy(centred[at : at + BLOCK])
            began = time.process_time()
            made = model(part)[0]
            encode += time.process_time() - began
            left += float((part - made).square().sum())
    spent = trained - start + encode
    return {"cpu_seconds": spent, "encode_seconds": encode, "error_left": left / _squares(centred)}


def _squares(x: npt.NDArray[np.float32]) -> float:
    return sum(float((x[at : at + BLOCK] ** 2).sum(dtype=np.float64)) for at in range(0, len(x), BLOCK))


def faiss(x: npt.NDArray[np.float32], beam: int) -> dict[str, float]:
    """faiss.ResidualQuantizer on the centred vectors: train on the sample, compute the codes of all."""
    import faiss as library

    library.omp_set_num_threads(1)
    rows = training_rows(len(x))
    quantizer = library.ResidualQuantizer(x.shape[1], LEVELS, CODES.bit_length() - 1)
    quantizer.max_beam_size = beam
    quantizer.train_type = library.ResidualQuantizer.Train_default
    quantizer.cp.max_points_per_centroid = 10**6
    start = time.process_time()
    centred = x - x.mean(axis=0, dtype=np.float64).astype(np.float32)
    quantizer.train(centred if rows is None else centred[rows])
    trained = time.process_time()
    codes = quantizer.compute_codes(centred)
    end = time.process_time()
    left = total = 0.0
    for at in range(0, len(x), BLOCK):
        part = centred[at : at + BLOCK]
        left += float(((part - quantizer.decode(codes[at : at + BLOCK])) ** 2).sum(dtype=np.float64))
        total += float((part**2).sum(dtype=np.float64))
    return {"cpu_seconds": end - start, "encode_seconds": end - trained, "error_left": left / total}


def main() -> None:
    """Measure the candidate that the command line names."""
    name, n, width, beam = sys.argv[1], *map(int, sys.argv[2:5])
    x = vectors(n, width)
    found = {"ours": ours, "faiss": faiss, "sklearn": sklearn, "vqp": vqp}[name](x, beam)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({**found, "peak_over_input": peak / x.nbytes, "beam": beam}))


if __name__ == "__main__":
    main()
