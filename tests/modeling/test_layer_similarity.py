"""Layer-wise similarity: every part against a slow reference that follows the paper's sums literally."""

import json
import sys
from itertools import product

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Qwen3Config, Qwen3ForCausalLM

from dualspeech import SplitLayerQwen3Config, SplitLayerQwen3ForCausalLM
from dualspeech.modeling.layer_similarity import (
    LayerStates,
    average_scores,
    cosine_matrix,
    dtw_paths,
    has_branches,
    layer_similarity,
    plot_heat_maps,
    plot_scores,
    proportional_spans,
    sequence_states,
)

SPANS = [{"text": [0, 2], "speech": [0, 3]}, {"text": [2, 3], "speech": [3, 5]}, {"text": [3, 6], "speech": [4, 9]}]


def all_paths(rows, columns, u=0, v=0):
    """Every path from (u, v) to the last cell, one by one."""
    if (u, v) == (rows - 1, columns - 1):
        yield [(u, v)]
        return
    for du, dv in ((1, 1), (1, 0), (0, 1)):
        if u + du < rows and v + dv < columns:
            for rest in all_paths(rows, columns, u + du, v + dv):
                yield [(u, v), *rest]


def best_path(matrix):
    """The path of the largest sum; of the fewest points among equals; diagonal before down before right, from the end."""
    order = {(1, 1): 0, (1, 0): 1, (0, 1): 2}

    def steps(path):
        pairs = list(zip(path[1:], path[:-1], strict=True))[::-1]
        return [order[b[0] - a[0], b[1] - a[1]] for b, a in pairs]

    paths = all_paths(*matrix.shape)
    return min(paths, key=lambda p: (-sum(matrix[u, v].item() for u, v in p), len(p), steps(p)))


def states(count, layers=("layer 0", "layer 1", "layer 2"), seed=0, offset=0.5):
    generator = torch.Generator().manual_seed(seed)
    return LayerStates(torch.randn(len(layers), count, 6, generator=generator) + offset, tuple(layers))


def cos(a, b):
    return (a.double() @ b.double() / (a.double().norm() * b.double().norm())).item()


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (4, 1), (2, 2), (3, 5), (5, 4)])
@pytest.mark.parametrize("shift", [-2.0, 0.0, 2.0])
def test_dtw_is_the_best_of_all_paths(shape, shift):
    matrices = torch.randn(7, *shape) + shift
    means, paths = dtw_paths(matrices)
    assert means.shape == (7,) and means.dtype == torch.float64
    for matrix, mean, path in zip(matrices, means, paths, strict=True):
        assert path == best_path(matrix.double())
        assert mean.item() == pytest.approx(sum(matrix[u, v].item() for u, v in path) / len(path), abs=1e-12)


def test_dtw_ties():
    """Small whole numbers: sums are equal exactly, and often."""
    for values in product((-1.0, 0.0, 1.0), repeat=6):
        matrix = torch.tensor(values).view(2, 3)
        assert dtw_paths(matrix[None])[1][0] == best_path(matrix)
    assert dtw_paths(torch.zeros(1, 3, 3))[1][0] == [(0, 0), (1, 1), (2, 2)]
    assert dtw_paths(torch.zeros(1, 2, 4))[1][0] == [(0, 0), (0, 1), (0, 2), (1, 3)]


def test_dtw_prefers_long_paths_where_similarity_is_positive():
    mean, (path,) = dtw_paths(torch.tensor([[[1.0, 0.1], [0.1, 1.0]]]))
    assert len(path) == 3 and mean.item() == pytest.approx(0.7)


