"""How similar a language model's hidden states of a text and of its spoken form are, layer by layer (MOSS-Speech, section
2.1 and appendix C): cosine matrices, DTW over aligned spans, the similarity score, heat maps.

A sentence is given to the model twice, as text and as speech codes. `sequence_states` takes the hidden states of all
layers, `layer_similarity` compares them on spans that an aligner found (or `proportional_spans`), `average_scores` joins
several sentences, `plot_heat_maps` and `plot_scores` draw figures 2 and 4 of the paper.
"""

import math
import numbers
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

BRANCHES = ("text", "audio")
EMBEDDINGS = "embeddings"


@dataclass(frozen=True)
class LayerStates:
    """Hidden states of one sequence.

    Args:
        states (`torch.FloatTensor`): fp32 `[N, L, hidden]`, on the CPU.
        layers (`tuple[str]`): the N names: `"embeddings"`, `"layer 0"`, ...
    """

    states: Tensor
    layers: tuple[str, ...]

    def select(self, positions: slice | Sequence[int]) -> "LayerStates":
        """The same with some of the L positions only, for example without the row that opens the speech."""
        return LayerStates(self.states[:, positions], self.layers)


@dataclass(frozen=True)
class LayerSimilarity:
    """Similarity of one text and its spoken form; N layers, J pairs of spans, n text tokens, m speech tokens.

    Args:
        layers (`tuple[str]`): names of the N layers.
        scores (`torch.DoubleTensor`): `[N]`, SS_i. A sum over the pairs: it grows with the length of the sentence.
        dtw (`torch.DoubleTensor`): `[N, J]`, DTW_{i,j}, mean similarity along the path, in [-1, 1].
        background (`torch.DoubleTensor`): `[N, J]`, BG_{i,j}, mean similarity with all other text tokens, in [-1, 1].
        coefficient (`float`): lambda, the mean of `dtw` over all pairs and all layers but the embeddings.
        matrices (`torch.DoubleTensor`): `[N, n, m]`, cosine similarities.
        paths (`list`): per layer and pair the points `(text token, speech token)` of the path, counted from the
            start of the sequences.
        spans (`tuple`): the pairs, as `((text start, end), (speech start, end))`, ends exclusive.
    """

    layers: tuple[str, ...]
    scores: Tensor
    dtw: Tensor
    background: Tensor
    coefficient: float
    matrices: Tensor
    paths: list[list[list[tuple[int, int]]]]
    spans: tuple[tuple[tuple[int, int], tuple[int, int]], ...]

    def to_dict(self) -> dict[str, Any]:
        """Scores, their parts and the spans as plain numbers, for JSON. Matrices and paths are left out."""
        return {
            "layers": list(self.layers),
            "scores": self.scores.tolist(),
            "scores_per_pair": (self.scores / len(self.spans)).tolist(),
            "dtw": self.dtw.tolist(),
            "background": self.background.tolist(),
            "lambda": self.coefficient,
            "spans": [{"text": list(text), "speech": list(speech)} for text, speech in self.spans],
        }


def cosine_matrix(text: Tensor, speech: Tensor) -> Tensor:
    """Cosine similarities of all pairs.

    Args:
        text: `[..., n, hidden]`. speech: `[..., m, hidden]`, with the same leading sizes.

    Returns:
        float64 `[..., n, m]`, in [-1, 1]. A vector of zeros has no direction: its similarity is 0 with everything.

    Raises:
        ValueError: the shapes do not fit, or a value is NaN or infinite.
    """
    for name, states in (("text", text), ("speech", speech)):
        if states.dim() < 2 or 0 in states.shape:
            raise ValueError(f"`{name}` must be [..., tokens, hidden] without empty sizes, got {list(states.shape)}")
        if not torch.isfinite(states).all():
            raise ValueError(f"`{name}` has NaN or infinite hidden states")
    if text.shape[:-2] != speech.shape[:-2] or text.shape[-1] != speech.shape[-1]:
        raise ValueError(
            f"`text` {list(text.shape)} and `speech` {list(speech.shape)} must agree in all sizes but the last but one"
        )
    text, speech = (nn.functional.normalize(states.double(), dim=-1) for states in (text, speech))
    return (text @ speech.transpose(-1, -2)).clamp(-1.0, 1.0)


