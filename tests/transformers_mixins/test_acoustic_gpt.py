"""The common mixins on AcousticGPT."""

import unittest

from dualspeech import AcousticGPTConfig, AcousticGPTForCausalLM, AcousticGPTModel

from .skips import with_skips
from .token_models import TokenAcousticGPT, TokenAcousticGPTConfig
from .upstream import (
    ConfigTester,
    FSDPTesterMixin,
    GenerationTesterMixin,
    ModelTesterMixin,
    TensorParallelTesterMixin,
    TrainingTesterMixin,
    floats_tensor,
    ids_tensor,
)


class AcousticGPTTester:
    config_class = AcousticGPTConfig
    base_model_class = AcousticGPTModel
    causal_lm_class = AcousticGPTForCausalLM
    num_hidden_layers, hidden_size, num_attention_heads = 2, 32, 4
    batch_size, seq_length, condition_length = 3, 7, 5
    encoder_seq_length = key_length = condition_length + seq_length  # what the layers see
    is_training = True

    def __init__(self, parent):
        self.parent = parent

    def get_config(self):
        return self.config_class(
            codebook_size=50,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=48,
            max_condition_positions=32,
            max_target_positions=128,
        )

    def prepare_config_and_inputs_for_common(self):
        inputs = {
            "condition_embeds": floats_tensor([self.batch_size, self.condition_length, self.hidden_size]),
            "input_ids": ids_tensor([self.batch_size, self.seq_length], 50),
        }
        return self.get_config(), inputs


class TokenAcousticGPTTester(AcousticGPTTester):
    config_class = TokenAcousticGPTConfig
    causal_lm_class = TokenAcousticGPT

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), {"input_ids": ids_tensor([self.batch_size, self.seq_length], 50)}


@with_skips
class AcousticGPTModelTest(ModelTesterMixin, GenerationTesterMixin, unittest.TestCase):
    all_model_classes = (AcousticGPTModel, AcousticGPTForCausalLM)
    additional_model_inputs = ["condition_embeds"]
    test_resize_embeddings = False  # the ids are the codebook and four that follow it

    def setUp(self):
        self.model_tester = AcousticGPTTester(self)
        self.config_tester = ConfigTester(self, config_class=AcousticGPTConfig, has_text_modality=False)

    def test_config(self):
        self.config_tester.run_common_tests()


class TokenAcousticGPTTest(TrainingTesterMixin, TensorParallelTesterMixin, FSDPTesterMixin, unittest.TestCase):
    all_model_classes = (TokenAcousticGPT,)
    model_tester = None

    def setUp(self):
        self.model_tester = TokenAcousticGPTTester(self)
