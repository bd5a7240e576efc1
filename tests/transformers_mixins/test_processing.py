"""The common mixins on the processor and the feature extractors."""

import unittest

import numpy as np

from dualspeech import DualSpeechFeatureExtractor, DualSpeechProcessor, KaldiFbankFeatureExtractor
from tests.tiny import tiny_tokenizer

from .skips import with_skips
from .upstream import ProcessorTesterMixin, SequenceFeatureExtractionTestMixin


@with_skips
class DualSpeechProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = DualSpeechProcessor

    @classmethod
    def _setup_feature_extractor(cls):
        return DualSpeechFeatureExtractor()

    @classmethod
    def _setup_tokenizer(cls):
        return tiny_tokenizer(codebook_size=24)

    @staticmethod
    def prepare_processor_dict():
        return {"semantic_codebook_size": 24, "acoustic_codebook_size": 64, "speaker_embedding_size": 12}


class FeatureExtractionTester:
    batch_size, min_seq_length, max_seq_length, seq_length_diff = 3, 400, 1600, 600

    def __init__(self, **sizes):
        self.sizes = sizes
        self.__dict__.update(sizes)

    def prepare_feat_extract_dict(self):
        return self.sizes

    def prepare_inputs_for_common(self, equal_length=False, numpify=False):
        lengths = [400 + 600 * row * (not equal_length) for row in range(self.batch_size)]
        shape = [] if self.feature_size == 1 else [self.feature_size]
        inputs = [np.random.rand(length, *shape) for length in lengths]
        return inputs if numpify else [values.tolist() for values in inputs]


@with_skips
class KaldiFbankFeatureExtractionTest(SequenceFeatureExtractionTestMixin, unittest.TestCase):
    feature_extraction_class = KaldiFbankFeatureExtractor

    def setUp(self):
        self.feat_extract_tester = FeatureExtractionTester(feature_size=80, padding_value=0.0, sampling_rate=16000)


@with_skips
class DualSpeechFeatureExtractionTest(SequenceFeatureExtractionTestMixin, unittest.TestCase):
    feature_extraction_class = DualSpeechFeatureExtractor

    def setUp(self):
        self.feat_extract_tester = FeatureExtractionTester(feature_size=1, padding_value=0.0, sampling_rate=16000)
