"""Configuration of DualSpeechLM."""

import copy

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .configuration_acoustic_gpt import AcousticGPTConfig

# Numbers of the eight tasks in the data of the released system.
TASK_IDS = {"asr": 1, "tts": 2, "vc": 3, "t2st": 4, "sc": 5, "sqa": 6, "s2tt": 7, "ser": 8}
SPEECH_TASKS = ("tts", "vc", "t2st", "sc")


@strict
class DualSpeechConfig(PreTrainedConfig):
    """
    Configuration of [`DualSpeechForConditionalGeneration`]: a text language model whose vocabulary also holds
    USTokens, and AcousticGPT behind it (arXiv 2508.08961).

    Args:
        text_config (`dict` or `PreTrainedConfig`, *optional*):
            Any configuration that `AutoModelForCausalLM` builds. Its `vocab_size` includes the speech ids below.
            Without one, `Phi3Config()` (the paper's main backbone, 3.8 billion parameters) enlarged to hold them.
        acoustic_config (`dict` or `AcousticGPTConfig`, *optional*):
            AcousticGPT. `None` makes a model without an acoustic stage: the paper's Baseline-Acoustic and
            Baseline-Semantic, in which the language model's own speech codes are the output.
        audio_start_token_id (`int`, *optional*, defaults to 32011):
            Id of `<audio>` in the text vocabulary.
        audio_end_token_id (`int`, *optional*, defaults to 32012):
            Id of `</audio>`.
        semantic_token_offset (`int`, *optional*, defaults to 32013):
            Id of `<a_0>`; code `i` has id `semantic_token_offset + i`. The three defaults are those of the released
            Phi-3.5 tokenizer.
        semantic_codebook_size (`int`, *optional*, defaults to 1024):
            Number of speech codes that the language model reads and writes.
        semantic_frame_rate (`float`, *optional*, defaults to 25.0):
            Speech codes per second.
        acoustic_frame_rate (`float`, *optional*, defaults to 40.0):
            Positions of AcousticGPT per second of speech (the frame rate of a codec with one codebook). Together
            with `semantic_frame_rate` it scales the cap of the acoustic stage; nothing is trained on it.
        speaker_embedding_size (`int`, *optional*, defaults to 512):
            Width of the speaker vector. `None`: no speaker token in the condition.
        projector_hidden_size (`int`, *optional*):
            Width inside the projector from language-model states to the condition; the text model's width if `None`.
        coc_probabilities (three `float`, *optional*, defaults to (1/3, 1/3, 1/3)):
            Chain-of-Condition: probability in training that AcousticGPT sees only the prompt's states `S_p`, only
            the answer's states `U_tar`, or both. Sums to 1. (0, 0, 1) switches it off. The paper says "with equal
            probability"; the released code draws 0.33, 0.33, 0.34.
        coc_tasks (`list[str]`, *optional*, defaults to `("tts", "vc")`):
            Tasks to which Chain-of-Condition applies; the others always see both (paper, table 6).
        coc_granularity (`str`, *optional*, defaults to `"sample"`):
            `"sample"` draws once per row, `"batch"` once per forward pass as in the released code.
        text_loss_weight (`float`, *optional*, defaults to 1.0):
            Weight of the cross-entropy of text answers.
        semantic_loss_weight (`float`, *optional*, defaults to 1.0):
            Lambda of equation 6: weight of the cross-entropy of speech-code answers (equation 4).
        acoustic_loss_weight (`float`, *optional*, defaults to 1.0):
            Xi of equation 6: weight of AcousticGPT's cross-entropy (equation 5, as a token mean).
        acoustic_on_understanding (`bool`, *optional*, defaults to `False`):
            Train AcousticGPT on "no speech, end" in rows with a text answer, as the released code does. The paper
            has no such term.
        condition_on_eos (`bool`, *optional*, defaults to `True`):
            Whether the condition of the acoustic stage includes the state of the end-of-sequence id in generation,
            as it does in training. The released inference stops at `</audio>` (`False`).
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of new linear layers.
        tie_word_embeddings (`bool`):
            Always that of `text_config`, which decides; tools like PEFT look for it here.

    [`DualSpeechConfig.official_parity`] sets everything in which our defaults differ from the released code.
    """

    model_type = "dualspeech"
    keys_to_ignore_at_inference = [
        "cache",
        "past_key_values",
        "hidden_states",
        "attentions",
        "text_loss",
        "semantic_loss",
        "acoustic_loss",
        "acoustic_logits",
    ]
    sub_configs_defaults = {
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="phi3"),
        "acoustic_config": SubConfigSpec(config_class=AcousticGPTConfig, optional=True),
    }
    # The base plan names layers of a plain decoder; the parts bring their own.
    base_model_fsdp_plan = {}

    text_config: dict | PreTrainedConfig | None = None
    acoustic_config: dict | PreTrainedConfig | None = None
    audio_start_token_id: int = 32011
    audio_end_token_id: int = 32012
    semantic_token_offset: int = 32013
    semantic_codebook_size: int = 1024
    semantic_frame_rate: float | int = 25.0
    acoustic_frame_rate: float | int = 40.0
    speaker_embedding_size: int | None = 512
    projector_hidden_size: int | None = None
    coc_probabilities: list[float | int] | tuple[float | int, ...] = (1 / 3, 1 / 3, 1 / 3)
    coc_tasks: list[str] | tuple[str, ...] = ("tts", "vc")
    coc_granularity: str = "sample"
    text_loss_weight: float | int = 1.0
    semantic_loss_weight: float | int = 1.0
    acoustic_loss_weight: float | int = 1.0
    acoustic_on_understanding: bool = False
    condition_on_eos: bool = True
    initializer_range: float | int = 0.02
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        if self.text_config is None:
            self.text_config = {"model_type": "phi3", "vocab_size": self.num_required_ids}
        for name in ("text_config", "acoustic_config"):
            if isinstance(getattr(self, name), PreTrainedConfig):
                # Composing resets the attention implementation of a part's config, which may be a running model's.
                setattr(self, name, copy.deepcopy(getattr(self, name)))
        super().__post_init__(**kwargs)
        if self.projector_hidden_size is None:
            self.projector_hidden_size = self.text_config.hidden_size
        self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))

    @classmethod
    def official_parity(cls, **kwargs) -> "DualSpeechConfig":
        """The choices of the released code where ours differ: Chain-of-Condition drawn per batch with 0.33, 0.33,
        0.34, the extra acoustic loss on understanding rows, and no end-of-sequence state in generation. The matching
        generation settings are `generation_dualspeech.official_generation_config`. `kwargs` override any field."""
        return cls(
            **{
                "coc_probabilities": (0.33, 0.33, 0.34),
                "coc_granularity": "batch",
                "acoustic_on_understanding": True,
                "condition_on_eos": False,
                **kwargs,
            }
        )

    @property
    def num_required_ids(self) -> int:
        """The smallest text vocabulary that holds every speech id."""
        return 1 + max(
            self.audio_start_token_id,
            self.audio_end_token_id,
            self.semantic_token_offset + self.semantic_codebook_size - 1,
        )

    @property
    def num_condition_tokens(self) -> int:
        """Positions of the condition in front of the language model's states: the speaker token or none."""
        return 0 if self.speaker_embedding_size is None else 1

    def validate_speech_ids(self):
        """The speech ids are distinct and lie within the text vocabulary."""
        codes = range(self.semantic_token_offset, self.semantic_token_offset + self.semantic_codebook_size)
        if self.semantic_codebook_size < 1:
            raise ValueError(f"`semantic_codebook_size` is {self.semantic_codebook_size}; at least 1 is needed")
        if self.audio_start_token_id == self.audio_end_token_id or {
            self.audio_start_token_id,
            self.audio_end_token_id,
        } & set(codes):
            raise ValueError(
                f"`audio_start_token_id` ({self.audio_start_token_id}), `audio_end_token_id` "
                f"({self.audio_end_token_id}) and the codes ({codes.start} to {codes.stop - 1}) must not overlap"
            )
        vocab_size = getattr(self.text_config, "vocab_size", None)
        if vocab_size is not None and vocab_size < self.num_required_ids:
            raise ValueError(
                f"`text_config.vocab_size` is {vocab_size}, but the speech ids need {self.num_required_ids}: extend "
                "the tokenizer and resize the embeddings (`DualSpeechForConditionalGeneration.from_text_model`)"
            )

    def validate_chain_of_condition(self):
        """Three probabilities that sum to one, known tasks, a known granularity."""
        if len(self.coc_probabilities) != 3 or min(self.coc_probabilities) < 0:
            raise ValueError(
                f"`coc_probabilities` is {self.coc_probabilities}; three non-negative numbers are accepted: prompt, "
                "answer, both"
            )
        if abs(sum(self.coc_probabilities) - 1) > 1e-6:
            raise ValueError(f"`coc_probabilities` sums to {sum(self.coc_probabilities)}; it must be 1")
        unknown = sorted(set(self.coc_tasks) - set(SPEECH_TASKS))
        if unknown:
            raise ValueError(f"`coc_tasks` has {unknown}; the tasks with speech output are {list(SPEECH_TASKS)}")
        if self.coc_granularity not in ("sample", "batch"):
            raise ValueError(f"`coc_granularity` is {self.coc_granularity!r}; accepted are 'sample' and 'batch'")

    def validate_sizes(self):
        """Positive rates and widths."""
        for name in ("semantic_frame_rate", "acoustic_frame_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"`{name}` is {getattr(self, name)}; a positive number per second is needed")
        if self.speaker_embedding_size is not None and self.speaker_embedding_size < 1:
            raise ValueError(
                f"`speaker_embedding_size` is {self.speaker_embedding_size}; a positive width or None is accepted"
            )


__all__ = ["SPEECH_TASKS", "TASK_IDS", "DualSpeechConfig"]
