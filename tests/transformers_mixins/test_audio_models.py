"""The common mixins on the models that read waveforms or features."""

import unittest
from unittest.mock import patch

from transformers import initialization

from dualspeech import (
    CamPPlusConfig,
    CamPPlusModel,
    DualTokenizerConfig,
    DualTokenizerModel,
    KMeansTokenizerConfig,
    KMeansTokenizerModel,
    UsTokenizerConfig,
    UsTokenizerForUnderstanding,
    UsTokenizerForUnderstandingConfig,
    UsTokenizerModel,
    WavTokenizerConfig,
    WavTokenizerModel,
)

from .skips import with_skips
from .upstream import ConfigTester, ModelTesterMixin, floats_tensor

WHISPER = {
    "d_model": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "num_mel_bins": 80,
    "max_source_positions": 30,
}


class AudioTester:
    """What the mixins ask of a `model_tester`; a subclass gives `get_config` and `get_inputs`."""

    is_training = True
    batch_size = 3

    def __init__(self, parent):
        self.parent = parent

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), self.get_inputs()


class AudioModelTest(ModelTesterMixin):
    """Models without a vocabulary."""

    test_resize_embeddings = False
    has_attentions = False

    def setUp(self):
        self.model_tester = self.model_tester_class(self)
        self.config_tester = ConfigTester(
            self, config_class=self.config_class, has_text_modality=False, common_properties=[]
        )

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_init_weights_can_init_buffers(self):
        # a fresh codebook is drawn at random, which the test does not expect of a buffer
        with patch.dict(initialization.TORCH_INIT_FUNCTIONS, {"normal_": lambda tensor, **_: tensor.fill_(1)}):
            super().test_init_weights_can_init_buffers()


class WavTokenizerTester(AudioTester):
    def get_config(self):
        return WavTokenizerConfig(
            upsampling_ratios=[4, 3],
            num_filters=4,
            hidden_size=16,
            codebook_size=24,
            codebook_dim=16,
            decoder_hidden_size=32,
            decoder_intermediate_size=24,
            decoder_num_layers=2,
        )

    def get_inputs(self):
        return {"input_values": floats_tensor([self.batch_size, 1, 120])}


@with_skips
class WavTokenizerModelTest(AudioModelTest, unittest.TestCase):
    all_model_classes = (WavTokenizerModel,)
    config_class, model_tester_class = WavTokenizerConfig, WavTokenizerTester


class CamPPlusTester(AudioTester):
    def get_config(self):
        return CamPPlusConfig(
            growth_rate=4, init_channels=8, head_channels=4, block_layers=[2, 2, 2], embedding_size=12
        )

    def get_inputs(self):
        return {"input_features": floats_tensor([self.batch_size, 20, 80])}


@with_skips
class CamPPlusModelTest(AudioModelTest, unittest.TestCase):
    all_model_classes = (CamPPlusModel,)
    config_class, model_tester_class = CamPPlusConfig, CamPPlusTester


class UsTokenizerTester(AudioTester):
    hidden_size, num_hidden_layers, num_attention_heads = 16, 2, 2
    seq_length = encoder_seq_length = key_length = 30
    sizes = {
        "encoder_config": WHISPER,
        "hidden_size": 16,
        "code_dim": 8,
        "codebook_size": 24,
        "min_seconds": 0.1,
        "max_seconds": 0.6,
    }

    def get_config(self):
        return UsTokenizerConfig(**self.sizes)

    def get_inputs(self):
        return {"input_features": floats_tensor([self.batch_size, 80, 60])}


@with_skips
class UsTokenizerModelTest(AudioModelTest, unittest.TestCase):
    all_model_classes = (UsTokenizerModel,)
    config_class, model_tester_class = UsTokenizerConfig, UsTokenizerTester
    has_attentions = True


class UsTokenizerForUnderstandingTester(UsTokenizerTester):
    def get_config(self):
        return UsTokenizerForUnderstandingConfig(
            us_tokenizer_config=self.sizes,
            text_config={
                "model_type": "llama",
                "vocab_size": 32,
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
            },
            freeze_encoder=False,
            understanding_loss_weight=0.0,
        )


@with_skips
class UsTokenizerForUnderstandingTest(AudioModelTest, unittest.TestCase):
    all_model_classes = (UsTokenizerForUnderstanding,)
    config_class, model_tester_class = UsTokenizerForUnderstandingConfig, UsTokenizerForUnderstandingTester
    has_attentions = True
    _is_composite = True


class KMeansTokenizerTester(AudioTester):
    is_training = False
    sizes = {
        "encoder_config": {
            "model_type": "hubert",
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "num_conv_pos_embeddings": 8,
            "num_conv_pos_embedding_groups": 2,
            "conv_dim": [8, 8],
            "conv_kernel": [8, 4],
            "conv_stride": [4, 4],
        },
        "codebook_size": 12,
    }

    def get_config(self):
        return KMeansTokenizerConfig(**self.sizes)

    def get_inputs(self):
        return {"input_values": floats_tensor([self.batch_size, 400])}


@with_skips
class KMeansTokenizerModelTest(AudioModelTest, unittest.TestCase):
    all_model_classes = (KMeansTokenizerModel,)
    config_class, model_tester_class = KMeansTokenizerConfig, KMeansTokenizerTester
    _is_composite = True


class DualTokenizerTester(AudioTester):
    is_training = False

    def get_config(self):
        return DualTokenizerConfig(
            semantic_config={"model_type": "us_tokenizer", **UsTokenizerTester.sizes},
            codec_config=WavTokenizerTester.get_config(self),
            speaker_config=CamPPlusTester.get_config(self),
        )

    def get_inputs(self):
        return {
            "input_values": floats_tensor([self.batch_size, 3200]),
            "codec_values": floats_tensor([self.batch_size, 480]),
        }


@with_skips
class DualTokenizerModelTest(AudioModelTest, unittest.TestCase):
    all_model_classes = (DualTokenizerModel,)
    config_class, model_tester_class = DualTokenizerConfig, DualTokenizerTester
    _is_composite = True
    additional_model_inputs = ["codec_values"]