def test_cosine_matrix():
    text, speech = torch.randn(2, 3, 5), torch.randn(2, 4, 5)
    text[1, 2] = 0
    matrix = cosine_matrix(text, speech)
    for i, u, v in product(range(2), range(3), range(4)):
        expected = 0.0 if (i, u) == (1, 2) else cos(text[i, u], speech[i, v])
        assert matrix[i, u, v].item() == pytest.approx(expected, abs=1e-6)
    assert cosine_matrix(text[0], text[0] * 100).diagonal().tolist() == pytest.approx([1.0] * 3)
    with pytest.raises(ValueError, match="`speech` has NaN"):
        cosine_matrix(text, speech.fill_(float("nan")))
    with pytest.raises(ValueError, match="agree"):
        cosine_matrix(text, torch.ones(2, 4, 6))
    with pytest.raises(ValueError, match="empty"):
        cosine_matrix(text, torch.ones(2, 0, 5))


def naive_scores(text, speech, spans, counted):
    """Appendix C as it is written, one number at a time."""
    num_text = text.shape[1]
    dtw, background = {}, {}
    for i, (j, span) in product(range(len(text)), enumerate(spans)):
        aligned, spoken = range(*span["text"]), range(*span["speech"])
        matrix = torch.tensor([[cos(text[i, t], speech[i, s]) for s in spoken] for t in aligned])
        path = best_path(matrix)
        dtw[i, j] = sum(matrix[u, v].item() for u, v in path) / len(path)
        others = [t for t in range(num_text) if t not in aligned]
        total = sum(cos(text[i, t], speech[i, s]) for s in spoken for t in others)
        background[i, j] = total / (len(spoken) * (num_text - len(aligned)))
    in_mean = [value for (i, _), value in dtw.items() if counted[i]]
    coefficient = sum(in_mean) / len(in_mean)
    return coefficient, [
        sum(dtw[i, j] / (background[i, j] + coefficient) for j in range(len(spans))) for i in range(len(text))
    ]


@pytest.mark.parametrize("layers", [("layer 0", "layer 1"), ("embeddings", "layer 0", "layer 1")])
def test_scores_follow_the_paper(layers):
    text, speech = states(7, layers), states(9, layers, seed=1)
    result = layer_similarity(text, speech, SPANS)
    coefficient, scores = naive_scores(text.states, speech.states, SPANS, [name != "embeddings" for name in layers])
    assert result.coefficient == pytest.approx(coefficient, abs=1e-6)
    assert result.scores.tolist() == pytest.approx(scores, abs=1e-5)
    assert result.matrices.shape == (len(layers), 7, 9) and result.dtw.shape == (len(layers), 3)
    for (first, last), (start, end) in result.spans:
        for of_layer in result.paths:
            assert (first, start) in [path[0] for path in of_layer]
            assert (last - 1, end - 1) in [path[-1] for path in of_layer]


def test_embeddings_do_not_change_the_layers():
    names = ("embeddings", "layer 0", "layer 1")
    text, speech = states(7, names), states(9, names, seed=1)
    with_embeddings = layer_similarity(text, speech, SPANS)
    text, speech = (LayerStates(s.states[1:], names[1:]) for s in (text, speech))
    without = layer_similarity(text, speech, SPANS)
    assert torch.equal(with_embeddings.scores[1:], without.scores)
    with pytest.raises(ValueError, match="embeddings only"):
        layer_similarity(LayerStates(text.states[:1], names[:1]), LayerStates(speech.states[:1], names[:1]), SPANS)


def test_aligned_layers_score_higher():
    """Speech that repeats the vectors of its text against speech that does not."""
    text = states(6, ("layer 0", "layer 1"), offset=0.0)
    spoken = text.states.repeat_interleave(3, dim=1)
    spoken[1] = torch.randn(spoken[1].shape)
    result = layer_similarity(text, LayerStates(spoken, text.layers), proportional_spans(6, 18))
    assert result.scores[0] > 2 * result.scores[1].clamp(min=0)
    assert result.dtw[0].tolist() == pytest.approx([1.0] * 6)


