"""Work put off for a silent branch: the same numbers as running both branches over everything at every step."""

import copy
import random

import pytest
import torch
from transformers import DynamicCache, StaticCache

from dualspeech.modeling.split_layer_cache import BRANCHES, SplitLayerCache
from tests.modeling.split_layer_cases import CASES, SPLIT_CASES, left_padded, random_flat, tiny_config, tiny_model


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=3e-5, rtol=1e-4)


class Session:
    """A cached model beside its naive reference, which runs both branches over all rows at every step."""

    def __init__(self, model, batch=2, attention_mask=True):
        self.model, self.cache = model, SplitLayerCache(model.config)
        self.flat = torch.empty(batch, 0, dtype=torch.long)
        self.mask = torch.empty(batch, 0, dtype=torch.long)
        self.give_mask = attention_mask

    @torch.no_grad()
    def step(self, rows, branches, mask=None):
        """Feed `rows` and compare the wanted logits with the reference's."""
        mask = torch.ones_like(rows) if mask is None else mask
        self.flat, self.mask = torch.cat([self.flat, rows], 1), torch.cat([self.mask, mask], 1)
        given = {"attention_mask": self.mask} if self.give_mask else {}
        output = self.model(rows, past_key_values=self.cache, branches=branches, **given)
        assert output.past_key_values is self.cache
        expected = self.model(self.flat, attention_mask=self.mask, use_cache=False)
        for branch in branches or BRANCHES:
            name = f"{branch}_logits"
            close(output[name][mask.bool()], expected[name][:, -rows.shape[1] :][mask.bool()])
        assert self.cache.get_seq_length() == self.flat.shape[1]
        return output

    def random_step(self, length, branches):
        return self.step(random_flat(self.model.config, len(self.flat), length), branches)

    def change(self, rows):
        self.flat, self.mask = self.flat[rows], self.mask[rows]


def pending(cache):
    return [cache.pending_length(branch) for branch in BRANCHES]


def branch_lengths(cache):
    config = tiny_config()
    return [cache.get_seq_length(config.num_shared_layers + k * config.num_modality_layers) for k in range(2)]


@pytest.mark.parametrize("case", SPLIT_CASES)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_turns(case, attention):
    """A left-padded prompt with both branches, speech, text, speech again, both."""
    session = Session(tiny_model(**CASES[case], attn_implementation=attention))
    prompt, mask = left_padded(session.model.config, random_flat(session.model.config, 2, 7), (7, 3))
    session.step(prompt, None, mask)
    for branch, steps in (("audio", 5), ("text", 2), ("audio", 1), ("text", 3)):
        for _ in range(steps):
            session.random_step(1, (branch,))
    session.random_step(2, None)
    assert pending(session.cache) == [0, 0]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("attention_mask", [True, False])
def test_random_schedules(seed, attention_mask):
    draw = random.Random(seed)
    session = Session(tiny_model(seed), batch=draw.randint(1, 3), attention_mask=attention_mask)
    for _ in range(12):
        branches = draw.choice([None, ("text",), ("audio",), ("audio", "text")])
        session.random_step(draw.choice([1, 1, 2, 4]), branches)


def test_prompt_of_one_branch():
    """The other branch sees its first row late, in a padded batch."""
    session = Session(tiny_model())
    prompt, mask = left_padded(session.model.config, random_flat(session.model.config, 2, 6), (2, 6))
    session.step(prompt, ("audio",), mask)
    assert (pending(session.cache), branch_lengths(session.cache)) == ([6, 0], [0, 6])
    session.random_step(1, ("audio",))
    assert (pending(session.cache), branch_lengths(session.cache)) == ([7, 0], [0, 7])
    session.random_step(3, ("text",))
    assert (pending(session.cache), branch_lengths(session.cache)) == ([0, 3], [10, 7])


@torch.no_grad()
def test_a_silent_branch_does_not_run():
    model = tiny_model()
    runs = []
    for branch in BRANCHES:
        block = getattr(model.model, f"{branch}_block")
        block.register_forward_hook(
            lambda module, args, output, branch=branch: runs.append((branch, args[0].shape[1]))
        )
    flat = random_flat(model.config, 1, 9)
    cache = model(flat[:, :4], use_cache=True).past_key_values
    assert isinstance(cache, SplitLayerCache)
    assert cache.lazy
    for row in range(4, 8):
        model(flat[:, row : row + 1], past_key_values=cache, branches=("audio",))
    model(flat[:, 8:], past_key_values=cache, branches=("text",))
    assert runs == [("text", 4), ("audio", 4), *[("audio", 1)] * 4, ("text", 5)]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["not lazy", "dynamic", "static"])
def test_other_caches_keep_every_branch_up_to_date(kind):
    model = tiny_model()
    config, flat = model.config, random_flat(model.config, 2, 8)
    cache = {
        "not lazy": lambda: SplitLayerCache(config, lazy=False),
        "dynamic": lambda: DynamicCache(config=config),
        "static": lambda: StaticCache(config=config, max_cache_len=8),
    }[kind]()
    model(flat[:, :5], past_key_values=cache, branches=("audio",))
    for layer in range(config.num_cache_layers):
        assert int(cache.get_seq_length(layer)) == 5
    speech = model(flat[:, 5:7], past_key_values=cache, branches=("audio",))
    assert speech.text_logits is None
    close(
        model(flat[:, 7:], past_key_values=cache, branches=("text",)).logits[..., :33], model(flat).text_logits[:, 7:]
    )


