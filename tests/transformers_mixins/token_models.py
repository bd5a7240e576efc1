"""Our models behind the interface of a plain causal language model, for the mixins that call models with ids only."""

from types import SimpleNamespace

import torch
from huggingface_hub.dataclasses import strict

from dualspeech import AcousticGPTConfig, AcousticGPTForCausalLM, DualSpeechForConditionalGeneration
from dualspeech.configuration.configuration_dualspeech import TASK_IDS


@strict
class TokenAcousticGPTConfig(AcousticGPTConfig):
    model_type = "acoustic_gpt_of_tokens"

    def __setattr__(self, name, value):
        if name != "vocab_size":
            return super().__setattr__(name, value)
        self.codebook_size = value - 4
        self.pad_token_id, self.none_token_id, self.bos_token_id, self.eos_token_id = range(value - 4, value)


class TokenAcousticGPT(AcousticGPTForCausalLM):
    """One constant condition vector, and labels that are shifted here."""

    config: TokenAcousticGPTConfig

    def forward(self, input_ids, attention_mask=None, labels=None, **kwargs):
        condition = torch.ones(len(input_ids), 1, self.config.hidden_size, dtype=self.dtype, device=input_ids.device)
        if labels is not None:
            labels = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
        return super().forward(condition, input_ids=input_ids, labels=labels, **kwargs)

    @torch.no_grad()
    def generate(self, input_ids, max_new_tokens, return_dict_in_generate=False, **kwargs):
        """Greedy, without a cache."""
        scores = []
        for _ in range(max_new_tokens):
            scores.append(self(input_ids, use_cache=False).logits[:, -1])
            input_ids = torch.cat([input_ids, scores[-1].argmax(-1, keepdim=True)], dim=1)
        return SimpleNamespace(sequences=input_ids, scores=tuple(scores)) if return_dict_in_generate else input_ids


class TokenDualSpeech(DualSpeechForConditionalGeneration):
    """Every training row also speaks, so that all parameters take part; `generate` answers in text with bare ids."""

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, labels=None, **kwargs):
        if labels is not None:
            kwargs["acoustic_labels"] = labels[:, :8] % self.config.acoustic_config.codebook_size
            kwargs["speaker_embeds"] = torch.ones(len(labels), self.config.speaker_embedding_size, dtype=self.dtype)
            kwargs["task_type_ids"] = torch.full((len(labels),), TASK_IDS["tts"])
            kwargs["condition"] = "full"
        return super().forward(input_ids, attention_mask, position_ids, labels=labels, **kwargs)

    def generate(self, *args, return_dict_in_generate=False, **kwargs):
        output = super().generate(*args, return_dict_in_generate=True, **kwargs)
        return output if return_dict_in_generate else output.sequences


__all__ = ["TokenAcousticGPT", "TokenAcousticGPTConfig", "TokenDualSpeech"]