@pytest.mark.parametrize(
    ("span", "message"),
    [
        ({"text": [0, 8], "speech": [0, 3]}, r"spans\[1\]\['text'\]. is \[0, 8\].*<= 7"),
        ({"text": [0, 2], "speech": [3, 10]}, r"\['speech'\]. is \[3, 10\].*<= 9"),
        ({"text": [-1, 2], "speech": [0, 3]}, r"\['text'\]. is \[-1, 2\]"),
        ({"text": [2, 1], "speech": [0, 3]}, r"\['text'\]. is \[2, 1\]"),
        ({"text": [2, 2], "speech": [0, 3]}, "empty"),
        ({"text": [1, 2], "speech": [3, 3]}, "empty"),
        ({"text": [0, 7], "speech": [0, 3]}, "covers all 7 text tokens"),
        ({"text": [0, 1.5], "speech": [0, 3]}, "whole numbers"),
        ({"text": [0, True], "speech": [0, 3]}, "whole numbers"),
        ({"text": [0], "speech": [0, 3]}, "whole numbers"),
        ({"text": "01", "speech": [0, 3]}, "whole numbers"),
        ({"text": [0, 1]}, r"spans\[1\]. is .*accepted"),
        ([0, 1], r"spans\[1\]. is .*accepted"),
    ],
)
def test_wrong_spans_are_refused(span, message):
    with pytest.raises(ValueError, match=message):
        layer_similarity(states(7), states(9), [SPANS[0], span])


def test_wrong_states_are_refused():
    with pytest.raises(ValueError, match="`spans` is empty"):
        layer_similarity(states(7), states(9), [])
    with pytest.raises(ValueError, match="has the layers"):
        layer_similarity(states(7), states(9, ("layer 0", "layer 1")), SPANS)
    broken = states(9)
    broken.states[1, 2, 3] = float("inf")
    with pytest.raises(ValueError, match="`speech` has NaN or infinite"):
        layer_similarity(states(7), broken, SPANS)
    for wrong in (torch.zeros(2, 2), torch.zeros(1, 0, 2), torch.full((1, 2, 2), float("nan"))):
        with pytest.raises(ValueError, match="`similarity`"):
            dtw_paths(wrong)


def test_denominators():
    """The score is a quotient: one below zero is announced, one of zero is an error."""
    one = LayerStates(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), ("layer 0",))
    against = LayerStates(torch.tensor([[[0.8, -1.6]]]), ("layer 0",))
    with pytest.warns(UserWarning, match="negative for 1 of 1"):
        layer_similarity(one, against, [{"text": [0, 1], "speech": [0, 1]}])
    against = LayerStates(torch.tensor([[[1.0, -1.0]]]), ("layer 0",))
    with pytest.raises(ValueError, match="pair 0 in 'layer 0'"):
        layer_similarity(one, against, [{"text": [0, 1], "speech": [0, 1]}])


@pytest.mark.parametrize(("num_text", "num_speech", "count"), [(2, 2, None), (5, 17, None), (9, 4, None), (7, 30, 3)])
def test_proportional_spans(num_text, num_speech, count):
    spans = proportional_spans(num_text, num_speech, count)
    assert len(spans) == (count or min(num_text, num_speech))
    for side, length in (("text", num_text), ("speech", num_speech)):
        covered = [i for span in spans for i in range(*span[side])]
        assert covered == list(range(length)) and all(span[side][0] < span[side][1] for span in spans)
        sizes = [span[side][1] - span[side][0] for span in spans]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("numbers", [(1, 5, None), (5, 1, None), (5, 9, 1), (5, 9, 6), (5, 3, 4)])
def test_impossible_proportional_spans(numbers):
    with pytest.raises(ValueError, match="`num_spans` is"):
        proportional_spans(*numbers)


