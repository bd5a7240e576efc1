"""The EMA codebook against recorded outputs, a naive reference, and itself on two ranks. K differs from D everywhere."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from dualspeech.modeling.vector_quantization import EmaVectorQuantizer
from tests.fixture_checks import check, load

PREFIX = "vq.codebook.layers.0."


def recorded_quantizer(part):
    state, tensors, meta = load("ust_codec", part)
    config = meta["config"]
    quantizer = EmaVectorQuantizer(config["codebook_size"], config["code_dim"], config["vq_decay"], config["vq_eps"])
    quantizer.embed.copy_(state[PREFIX + "embed"].T)
    quantizer.embed_avg.copy_(state[PREFIX + "embed_avg"].T)
    quantizer.cluster_size.copy_(state[PREFIX + "cluster_size"])
    return quantizer, tensors, meta


@pytest.mark.parametrize(("part", "name"), [("model", "ema_warm"), ("vq_cold", "ema_cold")])
def test_updates_equal_the_recorded_ones(part, name):
    quantizer, tensors, meta = recorded_quantizer(part)
    for i in (1, 2, 3):
        output = quantizer(tensors[f"ema_z.{i}"], update_codebook=True)
        check(output.codes, f"{name}.codes.{i}", tensors, meta)
        check(output.quantized, f"{name}.quantized.{i}", tensors, meta)
        check(output.commitment_loss, f"{name}.loss.{i}", tensors, meta)
        check(output.perplexity, f"{name}.perplexity.{i}", tensors, meta)
        if i != 2:
            check(quantizer.embed.T, f"{name}.embed.{i}", tensors, meta)
            check(quantizer.embed_avg.T, f"{name}.embed_avg.{i}", tensors, meta)
            check(quantizer.cluster_size, f"{name}.cluster_size.{i}", tensors, meta)


def naive_update(quantizer, vectors):
    """One update, code by code: `(embed, embed_avg, cluster_size)` afterwards."""
    k, d = quantizer.embed.shape
    counts, sums = torch.zeros(k), torch.zeros(k, d)
    for vector in vectors:
        code = min(range(k), key=lambda i: float((vector - quantizer.embed[i]).pow(2).sum()))
        counts[code] += 1
        sums[code] += vector
    size = quantizer.decay * quantizer.cluster_size + (1 - quantizer.decay) * counts
    average = quantizer.decay * quantizer.embed_avg + (1 - quantizer.decay) * sums
    smoothed = (size + quantizer.eps) / (size.sum() + k * quantizer.eps) * size.sum()
    return average / smoothed[:, None], average, size


@pytest.mark.parametrize(("k", "d", "shape"), [(7, 3, (2, 5)), (2, 6, (1, 1)), (33, 5, (3, 40))])
def test_masked_update_equals_the_naive_one(k, d, shape):
    quantizer = EmaVectorQuantizer(k, d, decay=0.7)
    x = torch.randn(*shape, d)
    mask = torch.rand(shape) > 0.4
    mask[0, 0] = True
    expected = naive_update(quantizer, x[mask])
    before = quantizer.embed.clone()
    output = quantizer(x, mask, update_codebook=True)
    nearest = torch.cdist(x.reshape(-1, d), before).argmin(dim=1).view(shape)
    assert torch.equal(output.codes, nearest)
    assert torch.equal(output.quantized, before[nearest])
    torch.testing.assert_close(output.commitment_loss, (x[mask] - before[nearest][mask]).pow(2).mean())
    share = torch.bincount(nearest[mask], minlength=k) / mask.sum()
    torch.testing.assert_close(output.perplexity, torch.exp(-(share * share.clamp_min(1e-20).log()).sum()))
    for buffer, value in zip((quantizer.embed, quantizer.embed_avg, quantizer.cluster_size), expected, strict=True):
        torch.testing.assert_close(buffer, value)


def test_only_a_requested_update_changes_state():
    quantizer = EmaVectorQuantizer(9, 4, dead_code_threshold=0.5).train()
    before = {key: value.clone() for key, value in quantizer.state_dict().items()}
    x = torch.randn(2, 6, 4)
    codes = quantizer.encode(x)
    assert torch.equal(codes, quantizer(x).codes)
    assert torch.equal(quantizer.encode(x[0, 0]), codes[0, 0])
    quantizer.decode(codes)
    assert all(torch.equal(value, before[key]) for key, value in quantizer.state_dict().items())
    quantizer(x, update_codebook=True)
    assert not torch.equal(quantizer.embed, before["embed"])


def test_an_unused_code_keeps_its_vector_at_a_fresh_start():
    quantizer = EmaVectorQuantizer(50, 4)
    before = quantizer.embed.clone()
    codes = quantizer(torch.randn(1, 8, 4), update_codebook=True).codes
    unused = torch.ones(50, dtype=torch.bool).index_fill(0, codes.flatten(), False)
    torch.testing.assert_close(quantizer.embed[unused], before[unused], rtol=1e-3, atol=1e-3)


def test_lowest_index_wins_a_tie():
    quantizer = EmaVectorQuantizer(6, 2)
    quantizer.embed.copy_(torch.tensor([[9.0, 9], [1, 0], [0, 1], [1, 0], [0, 1], [-9, 9]]))
    assert quantizer.encode(torch.tensor([[1.0, 0], [0, 1], [0.5, 0.5]])).tolist() == [1, 2, 1]


def test_gradient_passes_straight_through_and_reaches_the_commitment_loss():
    quantizer = EmaVectorQuantizer(5, 3)
    x = torch.randn(1, 4, 3, requires_grad=True)
    output = quantizer(x)
    weight = torch.randn(1, 4, 3)
    (output.quantized * weight).sum().backward()
    torch.testing.assert_close(x.grad, weight)
    x.grad = None
    quantizer(x).commitment_loss.backward()
    torch.testing.assert_close(x.grad, 2 * (x - quantizer.decode(output.codes)).detach() / x.numel())


def test_dead_codes_are_restarted_together_with_their_statistics():
    quantizer = EmaVectorQuantizer(4, 2, decay=0.5, dead_code_threshold=0.6)
    quantizer.embed.copy_(torch.tensor([[0.0, 0], [1, 1], [50, 50], [90, 90]]))
    quantizer.embed_avg.copy_(quantizer.embed)
    x = torch.tensor([[[0.0, 0.1], [0.9, 1], [0, 0], [1, 1.1]]])
    quantizer(x, update_codebook=True)
    assert (torch.cdist(quantizer.embed[2:], x[0]).min(dim=1).values < 1e-6).all()
    torch.testing.assert_close(quantizer.embed_avg[2:], quantizer.embed[2:])
    assert quantizer.cluster_size[2:].tolist() == [1, 1]
    kept = quantizer.embed.clone()
    quantizer.dead_code_threshold = 0.0
    quantizer(x, update_codebook=True)  # the averages must not bring the old vectors back
    assert torch.cdist(quantizer.embed, kept).diagonal().max() < 0.8


def test_kmeans_start_finds_separate_clusters_and_ignores_masked_vectors():
    centres = torch.tensor([[0.0, 0], [10, 0], [0, 10]])
    x = (centres.repeat_interleave(20, dim=0) + 0.1 * torch.randn(60, 2))[torch.randperm(60)].view(2, 30, 2)
    mask = torch.ones(2, 30, dtype=torch.bool)
    mask[1, 25:] = False
    x[1, 25:] = 1000.0
    torch.manual_seed(3)
    quantizer = EmaVectorQuantizer(3, 2, decay=0.9, kmeans_init=True, kmeans_iterations=10)
    assert not quantizer.initialized
    quantizer(x, mask)
    assert not quantizer.initialized
    quantizer(x, mask, update_codebook=True)
    assert quantizer.initialized
    assert quantizer.cluster_size.sum().item() == pytest.approx(55)
    assert torch.cdist(centres, quantizer.embed).min(dim=1).values.max() < 0.2
    before = quantizer.embed.clone()
    quantizer(x, mask, update_codebook=True)
    torch.testing.assert_close(quantizer.embed, before, rtol=0, atol=1e-3)  # no code shrinks towards the origin


def test_kmeans_start_with_fewer_vectors_than_codes():
    quantizer = EmaVectorQuantizer(11, 3, kmeans_init=True, kmeans_iterations=3, dead_code_threshold=0.1)
    quantizer(torch.randn(1, 4, 3), update_codebook=True)
    assert quantizer.embed.isfinite().all()


def test_codes_do_not_depend_on_autocast():
    quantizer = EmaVectorQuantizer(64, 16)
    x = torch.randn(2, 50, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quantizer.encode(x), quantizer.encode(x.clone()))
        inside = quantizer.encode(x)
    assert torch.equal(inside, quantizer.encode(x))


@pytest.mark.parametrize("codes", [[0, 9], [-1, 3]])
def test_codes_outside_the_codebook_are_refused(codes):
    with pytest.raises(ValueError, match="between 0 and 8"):
        EmaVectorQuantizer(9, 4).decode(torch.tensor(codes))


def test_codes_are_integers_of_any_width():
    quantizer = EmaVectorQuantizer(9, 4)
    for dtype in (torch.uint8, torch.int16, torch.int32):
        assert torch.equal(quantizer.decode(torch.tensor([3, 8], dtype=dtype)), quantizer.embed[[3, 8]])
    for codes in (torch.tensor([0.0, 1.5]), torch.tensor([True])):
        with pytest.raises(ValueError, match="codes: must be integers"):
            quantizer.decode(codes)


@pytest.mark.parametrize("kmeans_init", [False, True])
def test_nothing_is_learned_from_vectors_that_are_not_finite(kmeans_init):
    quantizer = EmaVectorQuantizer(7, 3, kmeans_init=kmeans_init)
    before = {key: value.clone() for key, value in quantizer.state_dict().items()}
    for value in (float("nan"), float("inf")):
        x = torch.randn(2, 5, 3)
        x[1, 4, 0] = value
        with pytest.raises(ValueError, match="NaN or infinite vectors; the codebook is not updated"):
            quantizer(x, update_codebook=True)
    assert all(torch.equal(value, before[key]) for key, value in quantizer.state_dict().items())


def _refusing_rank(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    x = torch.full((1, 2, 3), float("nan") if rank == 1 else 0.0)
    with pytest.raises(ValueError, match="not updated"):
        EmaVectorQuantizer(7, 3)(x, update_codebook=True)
    dist.destroy_process_group()


def test_all_ranks_refuse_the_vectors_of_one(tmp_path):
    mp.start_processes(_refusing_rank, args=(str(tmp_path),), nprocs=2, start_method="fork")


def _rank(rank, folder, options):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    state, batches = torch.load(f"{folder}/input.pt")
    quantizer = EmaVectorQuantizer(7, 3, **options)
    quantizer.load_state_dict(state)
    torch.manual_seed(100 + rank)  # ranks draw different numbers
    for x, mask in batches:
        quantizer(x[rank::2], mask[rank::2], update_codebook=True)
    torch.save(quantizer.state_dict(), f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize(
    "options", [{}, {"dead_code_threshold": 0.7, "kmeans_init": True, "kmeans_iterations": 4}], ids=["ema", "restarts"]
)
def test_two_ranks_keep_the_codebook_of_the_joined_batch(tmp_path, options):
    quantizer = EmaVectorQuantizer(7, 3, **options)
    batches = [(torch.randn(4, 6, 3), torch.rand(4, 6) > 0.3) for _ in range(3)]
    torch.save((quantizer.state_dict(), batches), tmp_path / "input.pt")
    mp.start_processes(_rank, args=(str(tmp_path), options), nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    for key in first:
        assert torch.equal(first[key], second[key]), key
    if not options:  # random restarts are drawn on the first rank only
        for x, mask in batches:
            quantizer(x, mask, update_codebook=True)
        for key, value in quantizer.state_dict().items():
            torch.testing.assert_close(first[key], value)
