"""Fit the centroids of a `KMeansTokenizerModel` on the features of its encoder.

```bash
python -m dualspeech.training.fit_kmeans --encoder facebook/hubert-base-ls960 --layer 9 --codebook-size 500 \
    --audio-dir wavs --output hubert-km500
```

Needs scikit-learn. Audio files must be mono and at the rate of the encoder (16 kHz).
"""

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from ..modeling.modeling_kmeans_tokenizer import KMeansTokenizerModel

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")


def fit_kmeans(
    model: KMeansTokenizerModel,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor | None]],
    fraction: float = 1.0,
    batch_size: int = 10_000,
    max_iter: int = 100,
    n_init: int = 20,
    seed: int = 0,
) -> float:
    """Store the centroids of `MiniBatchKMeans` in `model.centroids`.

    The settings of the clustering are those with which HuBERT units are usually made (k-means++ start, no
    reassignment of small clusters, stop after 100 batches without improvement).

    Args:
        model (`KMeansTokenizerModel`): its encoder is not changed.
        batches: pairs of `waveforms [B, S]` float and `num_samples [B]` (or `None`), as `extract_features` takes them.
        fraction (`float`): share of the frames of each batch to keep; the kept frames are held in memory.
        batch_size, max_iter, n_init (`int`): see `sklearn.cluster.MiniBatchKMeans`.
        seed (`int`): of the choice of frames and of the clustering.

    Returns:
        `float`: mean squared distance of the frames to their centroids.

    Raises:
        ValueError: fewer frames than centroids, or a fraction outside (0, 1].
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.cluster import MiniBatchKMeans
    except ImportError as error:
        raise ImportError("fit_kmeans needs scikit-learn: pip install scikit-learn") from error
    if not 0 < fraction <= 1:
        raise ValueError(f"`fraction` must be above 0 and at most 1, got {fraction}")
    generator = np.random.default_rng(seed)
    kept = []
    for waveforms, num_samples in batches:
        features, mask = model.extract_features(waveforms, num_samples)
        frames = features[mask].float().cpu().numpy()
        kept.append(frames[generator.random(len(frames)) < fraction])
    count = sum(len(frames) for frames in kept)
    if count < model.codebook_size:
        raise ValueError(f"`batches` gave {count} frames, at least {model.codebook_size} (`codebook_size`) are needed")
    frames = np.concatenate(kept)
    kmeans = MiniBatchKMeans(
        n_clusters=model.codebook_size,
        batch_size=batch_size,
        max_iter=max_iter,
        n_init=n_init,
        tol=0.0,
        max_no_improvement=100,
        reassignment_ratio=0.0,
        random_state=seed,
    ).fit(frames)
    with torch.no_grad():
        model.centroids.copy_(torch.from_numpy(kmeans.cluster_centers_))
    return float(kmeans.inertia_ / count)


def read_waveforms(paths: Iterable[Path], sampling_rate: int) -> Iterator[tuple[torch.Tensor, None]]:
    """One file after the other as a batch of one: `(waveform [1, S] float32, None)`."""
    import soundfile

    for path in paths:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        if rate != sampling_rate or samples.shape[1] != 1:
            raise ValueError(
                f"{path} has {samples.shape[1]} channels at {rate} Hz, mono audio at {sampling_rate} Hz is accepted"
            )
        yield torch.from_numpy(samples.T), None


def main(arguments: list[str] | None = None) -> None:
    """Command line: load an encoder, fit, save a `KMeansTokenizerModel`."""
    from transformers import AutoFeatureExtractor, AutoModel

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", required=True, help="speech encoder: name on the Hub or folder")
    parser.add_argument("--audio-dir", required=True, type=Path, help="folder of audio files, searched recursively")
    parser.add_argument("--output", required=True, help="folder to write the tokenizer to")
    parser.add_argument("--codebook-size", type=int, default=500)
    parser.add_argument("--layer", type=int, default=-1, help="0 to the number of layers, or -1: last_hidden_state")
    parser.add_argument("--fraction", type=float, default=1.0, help="share of the frames to keep")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)

    paths = sorted(path for path in options.audio_dir.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
    if not paths:
        raise ValueError(f"`--audio-dir` {options.audio_dir} holds no file that ends in one of {AUDIO_SUFFIXES}")
    extractor = AutoFeatureExtractor.from_pretrained(options.encoder)
    model = KMeansTokenizerModel.from_encoder(
        AutoModel.from_pretrained(options.encoder),
        codebook_size=options.codebook_size,
        layer=options.layer,
        do_normalize=extractor.do_normalize,
        sampling_rate=extractor.sampling_rate,
    ).to(options.device)
    batches = read_waveforms(paths, model.sampling_rate)
    inertia = fit_kmeans(model, batches, fraction=options.fraction, seed=options.seed)
    model.save_pretrained(options.output)
    print(
        f"{len(paths)} files, {model.codebook_size} centroids, mean squared distance {inertia:.4f}: {options.output}"
    )


if __name__ == "__main__":
    main()

__all__ = ["fit_kmeans", "main", "read_waveforms"]
