"""The USTokenizer in training: a frozen text model reads its quantised speech (DualSpeechLM, arXiv 2508.08961)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import ModelOutput, can_return_tuple

from ..configuration.configuration_us_tokenizer import UsTokenizerForUnderstandingConfig
from .modeling_us_tokenizer import UsTokenizerModel, UsTokenizerPreTrainedModel
from .us_tokenizer_codec import UsTokenizerAdapter


@dataclass
class UsTokenizerForUnderstandingOutput(ModelOutput):
    """
    loss (`[]`): alpha * commitment + gamma * reconstruction + beta * understanding; without `input_ids` the first two.
        `None` when `input_ids` are given without `labels`.
    commitment_loss, reconstruction_loss, understanding_loss (`[]`, fp32): not weighted.
    perplexity (`[]`, fp32): of the code usage of the batch.
    logits (`[B, L, text vocabulary]`): of the text model.
    codes (`[B, T]`, long), codes_mask (`[B, T]`, bool): see [`UsTokenizerEncoderOutput`].
    hidden_states, attentions: of the speech encoder, on request.
    """

    loss: torch.Tensor | None = None
    commitment_loss: torch.Tensor | None = None
    reconstruction_loss: torch.Tensor | None = None
    understanding_loss: torch.Tensor | None = None
    perplexity: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    codes: torch.LongTensor | None = None
    codes_mask: torch.BoolTensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class UsTokenizerForUnderstanding(UsTokenizerPreTrainedModel):
    """A USTokenizer in training: a frozen text model reads the quantised speech through an adapter and its
    cross-entropy teaches the tokenizer what understanding needs (the paper's equation 2 and the total loss below it).

    The text model can be any `AutoModelForCausalLM`. It is attached, not owned: it is in no `state_dict()`, among no
    `parameters()` and in no checkpoint, is always in evaluation mode, and follows `.to()`. Wrap it on its own when
    it is to be sharded.

    The understanding loss is the text model's own mean over target tokens. The whole loss is a mean; under gradient
    accumulation a plain Trainer divides it by the number of steps (the released code did not), and `SpeechTrainer`
    gives the counts of the whole step. The codebook is updated in every micro-batch in either case, as released.

    Example:

    ```python
    >>> us_tokenizer = UsTokenizerModel.from_whisper("openai/whisper-medium")
    >>> text_model = AutoModelForCausalLM.from_pretrained("meta-llama/Llama-3.2-1B", dtype=torch.bfloat16)
    >>> model = UsTokenizerForUnderstanding.from_parts(us_tokenizer, text_model)
    >>> model(**UsTokenizerCollator(model.config, tokenizer)(rows)).loss.backward()
    ```
    """

    config: UsTokenizerForUnderstandingConfig
    accepts_loss_kwargs = False
    _text_model: PreTrainedModel | None = None

    def __init__(self, config: UsTokenizerForUnderstandingConfig):
        super().__init__(config)
        tokenizer_config = config.us_tokenizer_config
        self.us_tokenizer = UsTokenizerModel._from_config(tokenizer_config)
        self.adapter = UsTokenizerAdapter(tokenizer_config.code_dim, config.text_config.hidden_size)
        if config.freeze_encoder:
            self.us_tokenizer.freeze_encoder()
        self.post_init()

    @classmethod
    def from_parts(
        cls, us_tokenizer: UsTokenizerModel, text_model: PreTrainedModel, **kwargs
    ) -> "UsTokenizerForUnderstanding":
        """A model with the weights of `us_tokenizer`, a new adapter, and `text_model` attached; `kwargs` are fields of
        [`UsTokenizerForUnderstandingConfig`]."""
        config = UsTokenizerForUnderstandingConfig(
            us_tokenizer_config=us_tokenizer.config,
            text_config=text_model.config.get_text_config(),
            text_model_name_or_path=text_model.name_or_path or None,
            **kwargs,
        )
        model = cls(config)
        model.us_tokenizer.load_state_dict(us_tokenizer.state_dict())
        model.attach_text_model(text_model)
        return model

    @property
    def text_model(self) -> PreTrainedModel | None:
        """The attached text model."""
        return self._text_model

    def attach_text_model(self, model: PreTrainedModel) -> None:
        """Use `model` to read the speech. It is frozen, put in evaluation mode and moved to the device of this model
        (unless it was dispatched with a device map).

        Raises:
            ValueError: its embeddings have another width than the adapter.
        """
        width, expected = model.get_input_embeddings().weight.shape[1], self.config.text_config.hidden_size
        if width != expected:
            raise ValueError(f"model: its embeddings are {width} wide, `text_config.hidden_size` is {expected}.")
        model.requires_grad_(False)
        model.eval()
        if not hasattr(model, "hf_device_map"):
            model.to(self.device)
        object.__setattr__(self, "_text_model", model)  # not a child: neither saved nor trained

    def load_text_model(self, name_or_path: str | None = None, **kwargs) -> None:
        """`AutoModelForCausalLM.from_pretrained(name_or_path, **kwargs)`, attached. The name is kept in the
        configuration, which also gives the default.

        Raises:
            ValueError: no name here or in the configuration, or a model of another width.
        """
        name_or_path = name_or_path if name_or_path is not None else self.config.text_model_name_or_path
        if name_or_path is None:
            raise ValueError("name_or_path: not given, and `text_model_name_or_path` is not set in the configuration.")
        self.attach_text_model(AutoModelForCausalLM.from_pretrained(name_or_path, **kwargs))
        self.config.text_model_name_or_path = str(name_or_path)

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        if self._text_model is not None and not hasattr(self._text_model, "hf_device_map"):
            self._text_model._apply(fn)
        return self

    @can_return_tuple
    def forward(
        self,
        input_features: torch.Tensor,
        num_samples: torch.LongTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        num_items_in_batch: Mapping[str, torch.Tensor | int] | None = None,
        **kwargs,
    ) -> UsTokenizerForUnderstandingOutput:
        """Losses of a training batch.

        Args:
            input_features (`torch.Tensor`): as for [`UsTokenizerModel.encode`].
            num_samples (`torch.LongTensor`, *optional*): as for [`UsTokenizerModel.encode`].
            input_ids (`torch.LongTensor`, *optional*): `[B, L]`, prompt and answer; `speech_placeholder_id` at one
                position per code. Not needed without a text model when `understanding_loss_weight` is 0.
            attention_mask (`torch.Tensor`, *optional*): `[B, L]`.
            labels (`torch.LongTensor`, *optional*): `[B, L]`, the answer's ids where they stand, -100 elsewhere.
            num_items_in_batch (mapping of `str` to `int`, *optional*): items of each part of the loss in the whole
                optimiser step (sums of `loss_item_counts`), by which its sum is divided in `loss`; by default those of
                this batch. The parts returned are always means.

        Raises:
            ValueError: `labels` without `input_ids`, texts without a text model, or a row whose placeholders are not
                as many as its codes.
        """
        if labels is not None and input_ids is None:
            raise ValueError("labels: given without `input_ids`.")
        speech = self.us_tokenizer(input_features, num_samples, **kwargs)
        logits = understanding_loss = None
        config, knows_loss = self.config.us_tokenizer_config, True
        parts = {
            "commitment_loss": (config.commitment_loss_weight, speech.commitment_loss),
            "reconstruction_loss": (config.reconstruction_loss_weight, speech.reconstruction_loss),
        }
        if input_ids is not None and (self._text_model is not None or self.config.understanding_loss_weight > 0):
            text_model = self._require_text_model("labels" if labels is not None else "input_ids")
            text = text_model(
                inputs_embeds=self._inputs_embeds(input_ids, speech.quantized, speech.codes_mask),
                attention_mask=attention_mask,
                labels=labels,
                use_cache=False,
            )
            logits, understanding_loss, knows_loss = text.logits, text.loss, labels is not None
            parts["understanding_loss"] = (self.config.understanding_loss_weight, understanding_loss)
        loss = None
        if knows_loss and num_items_in_batch is None:
            loss = sum(weight * part for weight, part in parts.values())
        elif knows_loss:
            # What other micro-batches and processes add makes each part the mean over all of them.
            counts = self.loss_item_counts(input_features, num_samples, labels)
            loss = sum(
                weight * part * counts[name] / torch.as_tensor(num_items_in_batch[name]).clamp(min=1).to(part.device)
                for name, (weight, part) in parts.items()
            )
        return UsTokenizerForUnderstandingOutput(
            loss=loss,
            commitment_loss=speech.commitment_loss,
            reconstruction_loss=speech.reconstruction_loss,
            understanding_loss=understanding_loss,
            perplexity=speech.perplexity,
            logits=logits,
            codes=speech.codes,
            codes_mask=speech.codes_mask,
            hidden_states=speech.hidden_states,
            attentions=speech.attentions,
        )

    def loss_item_counts(
        self,
        input_features: torch.Tensor,
        num_samples: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs,
    ) -> dict[str, torch.LongTensor]:
        """
        Number of items that each part of the loss is a mean over, without running the model: codes
        (`commitment_loss`), frames (`reconstruction_loss`) and target tokens (`understanding_loss`). Sums over the
        micro-batches and processes of an optimiser step are `num_items_in_batch`. Arguments as for `forward`.
        """
        config, size = self.config.us_tokenizer_config, len(input_features)
        if num_samples is None:
            frames = torch.full((size,), config.encoder_config.max_source_positions)
        else:
            frames = config.num_frames(torch.as_tensor(num_samples).expand(size))
        if not config.mask_padding:
            frames = torch.full_like(frames, int(frames.max()))
        codes = -(-frames // config.downsample)
        counts = {
            "commitment_loss": codes.sum(),
            # The decoder gives one frame less than `downsample` frames per code.
            "reconstruction_loss": torch.minimum(frames, config.downsample * (codes - 1) + 1).sum(),
        }
        if labels is not None:
            counts["understanding_loss"] = (labels[:, 1:] != -100).sum()
        return {name: count.to(input_features.device) for name, count in counts.items()}

    def loss_of_parts(self, parts: Mapping[str, float], counts: Mapping[str, float]) -> float:
        """`loss` of the means `parts` over `counts` items, as `forward` makes it; parts without items are left out."""
        config = self.config.us_tokenizer_config
        weights = {
            "commitment_loss": config.commitment_loss_weight,
            "reconstruction_loss": config.reconstruction_loss_weight,
            "understanding_loss": self.config.understanding_loss_weight,
        }
        return sum(weight * parts[name] for name, weight in weights.items() if counts.get(name))

    @torch.no_grad()
    def generate(
        self,
        input_features: torch.Tensor,
        num_samples: torch.LongTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs,
    ):
        """Text from speech: `generate` of the text model behind the prompt `input_ids [B, L]` (left-padded). Returns
        the new ids only, or what else `kwargs` ask the text model for.

        Raises:
            ValueError: as `forward`; no `input_ids`; a prompt padded on the right.
        """
        if input_ids is None:
            raise ValueError("input_ids: needed, with `speech_placeholder_id` at one position per code.")
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if not bool(attention_mask[:, -1].all()):
            raise ValueError("attention_mask: prompts must be padded on the left.")
        text_model = self._require_text_model("generate")
        encoded = self.us_tokenizer.encode(input_features, num_samples)
        quantized = self.us_tokenizer.quantizer.decode(encoded.codes).to(self.adapter.linear.weight.dtype)
        inputs_embeds = self._inputs_embeds(input_ids, quantized, encoded.codes_mask)
        return text_model.generate(inputs_embeds=inputs_embeds, attention_mask=attention_mask, **kwargs)

    def _require_text_model(self, argument: str) -> PreTrainedModel:
        if self._text_model is None:
            raise ValueError(f"{argument}: no text model is attached; call `load_text_model` or `attach_text_model`.")
        return self._text_model

    def _inputs_embeds(
        self, input_ids: torch.LongTensor, quantized: torch.Tensor, codes_mask: torch.BoolTensor
    ) -> torch.Tensor:
        """Embeddings of the text model with the adapter's output at the placeholders."""
        placeholders = input_ids == self.config.speech_placeholder_id
        found, needed = placeholders.sum(dim=1), codes_mask.sum(dim=1)
        if not torch.equal(found, needed):
            raise ValueError(
                f"input_ids: the rows have {found.tolist()} speech placeholders (id "
                f"{self.config.speech_placeholder_id}), but the speech has {needed.tolist()} codes."
            )
        embeds = self._text_model.get_input_embeddings()(input_ids.masked_fill(placeholders, 0))
        speech = self.adapter(quantized, codes_mask)[codes_mask].to(embeds.device, embeds.dtype)
        return embeds.masked_scatter(placeholders[..., None], speech)


__all__ = ["UsTokenizerForUnderstanding", "UsTokenizerForUnderstandingOutput"]
