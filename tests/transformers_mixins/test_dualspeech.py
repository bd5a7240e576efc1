"""The common mixins on DualSpeechForConditionalGeneration."""

import unittest

import torch

from dualspeech import DualSpeechConfig, DualSpeechForConditionalGeneration
from dualspeech.configuration.configuration_dualspeech import TASK_IDS

from .skips import with_skips
from .token_models import TokenDualSpeech
from .upstream import (
    ConfigTester,
    FSDPTesterMixin,
    GenerationTesterMixin,
    ModelTesterMixin,
    TensorParallelTesterMixin,
    TrainingTesterMixin,
    ids_tensor,
)

TEXT_IDS, SPEECH_IDS = 99, 20


class DualSpeechTester:
    num_hidden_layers, hidden_size, num_attention_heads = 2, 32, 4
    batch_size, seq_length = 3, 7
    vocab_size = TEXT_IDS + 2 + SPEECH_IDS
    is_training = True

    def __init__(self, parent):
        self.parent = parent

    def get_config(self):
        return DualSpeechConfig(
            text_config={
                "model_type": "qwen3",
                "vocab_size": self.vocab_size,
                "hidden_size": self.hidden_size,
                "intermediate_size": 48,
                "num_hidden_layers": self.num_hidden_layers,
                "num_attention_heads": self.num_attention_heads,
                "num_key_value_heads": 2,
                "head_dim": 8,
                "max_position_embeddings": 128,
                "pad_token_id": 0,
                "bos_token_id": 1,
                "eos_token_id": 2,
            },
            acoustic_config={
                "codebook_size": 30,
                "hidden_size": 24,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 32,
                "max_condition_positions": 128,
                "max_target_positions": 64,
            },
            speaker_embedding_size=6,
            audio_start_token_id=TEXT_IDS,
            audio_end_token_id=TEXT_IDS + 1,
            semantic_token_offset=TEXT_IDS + 2,
            semantic_codebook_size=SPEECH_IDS,
        )

    def prepare_config_and_inputs_for_common(self):
        ids = ids_tensor([self.batch_size, self.seq_length], TEXT_IDS).clamp(min=3)
        return self.get_config(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


class TokenDualSpeechTester(DualSpeechTester):
    causal_lm_class = TokenDualSpeech

    def get_config(self):
        config = super().get_config()
        config.vocab_size = self.vocab_size  # read by the mixins
        return config


@with_skips
class DualSpeechModelTest(ModelTesterMixin, GenerationTesterMixin, unittest.TestCase):
    all_model_classes = (DualSpeechForConditionalGeneration,)
    _is_composite = True

    def setUp(self):
        self.model_tester = DualSpeechTester(self)
        self.config_tester = ConfigTester(
            self, config_class=DualSpeechConfig, has_text_modality=False, common_properties=[]
        )

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if return_labels:
            # a batch that speaks: every loss and every parameter takes part
            ids = inputs["input_ids"]
            inputs["labels"] = ids.clone()
            inputs["acoustic_labels"] = ids[:, :5] % 30
            inputs["speaker_embeds"] = torch.ones(len(ids), 6)
            inputs["task_type_ids"] = torch.full((len(ids),), TASK_IDS["tts"])
        return inputs

    def test_config(self):
        self.config_tester.run_common_tests()


class TokenDualSpeechTest(TrainingTesterMixin, TensorParallelTesterMixin, FSDPTesterMixin, unittest.TestCase):
    all_model_classes = (TokenDualSpeech,)
    model_tester = None

    def setUp(self):
        self.model_tester = TokenDualSpeechTester(self)

    def _get_tiny_config(self):
        config = self.model_tester.get_config()
        return type(config), config.to_diff_dict()