def test_average_and_json():
    results = [layer_similarity(states(7, seed=s), states(9, seed=s + 5), SPANS) for s in range(3)]
    mean, deviation = average_scores(results)
    stacked = torch.stack([result.scores for result in results])
    assert torch.equal(mean, stacked.mean(0)) and torch.allclose(deviation, stacked.std(0, unbiased=False))
    assert average_scores(results[:1])[1].tolist() == [0.0] * 3
    with pytest.raises(ValueError, match="`results` is empty"):
        average_scores([])
    fewer = layer_similarity(states(7, ("layer 0",)), states(9, ("layer 0",)), SPANS)
    with pytest.raises(ValueError, match="different layers"):
        average_scores([results[0], fewer])
    written = json.loads(json.dumps(results[0].to_dict()))
    assert written["spans"] == SPANS and written["lambda"] == results[0].coefficient
    assert written["scores_per_pair"] == pytest.approx([score / 3 for score in written["scores"]])


PLAIN = {
    "qwen3": lambda: Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=60,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            pad_token_id=0,
        )
    ),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=32, n_layer=3, n_head=4, n_positions=64)),
}


@pytest.mark.parametrize("name", PLAIN)
def test_states_of_a_plain_model(name):
    model = PLAIN[name]().eval()
    ids = torch.randint(1, 60, (11,))
    found = sequence_states(model, ids, include_embeddings=True)
    expected = model(ids[None], output_hidden_states=True).hidden_states
    assert found.layers == ("embeddings", "layer 0", "layer 1", "layer 2") and found.states.shape == (4, 11, 32)
    assert torch.allclose(found.states, torch.stack(expected)[:, 0], atol=1e-6)
    without = sequence_states(model, ids)
    assert torch.equal(without.states, found.states[1:]) and without.layers == found.layers[1:]
    assert torch.equal(without.select(slice(2, 5)).states, found.states[1:, 2:5])
    assert torch.allclose(sequence_states(model.base_model, ids).states, without.states)
    result = layer_similarity(found.select(slice(0, 4)), found.select(slice(4, 11)), proportional_spans(4, 7))
    assert torch.isfinite(result.scores).all()


def split(shared=3, branches=2):
    config = SplitLayerQwen3Config(
        vocab_size=60,
        audio_vocab_size=24,
        hidden_size=32,
        intermediate_size=48,
        num_shared_layers=shared,
        num_modality_layers=branches,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        modality_pad_token_id=50,
        sosp_token_id=51,
        eos_token_id=52,
        pad_token_id=53,
        eosp_token_id=20,
        audio_pad_token_id=12,
    )
    return SplitLayerQwen3ForCausalLM(config).eval()


def rows():
    """Some text, then speech."""
    text = torch.stack([torch.randint(1, 40, (5,)), torch.full((5,), 12)], dim=1)
    speech = torch.stack([torch.full((6,), 50), torch.randint(0, 20, (6,))], dim=1)
    return torch.cat([text, torch.tensor([[51, 12]]), speech])


@pytest.mark.parametrize("branch", ["text", "audio"])
def test_states_of_a_split_model(branch):
    model, ids = split(), rows()
    found = sequence_states(model, ids, branch, include_embeddings=True)
    assert found.layers == ("embeddings", *(f"layer {i}" for i in range(5))) and found.states.shape == (6, 12, 32)
    core = model.model
    expected = core(ids[None], output_hidden_states=True, output_audio_hidden_states=True)
    assert torch.allclose(found.states[0], core.embed(ids[None])[0])
    assert torch.allclose(found.states[3], expected.trunk_hidden_state[0], atol=1e-6)
    last = expected.last_hidden_state if branch == "text" else expected.audio_last_hidden_state
    assert torch.allclose(found.states[5], last[0], atol=1e-6)
    for i in range(3):
        assert torch.allclose(found.states[i], expected.hidden_states[i][0], atol=1e-6)
    if branch == "text":
        assert torch.allclose(found.states[4], expected.hidden_states[4][0], atol=1e-6)
    # the base model, and the same rows as flat ids
    flat = torch.where(ids[:, 0] == 50, 60 + ids[:, 1], ids[:, 0])
    for other in (sequence_states(core, ids, branch), sequence_states(model, flat, branch)):
        assert torch.allclose(other.states, found.states[1:], atol=1e-6) and other.layers == found.layers[1:]


