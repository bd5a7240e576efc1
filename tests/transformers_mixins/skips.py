"""The single tests of transformers' mixins that are not run on our classes, each with its reason.

Test class -> test -> reason; `*` at the end of a name stands for a parameterised family. Whatever else is skipped, the
mixins skip themselves. `TextBackbone` tests and the generation mixin are missing because the source distribution lacks
them; our own generation tests are in `tests/modeling`.
"""

import unittest

_NO_IDS = {"test_model_get_set_embeddings": "the input is sound: there is no embedding table"}
_NO_STATES = {
    "test_hidden_states_output": "codes, waveforms or vectors are returned, no hidden states",
    "test_retain_grad_hidden_states_attentions": "codes, waveforms or vectors are returned, no hidden states",
}
_BOOL_MASKS = {"test_model_outputs_equivalence": "the test subtracts outputs, and the masks among them are bool"}
_ENCODE_ONLY = {"test_capture_outputs_decorator": "forward is encode, which takes no output flags"}
_TEXT_MODEL = "the configuration also describes the text model, which is attached and no part of this class"

# Tests that not every accepted release of transformers has.
_NEWER = {"test_bc_cache_name_forward"}  # 5.24
_BOTH_NAMES = {
    "test_bc_cache_name_forward": "asks for a warning; `past_key_values`, the name up to 5.23, is as good here (see "
    "tests/modeling/test_cache_naming.py)"
}

_NO_TASK = "calls the processor without a task, which every row of ours has"

_WHISPER_VQ = (
    _NO_IDS
    | _BOOL_MASKS
    | {
        "test_init_weights_can_init_buffers": "the moving averages start as the codebook, which is drawn at random",
        **{
            f"test_eager_matches_sdpa_inference_{case}_pad_left*": "padding in front is refused"
            for case in ("00_fp16", "01_fp16", "08_fp32", "09_fp32", "16_bf16", "17_bf16")
        },
    }
)
_ONE_MODALITY = "gives text and audio for one turn, which is wholly one of them here"

SKIPS = {
    "AcousticGPTModelTest": _BOTH_NAMES
    | {
        "test_causal_lm_loss_honors_shift_labels": "labels are the targets of the logits at their place: never shifted",
        "test_model_main_input_name": "the condition comes first in the signature, the ids are what Trainer counts",
    },
    "DualSpeechModelTest": _BOTH_NAMES
    | {
        "test_correct_missing_keys": "reads the configuration of the language model as that of the whole",
        "test_model_rope_scaling_from_config*": "the outputs have no `last_hidden_state`",
        "test_tied_weights_keys": "ties by the text configuration; the acoustic head has a switch of its own",
    },
    "DualSpeechProcessorTest": dict.fromkeys(
        (
            "test_flat_kwarg_applied_when_modality_dict_lacks_it",
            "test_kwargs_overrides_default_subprocessor_kwargs_2_audio",
            "test_model_input_names",
            "test_processor_with_multiple_inputs",
            "test_structured_kwargs_nested_from_dict_2_audio",
            "test_subprocessor_defaults_preserved_by_kwargs_2_audio",
            "test_unstructured_kwargs_2_audio",
            "test_unstructured_kwargs_batched_2_audio",
        ),
        _NO_TASK,
    )
    | {
        "test_init_arguments_not_in_class_attributes": "`audio_tokenizer` is a property that loads it when it is asked for",
        "test_subprocessor_defaults_3_audio": "gives the feature extractor samples without their rate, an error of ours",
        "test_tokenizer_decode_defaults": "makes the processor with default sizes, which the tiny tokenizer does not fit",
    },
    "SplitLayerQwen3ModelTest": {
        "test_model_forward_default_config_values": "a small vocabulary without ids of its own: the released ones lie outside",
        "test_resize_embeddings_untied": "compares the text table with the number of flat ids",
        "test_resize_tokens_embeddings": "compares the text table with the number of flat ids",
    },
    "FlowDecoderModelTest": _NO_STATES,
    "MossSpeechProcessorTest": dict.fromkeys(
        (
            "test_flat_kwarg_applied_when_modality_dict_lacks_it",
            "test_kwargs_overrides_default_subprocessor_kwargs_2_audio",
            "test_model_input_names",
            "test_processor_with_multiple_inputs",
            "test_structured_kwargs_nested_from_dict_2_audio",
            "test_subprocessor_defaults_preserved_by_kwargs_2_audio",
            "test_unstructured_kwargs_2_audio",
            "test_unstructured_kwargs_batched_2_audio",
        ),
        _ONE_MODALITY,
    )
    | {
        "test_init_arguments_not_in_class_attributes": "`audio_tokenizer` is a property that loads it when it is asked for",
        "test_subprocessor_defaults_0_text": "a text is a turn of a chat, in rows, and not the ids of the tokenizer alone",
        "test_subprocessor_defaults_3_audio": "gives the feature extractor samples without their rate, an error of ours",
    },
    "WavTokenizerModelTest": _NO_IDS | _NO_STATES,
    "CamPPlusModelTest": _NO_IDS | _NO_STATES,
    "HiFTModelTest": _NO_IDS | _NO_STATES,
    "UsTokenizerModelTest": _NO_IDS | _BOOL_MASKS,
    "UsTokenizerForUnderstandingTest": _NO_IDS
    | _BOOL_MASKS
    | {
        "test_model_rope_scaling_from_config*": _TEXT_MODEL,
        "test_tp_plan_matches_params": _TEXT_MODEL,
        "test_correct_missing_keys": "reads the configuration of the tokenizer inside as that of the whole",
    },
    "WhisperVqModelTest": _WHISPER_VQ,
    "BlockWhisperVqModelTest": _WHISPER_VQ,
    "MossSpeechCodecModelTest": _NO_IDS
    | _NO_STATES
    | _BOOL_MASKS
    | {"test_init_weights_can_init_buffers": "the moving averages start as the codebook, which is drawn at random"},
    "KMeansTokenizerModelTest": _NO_IDS
    | _NO_STATES
    | _BOOL_MASKS
    | _ENCODE_ONLY
    | {"test_init_weights_can_init_buffers": "the centroids have no values before `_init_weights` draws them"},
    "DualTokenizerModelTest": _NO_IDS
    | _NO_STATES
    | _BOOL_MASKS
    | _ENCODE_ONLY
    | {"test_can_capture_specific_layers_hidden_states": "forward is encode, which takes no output flags"},
}


def with_skips(cls: type) -> type:
    """Class decorator that applies `SKIPS`."""
    for pattern, reason in SKIPS.get(cls.__name__, {}).items():
        names = [
            name for name in dir(cls) if name == pattern or (pattern[-1] == "*" and name.startswith(pattern[:-1]))
        ]
        assert names or pattern in _NEWER, f"{cls.__name__} has no test {pattern}"
        for name in names:
            setattr(cls, name, unittest.skip(reason)(lambda self: None))
    return cls


__all__ = ["SKIPS", "with_skips"]
