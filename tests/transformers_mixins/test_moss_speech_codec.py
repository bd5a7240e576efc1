"""The common mixins on the MOSS-Speech codec."""

import unittest

from dualspeech import MossSpeechCodecConfig, MossSpeechCodecModel
from tests.modeling.moss_codec_cases import tiny_moss_config

from .skips import with_skips
from .test_audio_models import AudioModelTest, AudioTester
from .upstream import floats_tensor


class MossSpeechCodecTester(AudioTester):
    is_training = False
    hidden_size, num_hidden_layers, num_attention_heads = 16, 2, 2

    def get_config(self):
        return tiny_moss_config()

    def get_inputs(self):
        return {"input_features": floats_tensor([self.batch_size, 80, 48])}


@with_skips
class MossSpeechCodecModelTest(AudioModelTest, unittest.TestCase):
    all_model_classes = (MossSpeechCodecModel,)
    config_class, model_tester_class = MossSpeechCodecConfig, MossSpeechCodecTester
    _is_composite = True


del AudioModelTest  # its own tests would run here too
