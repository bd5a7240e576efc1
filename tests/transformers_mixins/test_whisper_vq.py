"""The common mixins on the speech encoder of MOSS-Speech and on its feature extractor."""

import unittest

from dualspeech import MossSpeechFeatureExtractor, WhisperVqConfig, WhisperVqModel

from .skips import with_skips
from .test_audio_models import AudioModelTest, AudioTester
from .test_processing import FeatureExtractionTester
from .upstream import SequenceFeatureExtractionTestMixin, floats_tensor


class WhisperVqTester(AudioTester):
    hidden_size, num_hidden_layers, num_attention_heads = 16, 2, 2
    seq_length = encoder_seq_length = key_length = 20
    attention_mode = "causal"

    def get_config(self):
        return WhisperVqConfig(
            d_model=16,
            encoder_layers=2,
            encoder_attention_heads=2,
            encoder_ffn_dim=24,
            num_mel_bins=8,
            max_source_positions=40,
            quantize_vocab_size=24,
            attention_mode=self.attention_mode,
            quantize_causal_block_size=6,
        )

    def get_inputs(self):
        return {"input_features": floats_tensor([self.batch_size, 8, 40])}


@with_skips
class WhisperVqModelTest(AudioModelTest, unittest.TestCase):
    all_model_classes = (WhisperVqModel,)
    config_class, model_tester_class = WhisperVqConfig, WhisperVqTester
    has_attentions = True


class BlockWhisperVqTester(WhisperVqTester):
    attention_mode = "block"


@with_skips
class BlockWhisperVqModelTest(AudioModelTest, unittest.TestCase):
    all_model_classes = (WhisperVqModel,)
    config_class, model_tester_class = WhisperVqConfig, BlockWhisperVqTester
    has_attentions = True


@with_skips
class MossSpeechFeatureExtractionTest(SequenceFeatureExtractionTestMixin, unittest.TestCase):
    feature_extraction_class = MossSpeechFeatureExtractor

    def setUp(self):
        self.feat_extract_tester = FeatureExtractionTester(feature_size=128, padding_value=0.0, sampling_rate=16000)