def dtw_paths(similarity: Tensor) -> tuple[Tensor, list[list[tuple[int, int]]]]:
    """The path of dynamic time warping through each matrix, and the mean similarity along it.

    A path leads from (0, 0) to (a - 1, b - 1) in steps (1, 0), (0, 1) and (1, 1) and makes the **sum** of the
    similarities on it as large as it can be; what is reported is the **mean**, the sum over the number of points (the
    paper's equation; which of the two the path optimises, it leaves open). A sum of positive similarities prefers long
    paths and one of negative similarities short paths; the mean undoes the scale of that, not the preference. Among
    paths of the same sum the one with the fewest points wins, and among those the one whose steps are, read from the end,
    diagonal rather than (1, 0) rather than (0, 1).

    Args:
        similarity: `[N, a, b]`, N matrices of one size.

    Returns:
        Means, float64 `[N]`, and for each matrix the points `(u, v)` of its path.

    Raises:
        ValueError: not three sizes, an empty one, or a value that is NaN or infinite.
    """
    if similarity.dim() != 3 or 0 in similarity.shape:
        raise ValueError(f"`similarity` must be [matrices, a, b] without empty sizes, got {list(similarity.shape)}")
    if not torch.isfinite(similarity).all():
        raise ValueError("`similarity` has NaN or infinite values")
    values = similarity.detach().double().cpu().numpy()
    count, rows, columns = values.shape
    # Row 0 and column 0 lie outside. All cells of one anti-diagonal, and all matrices, advance together.
    sums = np.full((count, rows + 1, columns + 1), -np.inf)
    lengths = np.zeros((count, rows + 1, columns + 1), dtype=np.int64)
    came_by = np.zeros((count, rows, columns), dtype=np.int64)
    sums[:, 0, 0] = 0.0
    steps = np.array([(1, 1), (1, 0), (0, 1)])
    for diagonal in range(rows + columns - 1):
        u = np.arange(max(0, diagonal - columns + 1), min(rows, diagonal + 1))
        v = diagonal - u
        before = np.stack([sums[:, u + 1 - du, v + 1 - dv] for du, dv in steps])
        points = np.stack([lengths[:, u + 1 - du, v + 1 - dv] for du, dv in steps])
        points[before < before.max(axis=0)] = rows + columns  # more than any path has
        choice = points.argmin(axis=0)
        came_by[:, u, v] = choice
        sums[:, u + 1, v + 1] = before.max(axis=0) + values[:, u, v]
        lengths[:, u + 1, v + 1] = np.take_along_axis(points, choice[None], axis=0)[0] + 1
    paths = []
    for steps_of_matrix in came_by:
        u, v = rows - 1, columns - 1
        path = [(u, v)]
        while (u, v) != (0, 0):
            du, dv = steps[steps_of_matrix[u, v]]
            u, v = int(u - du), int(v - dv)
            path.append((u, v))
        paths.append(path[::-1])
    return torch.from_numpy(sums[:, -1, -1] / lengths[:, -1, -1]), paths


