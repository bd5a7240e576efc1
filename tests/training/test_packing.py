"""Sequence packing: the packs, the batches, and losses and gradients equal to those of padded rows."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from dualspeech.modeling.packed_rows import RowPacking, check_seq_idx, pack_lengths, spread_rows, unpack_rows
from dualspeech.training.packing import PackedDataset, example_lengths, pack_columns
from tests.modeling.dualspeech_cases import tiny_model as tiny_dualspeech
from tests.modeling.dualspeech_cases import training_batch
from tests.modeling.split_layer_cases import random_flat
from tests.modeling.split_layer_cases import tiny_model as tiny_split_layer


def naive_best_fit(lengths, context_length):
    packs, spaces = [], []
    for example in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fitting = [(space, -place) for place, space in enumerate(spaces) if space >= lengths[example]]
        if fitting:
            place = -min(fitting)[1]
        else:
            place = len(packs)
            packs.append([])
            spaces.append(context_length)
        packs[place].append(example)
        spaces[place] -= lengths[example]
    return packs


@pytest.mark.parametrize("context_length", [7, 40, 1000])
def test_best_fit_equals_a_search_through_all_packs(context_length):
    draw = np.random.default_rng(context_length)
    for count in (1, 2, 30, 200):
        lengths = draw.integers(1, context_length + 1, count).tolist()
        packs = pack_lengths(lengths, context_length)
        assert sorted(i for pack in packs for i in pack) == list(range(count))
        loads = sorted(sum(lengths[i] for i in pack) for pack in packs)
        assert loads == sorted(sum(lengths[i] for i in pack) for pack in naive_best_fit(lengths, context_length))
        assert loads[-1] <= context_length


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"example 2 has length 9; accepted are 1 to `context_length` 8.*1 of 3"):
        PackedDataset([{"input_ids": [1] * n} for n in (3, 8, 9)], 8)
    with pytest.raises(ValueError, match="example 1 has length 0"):
        pack_lengths([2, 0], 8)
    with pytest.raises(ValueError, match="`dataset` is empty"):
        PackedDataset([], 8)


def test_a_packed_data_set_holds_every_example_once_in_an_order_of_its_seed():
    rows = [{"input_ids": [i] * (1 + i % 5)} for i in range(50)]
    table = Dataset.from_list(rows)
    first, again, other = (PackedDataset(table, 8, seed=seed) for seed in (3, 3, 4))
    assert first.packs == again.packs != other.packs
    held = [example["input_ids"][0] for index in range(len(first)) for example in first[index]]
    assert sorted(held) == list(range(50))
    assert first.num_tokens == sum(len(row["input_ids"]) for row in rows)
    assert first.fill == first.num_tokens / (8 * len(first)) > 0.9
    assert PackedDataset(rows, 8, seed=3).packs == first.packs


def test_lengths_come_from_the_column_or_the_ids():
    rows = [{"input_ids": [[1, 2]] * n} for n in (3, 1, 2)]
    table = Dataset.from_list(rows)
    assert example_lengths(rows).tolist() == [3, 1, 2]
    assert example_lengths(table).tolist() == [3, 1, 2]
    assert example_lengths(table.select([2, 0])).tolist() == [2, 3]
    assert example_lengths(table.add_column("length", [7, 8, 9])).tolist() == [7, 8, 9]


@pytest.mark.parametrize("flatten", [False, True])
def test_columns_of_packs(flatten):
    rows = [{"input_ids": [5] * n, "labels": [n] * n} for n in (2, 1, 4)]
    columns = pack_columns([rows[:2], rows[2:]], {"input_ids": 9, "labels": -100}, 5, flatten)
    if flatten:
        assert columns["input_ids"].tolist() == [[5] * 7 + [9] * 3]
        assert columns["seq_idx"].tolist() == [[0, 0, 1, 2, 2, 2, 2, -1, -1, -1]]
        assert columns["position_ids"].tolist() == [[0, 1, 0, 0, 1, 2, 3, 0, 1, 2]]
    else:
        assert columns["labels"].tolist() == [[2, 2, 1, -100, -100], [4, 4, 4, 4, -100]]
        assert columns["seq_idx"].tolist() == [[0, 0, 1, -1, -1], [2, 2, 2, 2, -1]]
        assert columns["position_ids"].tolist() == [[0, 1, 0, 0, 1], [0, 1, 2, 3, 0]]


def test_unpacking_undoes_packing():
    columns = pack_columns(
        [[{"input_ids": [3, 4]}, {"input_ids": [5]}], [{"input_ids": [6, 7, 8]}]], {"input_ids": 0}, 4
    )
    places = columns["seq_idx"], columns["position_ids"]
    rows = unpack_rows({"ids": columns["input_ids"], "none": None}, *places, num_rows=3)
    assert rows["ids"].tolist() == [[3, 4, 0], [5, 0, 0], [6, 7, 8]]
    assert rows["none"] is None
    assert spread_rows(columns["input_ids"] == 4, places[0]).tolist() == [[True, True, False, False], [False] * 4]
    with pytest.raises(ValueError, match="`seq_idx` holds 2, but the batch has 2 rows"):
        unpack_rows({"ids": columns["input_ids"]}, *places, num_rows=2)


def test_rows_that_would_see_each_other_are_refused():
    idx, places = torch.tensor([[0, 1]]), torch.tensor([[0, 0]])
    with pytest.raises(ValueError, match="needs `position_ids` of the same shape, got None"):
        check_seq_idx(idx, None, None)
    with pytest.raises(ValueError, match="`attention_mask` must be left out"):
        check_seq_idx(idx, places, torch.ones(1, 2))
    with pytest.raises(ValueError, match="flash_attention_2 keeps packed rows apart in a batch of one only"):
        check_seq_idx(idx.expand(2, 2), places.expand(2, 2), None, None, "flash_attention_2")
    check_seq_idx(idx, places, None, None, "flash_attention_2")


def test_row_packing_keeps_what_is_kept():
    keep = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 1, 0], [1, 1, 1, 1, 0], [1, 0, 0, 0, 0]]).bool()
    packing = RowPacking(keep)
    assert packing.shape == (3, 4)  # the rows have 3, 1, 4 and 1 positions
    values = torch.arange(20.0).view(4, 5, 1) + 1
    packs = packing.pack(values)
    assert packs[packing.seq_idx >= 0].sum() == values[keep].sum() and packs[packing.seq_idx < 0].sum() == 0
    for pack, rows in zip(packs[..., 0], packing.seq_idx, strict=True):
        for row in set(rows.tolist()) - {-1}:
            assert pack[rows == row].tolist() == values[row, keep[row], 0].tolist()
    assert torch.equal(packing.unpack(packs), values * keep[..., None])


def packed(batch, packs):
    """The padded `batch` with its rows joined as `packs` (lists of row numbers) say, padding of 2 behind each."""
    sizes = batch["attention_mask"].sum(dim=1).tolist()
    names = [name for name in ("input_ids", "labels", "prompt_mask") if name in batch]
    rows = [{name: batch[name][row, :size].numpy() for name in names} for row, size in enumerate(sizes)]
    pad = {"input_ids": 0, "labels": -100, "prompt_mask": 0}
    if batch["input_ids"].dim() == 3:
        pad["input_ids"] = [0, 0]
    longest = max(sum(sizes[row] for row in pack) for pack in packs)
    columns = pack_columns([[rows[row] for row in pack] for pack in packs], {n: pad[n] for n in names}, longest + 2)
    order = [row for pack in packs for row in pack]
    others = ("acoustic_labels", "speaker_embeds", "task_type_ids")
    return {**columns, **{name: batch[name][order] for name in others if name in batch}}


def gradients(model, **inputs):
    model.zero_grad()
    output = model(**inputs)
    output.loss.backward()
    return output, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("backbone", ["llama", "qwen3", "phi3"])
@pytest.mark.parametrize("packs", [[[0, 1, 2, 3]], [[2, 0], [3, 1]]])
def test_dualspeech_packed_equals_padded(backbone, packs, attention):
    model = tiny_dualspeech(backbone).train()
    model.set_attn_implementation(attention)
    batch = training_batch(model.config)
    for condition in ("full", "prompt", "answer"):
        padded, expected = gradients(model, **batch, condition=condition)
        together, found = gradients(model, **packed(batch, packs), condition=condition)
        for name in ("loss", "text_loss", "semantic_loss", "acoustic_loss"):
            torch.testing.assert_close(together[name], padded[name], msg=name)
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], atol=1e-4, rtol=1e-3, msg=name)
    assert model.loss_item_counts(**packed(batch, packs)) == model.loss_item_counts(**batch)


def test_packed_rows_of_one_kind_have_no_loss_of_the_other():
    model = tiny_dualspeech().train()
    batch = training_batch(model.config, tasks=("tts", "vc"))
    output = model(**packed(batch, [[0, 1]]))
    assert output.text_loss is None and output.semantic_loss is not None
    batch = training_batch(model.config, tasks=("asr", "sqa"))
    output = model(**packed(batch, [[1, 0]]))
    assert output.semantic_loss is None and output.acoustic_loss is None and output.text_loss is not None


@pytest.mark.parametrize("shape", [{}, {"num_shared_layers": 2, "num_modality_layers": 0}])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_split_layer_packed_equals_padded(shape, attention):
    model = tiny_split_layer(**shape).train()
    model.set_attn_implementation(attention)
    sizes = (6, 1, 9, 4)
    rows = torch.nn.utils.rnn.pad_sequence([random_flat(model.config, 1, n)[0] for n in sizes], batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(n, dtype=torch.long) for n in sizes], batch_first=True)
    # Everything is learnt, the first row of a sequence excepted, which nothing predicts.
    batch = {"input_ids": rows, "attention_mask": mask, "labels": rows.masked_fill(mask == 0, -100)}
    padded, expected = gradients(model, **batch)
    for packs in ([[0, 1, 2, 3]], [[2], [3, 1, 0]]):
        together, found = gradients(model, **packed(batch, packs))
        for name in ("loss", "text_loss", "audio_loss"):
            torch.testing.assert_close(together[name], padded[name], msg=name)
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], atol=1e-4, rtol=1e-3, msg=name)
        assert model.loss_item_counts(**packed(batch, packs)) == model.loss_item_counts(**batch)


@pytest.mark.parametrize("make", [tiny_dualspeech, tiny_split_layer])
def test_another_row_of_a_pack_changes_nothing(make):
    model = make().eval()
    ids = torch.tensor([[1, 5, 6, 7, 1, 8, 9]])
    other = torch.tensor([[1, 9, 9, 2, 1, 8, 9]])
    places = {"position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2]]), "seq_idx": torch.tensor([[0] * 4 + [1] * 3])}
    with torch.no_grad():
        first, second = (model(ids, **places).logits[:, 4:] for ids in (ids, other))
        alone = model(ids[:, 4:]).logits
    assert torch.equal(first, second)
    torch.testing.assert_close(first, alone)
