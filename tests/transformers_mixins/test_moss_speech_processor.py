"""The common processor mixin on the processor of MOSS-Speech."""

import unittest

from dualspeech import MossSpeechFeatureExtractor, MossSpeechProcessor
from tests.processing.moss_processor_cases import SIZES
from tests.tiny import tiny_tokenizer

from .skips import with_skips
from .upstream import ProcessorTesterMixin


@with_skips
class MossSpeechProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = MossSpeechProcessor

    @classmethod
    def _setup_feature_extractor(cls):
        return MossSpeechFeatureExtractor(feature_size=80)

    @classmethod
    def _setup_tokenizer(cls):
        return tiny_tokenizer("chat")

    @staticmethod
    def prepare_processor_dict():
        return dict(SIZES)
