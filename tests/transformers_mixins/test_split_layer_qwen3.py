"""The common mixins on the split-layer model, which takes flat ids as any language model takes ids."""

import unittest
from unittest.mock import patch

from dualspeech import SplitLayerQwen3Config, SplitLayerQwen3ForCausalLM, SplitLayerQwen3Model
from dualspeech.modeling import modeling_split_layer_qwen3, split_layer_rows

from .skips import with_skips
from .token_split_layer import TokenSplitLayer, TokenSplitLayerConfig
from .upstream import (
    ConfigTester,
    FSDPTesterMixin,
    GenerationTesterMixin,
    ModelTesterMixin,
    TensorParallelTesterMixin,
    TrainingTesterMixin,
    ids_tensor,
)


class SplitLayerTester:
    config_class = SplitLayerQwen3Config
    base_model_class = SplitLayerQwen3Model
    causal_lm_class = SplitLayerQwen3ForCausalLM
    batch_size, seq_length = 3, 7
    hidden_size, num_attention_heads = 32, 4
    num_hidden_layers = 2  # of one path: one shared, one of each branch
    vocab_size = 99
    is_training = True
    with_speech = True

    def __init__(self, parent):
        self.parent = parent

    def get_config(self):
        return self.config_class(
            vocab_size=self.vocab_size,
            audio_vocab_size=40,
            hidden_size=self.hidden_size,
            intermediate_size=48,
            num_hidden_layers=self.num_hidden_layers,
            num_modality_layers=1,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=128,
            max_window_layers=1,
            modality_pad_token_id=90,
            sosp_token_id=91,
            eosp_token_id=32,
            audio_pad_token_id=7,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        ids = ids_tensor([self.batch_size, self.seq_length], 60) + 3
        if self.with_speech:
            ids[:, ::3] = 99 + ids[:, ::3] % 33
        return config, {"input_ids": ids, "attention_mask": ids.new_ones(ids.shape)}


@with_skips
class SplitLayerQwen3ModelTest(ModelTesterMixin, GenerationTesterMixin, unittest.TestCase):
    all_model_classes = (SplitLayerQwen3Model, SplitLayerQwen3ForCausalLM)

    def setUp(self):
        self.model_tester = SplitLayerTester(self)
        # some tests draw any id, also the one that stands for no row
        for module in (modeling_split_layer_qwen3, split_layer_rows):
            checks = patch.object(module, "check_flat")
            checks.start()
            self.addCleanup(checks.stop)
        self.config_tester = ConfigTester(
            self, config_class=SplitLayerQwen3Config, hidden_size=32, num_attention_heads=4
        )

    def test_config(self):
        self.config_tester.run_common_tests()

    # the vectors of these tests come from the text table alone

    def test_inputs_embeds(self):
        self.model_tester.with_speech = False
        super().test_inputs_embeds()

    def test_inputs_embeds_matches_input_ids(self):
        self.model_tester.with_speech = False
        super().test_inputs_embeds_matches_input_ids()


class TokenSplitLayerTester(SplitLayerTester):
    config_class = TokenSplitLayerConfig
    causal_lm_class = TokenSplitLayer


@with_skips
class TokenSplitLayerTest(TrainingTesterMixin, TensorParallelTesterMixin, FSDPTesterMixin, unittest.TestCase):
    all_model_classes = (TokenSplitLayer,)
    model_tester = None

    def setUp(self):
        self.model_tester = TokenSplitLayerTester(self)
