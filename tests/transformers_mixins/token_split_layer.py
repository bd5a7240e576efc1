"""The split-layer model behind the interface of a plain causal language model, for mixins that draw any flat ids."""

from types import SimpleNamespace

from dualspeech import SplitLayerQwen3Config, SplitLayerQwen3ForCausalLM
from dualspeech.modeling.split_layer_rows import rows_to_flat


class TokenSplitLayerConfig(SplitLayerQwen3Config):
    model_type = "moss_speech_of_tokens"  # other tests of this process load the real class through its own type


class TokenSplitLayer(SplitLayerQwen3ForCausalLM):
    """Takes the id that stands for no row as another one; `generate` returns flat ids."""

    config: TokenSplitLayerConfig

    def _known(self, ids):
        return None if ids is None else ids.masked_fill(ids == self.config.modality_pad_token_id, 3)

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, labels=None, **kwargs):
        ids, labels = self._known(input_ids), self._known(labels)
        return super().forward(ids, attention_mask, position_ids, labels=labels, **kwargs)

    def generate(self, inputs, *args, return_dict_in_generate=False, **kwargs):
        output = super().generate(self._known(inputs), *args, return_dict_in_generate=True, **kwargs)
        sequences = rows_to_flat(output.sequences, self.config)
        if return_dict_in_generate:
            return SimpleNamespace(sequences=sequences, scores=output.scores)
        return sequences


__all__ = ["TokenSplitLayer", "TokenSplitLayerConfig"]