def test_no_hooks_are_left():
    model, ids = split(), rows()
    modules = [*model.model.shared_block.layers, *model.model.text_block.layers, model.model.text_norm]
    before = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules]
    sequence_states(model, ids, "text")
    with pytest.raises(ValueError, match="text ids must be"):
        sequence_states(model, ids + 100, "text")
    assert before == [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules]


def test_branches_are_told_apart():
    model, ids = split(), rows()
    assert has_branches(model) and has_branches(model.model) and not has_branches(PLAIN["gpt2"]())
    text, audio = (sequence_states(model, ids, branch).states for branch in ("text", "audio"))
    assert torch.equal(text[:3], audio[:3]) and not torch.allclose(text[3:], audio[3:], atol=1e-3)
    for branch in (None, "speech"):
        with pytest.raises(ValueError, match=r"`branch` is .*accepted.*'text', 'audio'"):
            sequence_states(model, ids, branch)
    with pytest.raises(ValueError, match=r"`input_ids` must be one sequence, \[L\] or \[L, 2\]"):
        sequence_states(model, ids[None], "text")


def test_states_of_the_baseline_without_a_split():
    model, ids = split(branches=0), rows()
    assert not has_branches(model)
    found = sequence_states(model, ids, include_embeddings=True)
    expected = model.model(ids[None])
    assert found.states.shape == (4, 12, 32)
    assert torch.allclose(found.states[3], expected.last_hidden_state[0], atol=1e-6)
    with pytest.raises(ValueError, match=r"accepted.*\[None\]"):
        sequence_states(model, ids, "text")


def test_a_qwen3_and_its_split_form_have_the_same_states_of_text():
    plain, model = PLAIN["qwen3"]().eval(), split(shared=2, branches=1)
    model.model.embed_tokens.load_state_dict(plain.model.embed_tokens.state_dict())
    for new, old in zip(
        [*model.model.shared_block.layers, *model.model.text_block.layers], plain.model.layers, strict=True
    ):
        new.load_state_dict(old.state_dict())
    ids = torch.randint(1, 40, (9,))
    expected = sequence_states(plain, ids, include_embeddings=True)
    found = sequence_states(model, ids, "text", include_embeddings=True)
    assert found.layers == expected.layers and torch.allclose(found.states, expected.states, atol=1e-6)


def test_wrong_sequences_are_refused():
    model = PLAIN["qwen3"]().eval()
    for ids in (torch.zeros(0, dtype=torch.long), torch.ones(1, 3, dtype=torch.long), torch.tensor(3)):
        with pytest.raises(ValueError, match="`input_ids`"):
            sequence_states(model, ids)
    with pytest.raises(ValueError, match=r"`branch` is 'text'; accepted for this Qwen3ForCausalLM are \[None\]"):
        sequence_states(model, torch.ones(3, dtype=torch.long), "text")
    with pytest.raises(ValueError, match="training mode"):
        sequence_states(model.train(), torch.ones(3, dtype=torch.long))
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="'layer 1'"):
        sequence_states(model.eval(), torch.ones(3, dtype=torch.long))


def test_figures(tmp_path):
    from matplotlib.image import imread

    names = ("embeddings", *(f"layer {i}" for i in range(7)))
    results = [layer_similarity(states(7, names, s), states(9, names, s + 3), SPANS) for s in range(2)]
    plot_heat_maps(results[0], tmp_path / "maps.png", columns=3)
    plot_scores(results, tmp_path / "scores.png")
    plot_scores(results[:1], tmp_path / "score.png")
    for name in ("maps.png", "scores.png", "score.png"):
        picture = imread(tmp_path / name)
        assert picture.ndim == 3 and picture[..., :3].std() > 0.01


def test_figures_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        plot_scores([layer_similarity(states(7), states(9), SPANS)], tmp_path / "scores.png")
