"""The common mixins on the vocoder."""

import unittest

from dualspeech import HiFTConfig, HiFTModel

from .skips import with_skips
from .test_audio_models import AudioModelTest, AudioTester
from .upstream import floats_tensor


class HiFTTester(AudioTester):
    def get_config(self):
        return HiFTConfig(
            num_mel_bins=6,
            upsample_initial_channel=8,
            upsample_rates=[4, 3],
            upsample_kernel_sizes=[8, 7],
            resblock_kernel_sizes=[3, 5],
            resblock_dilation_sizes=[1, 2],
            source_resblock_kernel_sizes=[3, 5],
            f0_hidden_size=8,
            num_f0_layers=2,
            num_harmonics=3,
        )

    def get_inputs(self):
        return {"mel": floats_tensor([self.batch_size, 6, 9])}


@with_skips
class HiFTModelTest(AudioModelTest, unittest.TestCase):
    all_model_classes = (HiFTModel,)
    config_class, model_tester_class = HiFTConfig, HiFTTester


del AudioModelTest