@torch.no_grad()
def test_rotary_angles_that_depend_on_the_length():
    """Rows that are caught up with keep the angles of their own step, as those that the trunk has seen."""
    rope = {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 2.0}
    results, flat = [], random_flat(tiny_config(), 1, 16)
    for lazy in (True, False):
        model = tiny_model(rope_parameters=dict(rope), max_position_embeddings=6)
        cache = SplitLayerCache(model.config, lazy=lazy)
        model(flat[:, :4], past_key_values=cache)
        for row in range(4, 15):
            model(flat[:, row : row + 1], past_key_values=cache, branches=("audio",))
        results.append(model(flat[:, 15:], past_key_values=cache).logits)
    close(*results)


@pytest.mark.parametrize("removed", [1, 2, 3, 5, 7])
def test_crop(removed):
    """Candidate rows are taken back: some were pending for a branch, some were not."""
    session = Session(tiny_model())
    session.random_step(4, None)
    session.random_step(3, ("audio",))
    session.random_step(1, ("audio",))
    session.cache.crop(0)
    session.cache.crop(-removed)
    session.flat, session.mask = session.flat[:, :-removed], session.mask[:, :-removed]
    assert pending(session.cache) == [max(4 - removed, 0), 0]
    assert branch_lengths(session.cache) == [min(4, 8 - removed), 8 - removed]
    session.random_step(2, ("audio",))
    session.random_step(1, None)
    assert branch_lengths(session.cache) == [11 - removed] * 2
    with pytest.raises(ValueError, match="positive value"):
        session.cache.crop(3)


def test_crop_inside_a_window():
    model = tiny_model(**CASES["sliding"])
    session = Session(model)
    session.cache.activate_past_recording()
    session.random_step(5, None)
    session.random_step(3, ("audio",))
    session.cache.crop(-2)
    session.flat, session.mask = session.flat[:, :-2], session.mask[:, :-2]
    session.random_step(2, ("audio",))
    session.cache.crop(0)
    session.random_step(1, None)
    session.random_step(1, ("text",))


@pytest.mark.parametrize("rows", [[1, 0, 2], [2, 2, 0]])
def test_beams(rows):
    session = Session(tiny_model(), batch=3)
    prompt, mask = left_padded(session.model.config, random_flat(session.model.config, 3, 5), (5, 3, 1))
    session.step(prompt, None, mask)
    for _ in range(3):
        session.random_step(1, ("audio",))
        session.cache.reorder_cache(torch.tensor(rows))
        session.change(rows)
    session.random_step(1, ("text",))
    session.cache.reorder_cache(torch.tensor(rows))
    session.change(rows)
    session.random_step(1, None)


def test_several_continuations_and_fewer_rows():
    session = Session(tiny_model(), batch=2, attention_mask=False)  # one row of positions for the batch
    session.random_step(4, None)
    session.random_step(2, ("text",))
    session.cache.batch_repeat_interleave(2)
    session.change([0, 0, 1, 1])
    session.random_step(1, ("text",))
    session.cache.batch_select_indices(torch.tensor([1, 3]))
    session.change([1, 3])
    assert pending(session.cache) == [0, 3]
    session.random_step(1, ("audio",))


def test_reset():
    session = Session(tiny_model())
    session.random_step(4, ("text",))
    session.cache.reset()
    assert (pending(session.cache), session.cache.get_seq_length()) == ([0, 0], 0)
    session.flat, session.mask = session.flat[:, :0], session.mask[:, :0]
    session.random_step(3, ("audio",))
    session.random_step(1, None)


def test_a_copy_is_a_session_of_its_own():
    session = Session(tiny_model())
    session.random_step(3, None)
    session.random_step(2, ("audio",))
    other = copy.copy(session)
    other.cache = copy.deepcopy(session.cache)
    for each in (session, other):
        each.random_step(1, ("audio",))
        each.random_step(1, ("text",))
    for each in (other, session):
        each.random_step(1, None)


@torch.no_grad()
def test_masks_that_cannot_follow():
    model = tiny_model()
    flat = random_flat(model.config, 1, 3)
    cache = SplitLayerCache(model.config)
    model(flat[:, :2], past_key_values=cache, branches=("audio",))
    for mask in (torch.ones(1, 1, 1, 3), {"full_attention": torch.ones(1, 1, 1, 3)}):
        with pytest.raises(ValueError, match=r"`attention_mask` must be .* catch up"):
            model(flat[:, 2:], past_key_values=copy.deepcopy(cache), attention_mask=mask)
    with pytest.raises(ValueError, match="the 2 cached and the 1 new rows"):
        model(flat[:, 2:], past_key_values=cache, attention_mask=torch.ones(1, 1))


def test_without_branches_it_is_a_dynamic_cache():
    model = tiny_model(num_shared_layers=3, num_modality_layers=0)
    session = Session(model)
    session.random_step(3, ("audio",))
    session.random_step(1, ("text",))
    session.random_step(2, None)
    assert pending(session.cache) == [0, 0]
    session.cache.crop(-2)
    session.flat, session.mask = session.flat[:, :-2], session.mask[:, :-2]
    session.random_step(1, ("audio",))
