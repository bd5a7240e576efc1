"""The common mixins on the flow decoder."""

import unittest

import torch

from dualspeech import FlowDecoderConfig, FlowDecoderModel

from .skips import with_skips
from .test_audio_models import AudioModelTest, AudioTester
from .upstream import floats_tensor, ids_tensor


class FlowDecoderTester(AudioTester):
    def get_config(self):
        return FlowDecoderConfig(
            vocab_size=30,
            codebook_size=30,
            num_mel_bins=6,
            speaker_embedding_size=5,
            hidden_size=16,
            num_attention_heads=2,
            intermediate_size=24,
            num_hidden_layers=2,
            num_upsampled_layers=1,
            estimator_channels=12,
            estimator_num_heads=2,
            estimator_head_dim=4,
            estimator_num_layers=1,
            estimator_num_mid_stages=1,
            max_mel_frames=100,
            streaming_probability=0.5,
        )

    def get_inputs(self):
        return {
            "codes": ids_tensor([self.batch_size, 7], 30),
            "mel": floats_tensor([self.batch_size, 6, 28]),
            "speaker_embeds": floats_tensor([self.batch_size, 5]),
            "generator": torch.Generator().manual_seed(0),
        }


@with_skips
class FlowDecoderModelTest(AudioModelTest, unittest.TestCase):
    all_model_classes = (FlowDecoderModel,)
    config_class, model_tester_class = FlowDecoderConfig, FlowDecoderTester


del AudioModelTest