def proportional_spans(num_text: int, num_speech: int, num_spans: int | None = None) -> list[dict[str, list[int]]]:
    """Spans for a sentence that nobody aligned: text and speech are cut into equally many parts of even length.

    A crude stand-in for forced alignment, which the paper uses: it takes speech to be read at an even pace.

    Args:
        num_text (`int`): text tokens, at least 2. num_speech (`int`): speech tokens.
        num_spans (`int`, *optional*): how many; as many as there are text tokens, or speech tokens if those are fewer.

    Raises:
        ValueError: `num_spans` is not in 2 ... min(num_text, num_speech).
    """
    largest = min(num_text, num_speech)
    num_spans = largest if num_spans is None else num_spans
    if not 2 <= num_spans <= largest:
        raise ValueError(
            f"`num_spans` is {num_spans}; {num_text} text tokens and {num_speech} speech tokens can be cut into 2 to "
            f"{largest} spans"
        )
    text, speech = ([i * length // num_spans for i in range(num_spans + 1)] for length in (num_text, num_speech))
    return [{"text": text[i : i + 2], "speech": speech[i : i + 2]} for i in range(num_spans)]


def layer_similarity(
    text: LayerStates, speech: LayerStates, spans: Iterable[dict[str, Sequence[int]]]
) -> LayerSimilarity:
    """Similarity score of every layer (appendix C):

        DTW_ij = mean of M_ij along its path                     M_ij[u, v] = cos(text token u of T_j, speech token v of S_j)
        BG_ij  = sum of cos(t, s) over s in S_j and t not in T_j / (|S_j| (n - |T_j|))
        lambda = sum of DTW_kj over layers k and pairs j / number of terms
        SS_i   = sum over j of DTW_ij / (BG_ij + lambda)

    Where the paper's notation leaves a choice: n is the number of **all** text tokens of the sentence, those outside every
    span included, so n - |T_j| counts exactly the tokens that BG sums over; and lambda, "averaged over all pairs and
    layers", runs over the transformer layers of **this** sentence (the J_k of the formula are the same number for every
    layer): neither the embeddings, which are no layer 1 ... L, nor other sentences change it. What the path maximises is
    said in `dtw_paths`.

    Args:
        text: states `[N, n, hidden]` of the text tokens. speech: states `[N, m, hidden]` of the speech tokens, of the
            same layers.
        spans: the aligned pairs, `[{"text": [start, end], "speech": [start, end]}, ...]`: positions in the two
            sequences, ends exclusive. They may touch, overlap and leave tokens out.

    Raises:
        ValueError: no spans; a span that is empty, not two whole numbers or outside its sequence; one that covers all
            text tokens (nothing is left for BG); states that do not fit or are not finite; BG + lambda is 0.
    """
    if text.layers != speech.layers:
        raise ValueError(f"`text` has the layers {list(text.layers)}, `speech` has {list(speech.layers)}")
    matrices = cosine_matrix(text.states, speech.states)
    pairs = check_spans(spans, *matrices.shape[1:])
    counted = torch.tensor([name != EMBEDDINGS for name in text.layers])
    if not counted.any():
        raise ValueError("`text` and `speech` hold the embeddings only; at least one layer is needed")
    means, backgrounds, paths = [], [], []
    for (first, last), (start, end) in pairs:
        mean, of_layers = dtw_paths(matrices[:, first:last, start:end])
        columns = matrices[:, :, start:end]
        others = torch.cat([columns[:, :first], columns[:, last:]], dim=1)
        means.append(mean)
        backgrounds.append(others.mean(dim=(1, 2)))
        paths.append([[(u + first, v + start) for u, v in path] for path in of_layers])
    dtw, background = torch.stack(means, dim=1), torch.stack(backgrounds, dim=1)
    coefficient = dtw[counted].mean().item()
    denominator = background + coefficient
    if (denominator == 0).any():
        layer, pair = (denominator == 0).nonzero()[0].tolist()
        raise ValueError(f"BG + lambda is 0 for pair {pair} in {text.layers[layer]!r}: there is no score")
    if (denominator < 0).any():
        warnings.warn(
            f"BG + lambda is negative for {int((denominator < 0).sum())} of {denominator.numel()} pairs and layers: "
            "text and speech are too dissimilar for the scores to mean anything",
            stacklevel=2,
        )
    return LayerSimilarity(
        layers=text.layers,
        scores=(dtw / denominator).sum(dim=1),
        dtw=dtw,
        background=background,
        coefficient=coefficient,
        matrices=matrices,
        paths=[list(of_pairs) for of_pairs in zip(*paths, strict=True)],
        spans=pairs,
    )


def check_spans(
    spans: Iterable[dict[str, Sequence[int]]], num_text: int, num_speech: int
) -> tuple[tuple[tuple[int, int], tuple[int, int]], ...]:
    """The spans of `layer_similarity` as pairs of pairs, or a `ValueError` that names the first one that is wrong."""
    checked = []
    for number, span in enumerate(spans):
        if not isinstance(span, dict) or set(span) != {"text", "speech"}:
            raise ValueError(
                f"`spans[{number}]` is {span!r}; accepted is {{'text': [start, end], 'speech': [start, end]}}"
            )
        pair = []
        for side, length in (("text", num_text), ("speech", num_speech)):
            name, ends = f"`spans[{number}]['{side}']`", span[side]
            whole = isinstance(ends, Sequence) and len(ends) == 2 and not isinstance(ends, str)
            if not whole or not all(isinstance(e, numbers.Integral) and not isinstance(e, bool) for e in ends):
                raise ValueError(f"{name} is {ends!r}; accepted are two whole numbers, [start, end]")
            start, end = (int(e) for e in ends)
            if not 0 <= start <= end <= length:
                raise ValueError(f"{name} is [{start}, {end}]; accepted is 0 <= start < end <= {length}")
            if start == end:
                raise ValueError(f"{name} is [{start}, {end}], which is empty; the end is exclusive")
            pair.append((start, end))
        if pair[0][1] - pair[0][0] == num_text:
            raise ValueError(
                f"`spans[{number}]['text']` covers all {num_text} text tokens: no token is left for the background"
            )
        checked.append((pair[0], pair[1]))
    if not checked:
        raise ValueError("`spans` is empty; at least one pair of spans is needed")
    return tuple(checked)


def average_scores(results: Sequence[LayerSimilarity]) -> tuple[Tensor, Tensor]:
    """Scores of several sentences (figure 2e): their mean and, sentence against sentence, their standard deviation
    (divided by the number of sentences; 0 for a single one). float64 `[N]` both.

    Each sentence has its own lambda and counts alike, although a score is a sum over pairs.

    Raises:
        ValueError: no results, or results of different layers.
    """
    if not results:
        raise ValueError("`results` is empty")
    if len({result.layers for result in results}) > 1:
        raise ValueError(f"`results` have different layers: {sorted({len(result.layers) for result in results})}")
    scores = torch.stack([result.scores for result in results])
    return scores.mean(dim=0), scores.std(dim=0, correction=0)


def sequence_states(
    model: nn.Module, input_ids: Tensor, branch: str | None = None, include_embeddings: bool = False
) -> LayerStates:
    """Hidden states of one sequence in all layers of a causal language model, in one pass without cache.

    As `output_hidden_states` gives them: what each layer adds up to, and behind the last one its final norm. In a split
    model the layers are those of the trunk and then those of one branch, counted on as in the text model it came from.

    Args:
        model: any `PreTrainedModel` that decodes causally; with a trunk and two branches (`SplitLayerQwen3ForCausalLM`
            or its base model) or without. In evaluation mode.
        input_ids: int64 `[L]`, or rows `[L, 2]` for a split model.
        branch (`str`, *optional*): "text" or "audio", needed for a model with branches: whose layers follow the trunk.
            The natural choice is that of the sequence; the same for both sequences compares what one branch makes of
            them.
        include_embeddings (`bool`): put the token embeddings in front, as `"embeddings"`.

    Raises:
        ValueError: empty or wrongly shaped ids; a branch that the model does not have; a model in training mode; NaN.
    """
    split = split_model(model)
    shapes = "[L] or [L, 2]" if split is not None else "[L]"
    if input_ids.dim() not in ((1, 2) if split is not None else (1,)) or not input_ids.numel():
        raise ValueError(f"`input_ids` must be one sequence, {shapes}, that is not empty; got {list(input_ids.shape)}")
    if model.training:
        raise ValueError("`model` is in training mode, in which dropout changes its states; call `model.eval()`")
    accepted = BRANCHES if has_branches(model) else (None,)
    if branch not in accepted:
        raise ValueError(f"`branch` is {branch!r}; accepted for this {type(model).__name__} are {list(accepted)}")
    ids = input_ids[None].to(model.device)
    with torch.no_grad():
        states = _plain_states(model, ids) if split is None else _split_states(split, ids, branch)
    names = (EMBEDDINGS, *(f"layer {i}" for i in range(len(states) - 1)))
    stacked = torch.stack([state[0].float().cpu() for state in states])
    for name, state in zip(names, stacked, strict=True):
        if not torch.isfinite(state).all():
            raise ValueError(f"`model` gives NaN or infinite hidden states in {name!r}")
    return LayerStates(stacked, names) if include_embeddings else LayerStates(stacked[1:], names[1:])


def split_model(model: nn.Module) -> nn.Module | None:
    """The part of `model` that has a trunk (and branches, unless it is the baseline without a split); else `None`."""
    candidates = (model, getattr(model, "model", None))
    return next((candidate for candidate in candidates if hasattr(candidate, "shared_block")), None)


def has_branches(model: nn.Module) -> bool:
    """Whether `sequence_states` needs a branch for this model."""
    return hasattr(split_model(model), "audio_block")


def _plain_states(model: nn.Module, ids: Tensor) -> tuple[Tensor, ...]:
    decoder = model.get_decoder()
    output = decoder(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        use_cache=False,
        output_hidden_states=True,
        return_dict=True,
    )
    return output.hidden_states


def _split_states(split: nn.Module, ids: Tensor, branch: str | None) -> list[Tensor]:
    # Lists of outputs would not tell the layers of the branches apart.
    layers = list(split.shared_block.layers)
    wanted = {}
    if branch is None:
        norm = split.norm
    else:
        layers += getattr(split, f"{branch}_block").layers
        norm = getattr(split, f"{branch}_norm")
        wanted["branches"] = (branch,)
    embeddings, outputs = [], {}

    def first_input(module, args, kwargs):
        embeddings.append(args[0] if args else kwargs["hidden_states"])

    def keep(position):
        def hook(module, args, output):
            outputs[position] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [layers[0].register_forward_pre_hook(first_input, with_kwargs=True)]
    handles += [layer.register_forward_hook(keep(i)) for i, layer in enumerate([*layers, norm])]
    try:
        split(input_ids=ids, attention_mask=ids.new_ones(ids.shape[:2]), use_cache=False, **wanted)
    finally:
        for handle in handles:
            handle.remove()
    return [embeddings[0], *(outputs[i] for i in range(len(layers) - 1)), outputs[len(layers)]]


def plot_heat_maps(result: LayerSimilarity, path: str | PathLike, columns: int = 6) -> None:
    """Write a PNG with the cosine matrix of every layer and the points of the DTW paths (figures 2a-d and 4).

    Args:
        result: similarities of one sentence. path: the file. columns (`int`): heat maps side by side.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure = _figure()
    columns = min(columns, len(result.layers))
    rows = math.ceil(len(result.layers) / columns)
    figure.set_size_inches(2.6 * columns, 2.3 * rows)
    low, high = result.matrices.min().item(), result.matrices.max().item()
    for i, name in enumerate(result.layers):
        axes = figure.add_subplot(rows, columns, i + 1)
        image = axes.imshow(result.matrices[i].numpy(), aspect="auto", vmin=low, vmax=high, interpolation="nearest")
        points = np.array([point for path_of_pair in result.paths[i] for point in path_of_pair])
        axes.scatter(points[:, 1], points[:, 0], s=5, color="yellow", edgecolors="black", linewidths=0.3)
        axes.set_title(name, fontsize=8)
        axes.tick_params(labelsize=6)
    figure.colorbar(image, ax=figure.axes, label="cosine similarity", shrink=0.8)
    figure.supxlabel("speech token", fontsize=8)
    figure.supylabel("text token", fontsize=8)
    figure.savefig(path, format="png")


def plot_scores(results: Sequence[LayerSimilarity], path: str | PathLike) -> None:
    """Write a PNG with the similarity score over the layers (figure 2e): each sentence, and their average.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: no results, or results of different layers.
    """
    mean, _ = average_scores(results)
    figure = _figure()
    figure.set_size_inches(max(5.0, 0.25 * len(mean)), 3.5)
    axes = figure.add_subplot()
    positions = range(len(mean))
    if len(results) > 1:
        for number, result in enumerate(results):
            axes.plot(positions, result.scores.tolist(), linewidth=0.8, alpha=0.6, label=f"sample {number}")
    axes.plot(positions, mean.tolist(), color="black", marker="o", markersize=3, label="average")
    names = [name.removeprefix("layer ") for name in results[0].layers]
    axes.set_xticks(positions, names, fontsize=7, rotation=90 if EMBEDDINGS in names else 0)
    axes.set_xlabel("layer")
    axes.set_ylabel("similarity score")
    axes.legend(fontsize=7)
    figure.savefig(path, format="png")


def _figure():
    try:
        from matplotlib.figure import Figure  # without pyplot: no window system, nothing kept globally
    except ImportError as error:
        raise ImportError(
            "figures need matplotlib: `pip install matplotlib`, or the extra `dualspeech[audio]`"
        ) from error
    return Figure(layout="constrained", dpi=120)


__all__ = [
    "BRANCHES",
    "EMBEDDINGS",
    "LayerSimilarity",
    "LayerStates",
    "average_scores",
    "check_spans",
    "cosine_matrix",
    "dtw_paths",
    "has_branches",
    "layer_similarity",
    "plot_heat_maps",
    "plot_scores",
    "proportional_spans",
    "sequence_states",
    "split_model",
]
