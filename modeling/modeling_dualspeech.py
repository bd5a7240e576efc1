"""DualSpeechLM: a text language model that reads and writes USTokens, and AcousticGPT on its hidden states."""

import copy
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import nn
from transformers import AutoModelForCausalLM
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput, can_return_tuple

from ..configuration.configuration_dualspeech import TASK_IDS, DualSpeechConfig
from .cache_naming import CACHE_NAME, cache_arguments, output_with_cache, takes_cache
from .generation_dualspeech import DualSpeechGenerationMixin, default_generation_config
from .modeling_acoustic_gpt import AcousticGPTForCausalLM
from .packed_rows import check_seq_idx, spread_rows, unpack_rows

# Rows of `DualSpeechConfig.coc_probabilities`.
CONDITIONS = ("prompt", "answer", "full")


@output_with_cache
class DualSpeechOutput(ModelOutput):
    """
    Output of [`DualSpeechForConditionalGeneration`].

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*):
            Weighted sum of the parts below.
        logits (`torch.FloatTensor` of shape `(batch, length, vocabulary)`):
            Next-id scores of the language model, text and speech ids.
        text_loss (`torch.FloatTensor` of shape `()`, *optional*):
            Mean cross-entropy over the targets of rows with a text answer; `None` without any.
        semantic_loss (`torch.FloatTensor` of shape `()`, *optional*):
            Mean cross-entropy over the targets of rows with a speech answer (equation 4).
        acoustic_loss (`torch.FloatTensor` of shape `()`, *optional*):
            Mean cross-entropy of AcousticGPT (equation 5); `None` without acoustic targets.
        acoustic_logits (`torch.FloatTensor` of shape `(batch, acoustic length, acoustic vocabulary)`, *optional*):
            Scores of AcousticGPT, aligned with `acoustic_labels`; zeros on rows without an acoustic target. With
            several codebooks a codebook axis stands before the vocabulary.
        cache (`Cache`, *optional*), hidden_states, attentions:
            Those of the language model.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    text_loss: torch.FloatTensor | None = None
    semantic_loss: torch.FloatTensor | None = None
    acoustic_loss: torch.FloatTensor | None = None
    acoustic_logits: torch.FloatTensor | None = None
    cache: Cache | None = None
    hidden_states: tuple | None = None
    attentions: tuple | None = None


class AcousticProjector(nn.Module):
    """Language-model states to condition vectors: linear, ReLU, linear."""

    def __init__(self, config: DualSpeechConfig):
        super().__init__()
        self.linear_1 = nn.Linear(config.text_config.hidden_size, config.projector_hidden_size)
        self.linear_2 = nn.Linear(config.projector_hidden_size, config.acoustic_config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.linear_2(nn.functional.relu(self.linear_1(hidden_states)))


class DualSpeechPreTrainedModel(PreTrainedModel):
    config: DualSpeechConfig
    base_model_prefix = "language_model"
    input_modalities = ("text", "audio")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
            if module.bias is not None:
                init.zeros_(module.bias)


class DualSpeechForConditionalGeneration(DualSpeechPreTrainedModel, DualSpeechGenerationMixin):
    """
    Any causal language model over text and USTokens (`language_model`), a projector of its last hidden states and of
    the speaker vector, and AcousticGPT (`acoustic_model`), trained together (paper, section "DualSpeechLM").

    ```python
    >>> processor = AutoProcessor.from_pretrained("dualspeech-checkpoint")
    >>> model = AutoModel.from_pretrained("dualspeech-checkpoint")
    >>> output = model.generate(**processor(task="tts", text="hello", speaker=speaker_vector))
    >>> processor.batch_decode(output)[0].audio
    ```

    What the released code does and this class does not: one task per batch (rows of different tasks mix freely here),
    the acoustic loss on rows with a text answer (`acoustic_on_understanding`), Chain-of-Condition drawn per batch from
    Python's global generator (here per row from torch's, `coc_granularity`).
    """

    output_modalities = ("text", "audio")
    _tied_weights_keys = {}  # no tables of its own: the parts tie theirs, and PEFT looks for those behind a mapping
    # The loss is a sum of means with different counts: a plain Trainer divides by the accumulation steps itself,
    # `SpeechTrainer` asks for `loss_item_counts`.
    accepts_loss_kwargs = False

    def __init__(self, config: DualSpeechConfig):
        super().__init__(config)
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        if config.acoustic_config is not None:
            self.acoustic_projector = AcousticProjector(config)
            if config.speaker_embedding_size is not None:
                self.speaker_projector = nn.Linear(
                    config.speaker_embedding_size, config.acoustic_config.hidden_size, bias=False
                )
            self.acoustic_model = AcousticGPTForCausalLM._from_config(config.acoustic_config)
        self.post_init()
        self.generation_config = default_generation_config(config)

    @classmethod
    def from_text_model(cls, text_model, tokenizer, **kwargs) -> "DualSpeechForConditionalGeneration":
        """
        Build the model around a pretrained text model; the acoustic parts are new.

        Args:
            text_model (`str` or `PreTrainedModel`):
                A checkpoint for `AutoModelForCausalLM.from_pretrained`, or the model itself: its embeddings are then
                resized in place to hold the tokenizer, and the new model shares its weights.
            tokenizer (`PreTrainedTokenizerBase`):
                A tokenizer with `<audio>`, `</audio>` and `<a_0>` ... in a row (`extend_tokenizer`).
            kwargs:
                Fields of [`DualSpeechConfig`]; `acoustic_config` defaults to the paper's AcousticGPT.

        Raises:
            ValueError: if the tokenizer lacks the speech tokens.
        """
        ids = {name: tokenizer.convert_tokens_to_ids(name) for name in ("<audio>", "</audio>", "<a_0>")}
        missing = [name for name, i in ids.items() if i is None or i == tokenizer.unk_token_id]
        if missing:
            raise ValueError(f"`tokenizer` has no {', '.join(missing)}; extend it with `extend_tokenizer` first")
        if not isinstance(text_model, PreTrainedModel):
            text_model = AutoModelForCausalLM.from_pretrained(text_model)
        if text_model.get_input_embeddings().weight.shape[0] < len(tokenizer):
            text_model.resize_token_embeddings(len(tokenizer))
        text_config = copy.deepcopy(text_model.config.get_text_config(decoder=True))  # special ids are filled in
        for name in ("bos_token_id", "pad_token_id"):
            if getattr(text_config, name, None) is None:
                setattr(text_config, name, getattr(tokenizer, name))
        ends = (
            [] if text_config.eos_token_id is None else torch.as_tensor(text_config.eos_token_id).reshape(-1).tolist()
        )
        others = [i for i in ends if i != tokenizer.eos_token_id]
        # The first end id is the one that training puts behind an answer.
        text_config.eos_token_id = [tokenizer.eos_token_id, *others] if others else tokenizer.eos_token_id
        config = DualSpeechConfig(
            **{
                "text_config": text_config,
                "acoustic_config": {},
                "audio_start_token_id": ids["<audio>"],
                "audio_end_token_id": ids["</audio>"],
                "semantic_token_offset": ids["<a_0>"],
                **kwargs,
            }
        )
        state = {f"language_model.{name}": value for name, value in text_model.state_dict().items()}
        return cls.from_pretrained(None, config=config, state_dict=state, dtype=text_model.dtype)

    def get_input_embeddings(self):
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self):
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, value):
        self.language_model.set_output_embeddings(value)

    def get_decoder(self):
        return self.language_model.get_decoder()

    @takes_cache
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        acoustic_labels: torch.LongTensor | None = None,
        speaker_embeds: torch.FloatTensor | None = None,
        prompt_mask: torch.Tensor | None = None,
        task_type_ids: torch.LongTensor | None = None,
        condition: str | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        seq_idx: torch.LongTensor | None = None,
        num_items_in_batch: Mapping[str, torch.Tensor | int] | None = None,
        **kwargs,
    ) -> DualSpeechOutput:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(batch, length)`):
                Beginning of sequence, prompt, and in training the answer and end of sequence.
            attention_mask (`torch.Tensor` of shape `(batch, length)`):
                1 on ids, 0 on padding (either side).
            labels (`torch.LongTensor` of shape `(batch, length)`):
                `input_ids` on the answer and the end of sequence, -100 elsewhere; shifted inside.
            acoustic_labels (`torch.LongTensor` of shape `(batch, acoustic length)`):
                Codec codes and the end id, -100 behind; "no speech" and the end id, or only -100, in rows with a
                text answer. With several codebooks `(batch, acoustic length, codebooks)`, not delayed.
            speaker_embeds (`torch.FloatTensor` of shape `(batch, speaker_embedding_size)`):
                Speaker vectors; zeros in rows with a text answer. Required with `acoustic_labels`.
            prompt_mask (`torch.Tensor` of shape `(batch, length)`):
                1 on beginning of sequence and prompt. Without it Chain-of-Condition is off.
            task_type_ids (`torch.LongTensor` of shape `(batch,)`):
                Numbers of `TASK_IDS`. Without them Chain-of-Condition applies to every row.
            condition (`str`, *optional*):
                `"prompt"`, `"answer"` or `"full"`: what AcousticGPT sees, instead of a draw.
            seq_idx (`torch.LongTensor` of shape `(packs, length)`, *optional*):
                For several rows in one sequence (packing): the row, from 0 over the whole batch, that each position
                belongs to, -1 on padding. Then `input_ids`, `labels` and `prompt_mask` are `(packs, length)`,
                `position_ids` start anew with each row, `attention_mask` is left out, and `acoustic_labels`,
                `speaker_embeds` and `task_type_ids` have an entry per row. Losses are those of the rows padded.
            num_items_in_batch (mapping of `str` to `int`, *optional*):
                Targets of each part of the loss in the whole optimiser step (sums of `loss_item_counts`), by which
                its sum is divided in `loss`; by default those of this batch. The parts returned are always means.

        Raises:
            ValueError: on inputs that do not fit together (see the messages).
        """
        if seq_idx is not None:
            check_seq_idx(
                seq_idx, position_ids, attention_mask, cache, self.language_model.config._attn_implementation
            )
            if labels is not None:
                labels = labels.masked_fill(position_ids == 0, -100)  # no row predicts the start of the next
        wants_acoustic = acoustic_labels is not None
        if wants_acoustic and self.config.acoustic_config is None and (acoustic_labels == -100).all():
            wants_acoustic = False  # batches for all models have the same entries
        wants_states = kwargs.get("output_hidden_states")
        if wants_acoustic:
            self._check_acoustic_inputs(acoustic_labels, speaker_embeds)
            kwargs["output_hidden_states"] = kwargs.get("output_hidden_states") or -1  # by default the last layer only
        if labels is not None or wants_acoustic or seq_idx is not None:
            use_cache = False
        outputs = self.language_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **cache_arguments(cache),
            **kwargs,
        )
        parts, acoustic_logits = {}, None
        if labels is not None:
            parts.update(self._language_losses(outputs.logits, labels, seq_idx))
        if wants_acoustic:
            rows = {"hidden": outputs.hidden_states[-1], "attention_mask": attention_mask, "prompt_mask": prompt_mask}
            if seq_idx is not None:
                rows = unpack_rows(
                    rows | {"attention_mask": seq_idx >= 0}, seq_idx, position_ids, len(acoustic_labels)
                )
            visible = self._visible_states(**rows, task_type_ids=task_type_ids, condition=condition)
            parts["acoustic_loss"], acoustic_logits = self._acoustic_loss(
                rows["hidden"], rows["attention_mask"], visible, speaker_embeds, acoustic_labels
            )
        return DualSpeechOutput(
            loss=self._weighted_sum(parts, num_items_in_batch),
            logits=outputs.logits,
            **{name: loss for name, (loss, count) in parts.items() if count is not None},
            acoustic_logits=acoustic_logits,
            **{CACHE_NAME: outputs.get(CACHE_NAME)},
            hidden_states=outputs.hidden_states if wants_states or not wants_acoustic else None,
            attentions=outputs.attentions,
        )

    def _weighted_sum(self, parts, num_items_in_batch):
        """Loss of the parts (mean, number of targets or `None` if there are none); `None` without parts."""
        losses = []
        for name, (loss, count) in parts.items():
            weight = getattr(self.config, f"{name}_weight")
            if num_items_in_batch is not None:
                # What other micro-batches and processes add makes it the mean over all of them.
                total = torch.as_tensor(num_items_in_batch[name], device=loss.device).clamp(min=1)
                weight = weight * (0 if count is None else count) / total
            losses.append(weight * loss)
        return sum(losses) if losses else None

    def loss_item_counts(
        self, labels: torch.LongTensor | None = None, acoustic_labels: torch.LongTensor | None = None, **kwargs
    ) -> dict[str, torch.LongTensor]:
        """
        Number of targets of each part of the loss, without running the model: `text_loss`, `semantic_loss`,
        `acoustic_loss`. Sums over the micro-batches and processes of an optimiser step are `num_items_in_batch`.

        Args:
            labels, acoustic_labels, kwargs: a training batch, as for `forward`.
        """
        counts = {}
        if labels is not None:
            if kwargs.get("seq_idx") is not None:
                labels = labels.masked_fill(kwargs["position_ids"] == 0, -100)
            is_speech = self._speech_positions(labels, kwargs.get("seq_idx"))[:, 1:]
            is_target = labels[:, 1:] != -100
            counts["text_loss"] = (is_target & ~is_speech).sum()
            counts["semantic_loss"] = (is_target & is_speech).sum()
        if acoustic_labels is not None and self.config.acoustic_config is not None:
            counts["acoustic_loss"] = (self._acoustic_targets(acoustic_labels) != -100).sum()
        return counts

    def loss_of_parts(self, parts: Mapping[str, float], counts: Mapping[str, float]) -> float:
        """`loss` of the means `parts` over `counts` targets, as `forward` makes it; parts without targets are left out."""
        names = ("text_loss", "semantic_loss", "acoustic_loss")
        return sum(getattr(self.config, f"{name}_weight") * parts[name] for name in names if counts.get(name))

    def _check_acoustic_inputs(self, acoustic_labels, speaker_embeds):
        if self.config.acoustic_config is None:
            raise ValueError("`acoustic_labels` were given, but this model has no acoustic stage (`acoustic_config`)")
        size = self.config.speaker_embedding_size
        if size is not None and (speaker_embeds is None or speaker_embeds.shape != (len(acoustic_labels), size)):
            given = None if speaker_embeds is None else tuple(speaker_embeds.shape)
            raise ValueError(
                f"`speaker_embeds` is {given}; with `acoustic_labels` {(len(acoustic_labels), size)} is needed"
            )

    def _language_losses(self, logits, labels, seq_idx):
        """Mean cross-entropy over the targets of text rows and of speech rows, each with the number of its targets;
        `None` instead of the number where there are none."""
        is_speech = self._speech_positions(labels, seq_idx)
        targets = labels[:, 1:]
        losses = nn.functional.cross_entropy(
            logits[:, :-1].float().flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="none"
        ).view_as(targets)
        parts = {}
        for name, kind in (("text_loss", ~is_speech), ("semantic_loss", is_speech)):
            count = ((targets != -100) & kind[:, 1:]).sum()
            parts[name] = ((losses * kind[:, 1:]).sum() / count.clamp(min=1), count if count > 0 else None)
        return parts

    def _speech_positions(self, labels, seq_idx):
        """Positions of rows that answer with speech, bool like `labels`: rows with a speech id among their targets.
        Their end of sequence counts as semantic. Padding of packs belongs to no kind of row; it has no targets."""
        config = self.config
        is_code = (labels >= config.semantic_token_offset) & (
            labels < config.semantic_token_offset + config.semantic_codebook_size
        )
        is_speech_id = is_code | (labels == config.audio_start_token_id) | (labels == config.audio_end_token_id)
        return spread_rows(is_speech_id, seq_idx)

    def _visible_states(self, hidden, attention_mask, prompt_mask, task_type_ids, condition):
        """Which language-model states AcousticGPT sees, `(batch, length)` bool: Chain-of-Condition."""
        if attention_mask is None:
            attention_mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        attended = attention_mask.bool()
        if condition is not None and condition not in CONDITIONS:
            raise ValueError(f"`condition` is {condition!r}; accepted are {', '.join(CONDITIONS)}")
        if condition == "full" or (condition is None and not self.training):
            return attended
        if prompt_mask is None:
            if condition is None:
                return attended
            raise ValueError(f"`condition` {condition!r} needs `prompt_mask`")
        if condition is not None:
            choice = torch.full((len(hidden),), CONDITIONS.index(condition), device=hidden.device)
        else:
            choice = self._draw_conditions(len(hidden), task_type_ids).to(hidden.device)
        prompt = attended & prompt_mask.bool()
        answer = attended & ~prompt_mask.bool()
        choice = choice[:, None]
        return torch.where(choice == 0, prompt, torch.where(choice == 1, answer, attended))

    def _draw_conditions(self, batch_size, task_type_ids):
        """One of 0 (prompt), 1 (answer), 2 (both) per row, from torch's CPU generator."""
        # Processes have the same seed: each draws for all and takes its own.
        size, rank = (
            (dist.get_world_size(), dist.get_rank()) if dist.is_available() and dist.is_initialized() else (1, 0)
        )
        draws = torch.rand(size, 1 if self.config.coc_granularity == "batch" else batch_size)[rank]
        bounds = torch.tensor(self.config.coc_probabilities, dtype=torch.float64).cumsum(0)[:2]
        choice = torch.bucketize(draws.double(), bounds, right=True).expand(batch_size)
        if task_type_ids is None:
            return choice
        eligible = torch.tensor([TASK_IDS[name] for name in self.config.coc_tasks], dtype=torch.long)
        return torch.where(torch.isin(task_type_ids.cpu(), eligible), choice, 2)

    def build_condition(self, hidden, attention_mask, visible, speaker_embeds):
        """
        Condition of AcousticGPT: the speaker token, then one vector per language-model state.

        Args:
            hidden (`torch.FloatTensor` of shape `(batch, length, text hidden size)`):
                Last hidden states, after the final norm.
            attention_mask (`torch.Tensor` of shape `(batch, length)`, *optional*):
                Gives the positions: the first attended state has position 1 behind the speaker.
            visible (`torch.BoolTensor` of shape `(batch, length)`):
                States that AcousticGPT may attend to. Hidden ones keep their positions.
            speaker_embeds (`torch.FloatTensor` of shape `(batch, speaker_embedding_size)`, *optional*).

        Returns:
            `dict` with `condition_embeds` `(batch, 1 + length, width)`, `condition_mask` and `condition_position_ids`.
        """
        embeds = self.acoustic_projector(hidden)
        if attention_mask is None:
            positions = torch.arange(hidden.shape[1], device=hidden.device).expand(hidden.shape[:2])
        else:
            positions = (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)
        mask = visible.long()
        if self.config.num_condition_tokens:
            speaker = self.speaker_projector(speaker_embeds.to(embeds.dtype))[:, None]
            embeds = torch.cat([speaker.to(embeds.device), embeds], dim=1)
            mask = nn.functional.pad(mask, (1, 0), value=1)
            positions = nn.functional.pad(positions + 1, (1, 0), value=0)
        return {"condition_embeds": embeds, "condition_mask": mask, "condition_position_ids": positions}

    def _acoustic_targets(self, labels):
        """`labels` as AcousticGPT learns them: those of rows with a text answer only if the configuration says so."""
        if self.config.acoustic_on_understanding:
            return labels
        first = labels[:, 0] if labels.dim() == 2 else labels[:, 0, 0]
        silent = (first == self.config.acoustic_config.none_token_id).view(-1, *[1] * (labels.dim() - 1))
        return labels.masked_fill(silent, -100)

    def _acoustic_loss(self, hidden, attention_mask, visible, speaker_embeds, labels):
        """(Loss of AcousticGPT, number of its targets or `None`) and its logits. It runs on the rows with targets."""
        labels = self._acoustic_targets(labels)
        is_target = labels != -100
        rows = is_target.flatten(1).any(dim=1).nonzero()[:, 0]
        has_targets = len(rows) > 0
        if not has_targets:
            # Every rank of a sharded run has to call the acoustic model: one row whose loss is zero.
            rows = rows.new_zeros(1)
        condition = self.build_condition(
            hidden[rows],
            None if attention_mask is None else attention_mask[rows],
            visible[rows],
            None if speaker_embeds is None else speaker_embeds[rows],
        )
        output = self.acoustic_model(**condition, labels=labels[rows], use_cache=False)
        logits = output.logits
        if len(rows) < len(labels):
            logits = logits.new_zeros(len(labels), *logits.shape[1:]).index_copy(0, rows, logits)
        return (output.loss, is_target.sum() if has_targets else None), logits


__all__ = ["DualSpeechForConditionalGeneration", "DualSpeechOutput", "DualSpeechPreTrainedModel"]
