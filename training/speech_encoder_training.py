"""Training of speech encoders by speech recognition: Whisper's encoder, and Whisper-VQ with its codebook, under CTC."""

import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel, WhisperConfig, WhisperFeatureExtractor, WhisperModel
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.whisper.modeling_whisper import WhisperEncoder, WhisperEncoderLayer
from transformers.utils import ModelOutput, can_return_tuple

from ..configuration.configuration_us_tokenizer import whisper_encoder_config
from ..modeling.audio_features import log_mel_spectrogram
from ..modeling.audio_parts import check_finite, check_waveforms, evaluating, length_mask
from ..modeling.modeling_whisper_vq import WhisperVqModel
from ..modeling.vector_quantization import EmaVectorQuantizer
from ..processing.feature_extraction_moss_speech import MossSpeechFeatureExtractor
from .configuration_speech_encoder_training import BLANK_ID, SpeechEncoderForCtcConfig

IGNORED = -100


@dataclass
class SpeechEncoderForCtcOutput(ModelOutput):
    """
    loss (`[]`): CTC loss, plus the weighted commitment loss once the quantiser works; `None` without labels.
    logits (`[B, T, 1 + vocabulary]`): predictions, the blank first.
    num_predictions (`[B]`, long): valid predictions of each row, which come first.
    ctc_loss (`[]`, fp32): negative log-likelihood per character.
    commitment_loss, perplexity (`[]`, fp32): see [`WhisperVqOutput`]; `None` while nothing is quantised.
    codes (`[B, N]`, long): codes of the quantiser; `None` while nothing is quantised.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    num_predictions: torch.LongTensor | None = None
    ctc_loss: torch.FloatTensor | None = None
    commitment_loss: torch.FloatTensor | None = None
    perplexity: torch.FloatTensor | None = None
    codes: torch.LongTensor | None = None


class SpeechEncoderForCtc(PreTrainedModel):
    """
    A speech encoder with a head that reads characters under CTC (Graves et al., 2006).

    The encoder is Whisper's, whose features the USTokenizer quantises, or [`WhisperVqModel`], whose codebook is trained
    inside the recogniser (GLM-4-Voice, arXiv 2412.02612; CosyVoice, arXiv 2407.05407). Each gets the input that it gets
    in use: Whisper's encoder always sees all its positions, silence behind the end, as [`UsTokenizerModel`] runs it, so
    that `max_source_positions` should be no more than the recordings need; Whisper-VQ sees a recording as it is.

    The quantiser works after `quantize_start_batches` training batches, with a straight-through gradient. Its start and
    its averages are buffers: a resumed training goes on exactly. Only training mode changes them.

    Checkpoints hold encoder and head, and in the folder `encoder` the encoder alone: a `WhisperModel` (with an empty
    decoder), as [`UsTokenizerModel.from_whisper`] takes it, or a [`WhisperVqModel`].

    Where this differs from GLM-4-Voice's training: the encoder starts from scratch, the head is CTC over characters and
    no text decoder, and the quantiser starts late, from k-means.

    Example:

    ```python
    >>> config = SpeechEncoderForCtcConfig(encoder_config={"model_type": "whisper_vq", "d_model": 192, ...})
    >>> model = SpeechEncoderForCtc(config)
    >>> data = SpeechRecognitionData(rows, config)
    >>> Trainer(model, arguments, train_dataset=data, data_collator=data.collate).train()
    >>> model.save_pretrained("outputs/encoder")
    >>> encoder = AutoModel.from_pretrained("outputs/encoder/encoder")
    ```
    """

    config: SpeechEncoderForCtcConfig
    base_model_prefix = "speech_encoder_for_ctc"
    main_input_name = "input_features"
    input_modalities = ("audio",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["WhisperEncoderLayer"]

    def __init__(self, config: SpeechEncoderForCtcConfig):
        super().__init__(config)
        part = config.encoder_config
        encoder_class = WhisperVqModel if config.is_quantized else WhisperEncoder
        self.encoder = encoder_class._from_config(part)
        self.head_layers = nn.ModuleList([WhisperEncoderLayer(part) for _ in range(config.head_layers)])
        self.head_norm = nn.LayerNorm(part.d_model)
        self.head = nn.Linear(part.d_model, config.frames_per_output * (1 + len(config.vocabulary)))
        if config.is_quantized:
            self.register_buffer("num_batches", torch.zeros((), dtype=torch.long))
            self.register_buffer("num_recent", torch.zeros((), dtype=torch.long))
            shape = (config.quantize_buffer_size, part.d_model)
            self.register_buffer("recent_vectors", torch.zeros(shape, dtype=torch.float32))
        self.post_init()
        for module in self.modules():
            if isinstance(module, (nn.Conv1d, nn.Linear)):
                module.reset_parameters()  # PyTorch's own scale, as in Whisper's code; it does not depend on the width

    @torch.no_grad()
    def _init_weights(self, module):
        if module is self:
            for name in ("num_batches", "num_recent", "recent_vectors"):
                if hasattr(self, name):
                    init.zeros_(getattr(self, name))
        elif isinstance(module, nn.Linear):
            init.normal_(module.weight, std=self.config.encoder_config.init_std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)

    @property
    def is_quantizing(self) -> bool:
        """Whether the codebook has started: behind the encoder come its codes."""
        return self.config.is_quantized and int(self.num_batches) >= self.config.quantize_start_batches

    def resize_positions(self, max_source_positions: int) -> None:
        """Let Whisper's encoder take recordings of another length; its positions are sinusoids, which go on.

        Raises:
            ValueError: Whisper-VQ, whose positions are learned.
        """
        if self.config.is_quantized:
            raise ValueError("`max_source_positions` of Whisper-VQ cannot be changed: its positions are learned")
        part = self.config.encoder_config
        part.max_source_positions = max_source_positions
        encoder = WhisperEncoder._from_config(part)
        state = self.encoder.state_dict()
        state["embed_positions.weight"] = encoder.embed_positions.weight
        encoder.load_state_dict(state)
        self.encoder = encoder.to(self.device, self.dtype)

    def save_pretrained(self, save_directory: str | os.PathLike, is_main_process: bool = True, **kwargs) -> None:
        """As for all models; and the encoder alone, with its feature extractor, in the folder `encoder`."""
        folder, part = Path(save_directory) / "encoder", self.config.encoder_config
        encoder = self.encoder if self.config.is_quantized else self._whisper_model()
        encoder.save_pretrained(folder, is_main_process=is_main_process)
        seconds, rest = divmod(self.config.max_samples, self.config.sampling_rate)
        if is_main_process and rest == 0:  # feature extractors count whole seconds
            size = {"feature_size": part.num_mel_bins, "chunk_length": seconds}
            if self.config.is_quantized:
                extractor = MossSpeechFeatureExtractor(**size, samples_per_code=part.samples_per_code)
            else:
                extractor = WhisperFeatureExtractor(**size)
            extractor.save_pretrained(folder)
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)

    def _whisper_model(self) -> WhisperModel:
        """The encoder in a Whisper model that has a decoder without layers, of four tokens."""
        tokens = {"vocab_size": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        decoder = {"decoder_layers": 0, "decoder_attention_heads": 1, "decoder_ffn_dim": 1, "max_target_positions": 1}
        fields = whisper_encoder_config(self.config.encoder_config).to_diff_dict()
        model = WhisperModel(WhisperConfig(**{**fields, **decoder, **tokens, "decoder_start_token_id": 1}))
        model.encoder.load_state_dict(self.encoder.state_dict())
        return model.to(self.dtype)

    @can_return_tuple
    def forward(
        self, input_features: Tensor, num_samples: Tensor, labels: Tensor | None = None, **kwargs
    ) -> SpeechEncoderForCtcOutput:
        """
        Args:
            input_features (`torch.Tensor`): `[B, num_mel_bins, F]`, as [`encoder_features`] gives them, zeros behind
                shorter rows.
            num_samples (`torch.LongTensor`): `[B]`, samples of each recording at 16 kHz.
            labels (`torch.LongTensor`, *optional*): `[B, L]`, ids of characters, -100 behind them.

        Raises:
            ValueError: recordings of another length than the encoder takes, labels that do not fit into the predictions
                of a row, NaN or infinite features.
        """
        config = self.config
        num_samples = self._check_num_samples(num_samples, input_features)
        num_outputs = config.num_outputs(num_samples)
        encoded, parts = None, {}
        if config.is_quantized:
            encoded, parts = self._encode_quantized(input_features, num_samples, **kwargs)
        else:
            check_finite("input_features", input_features)
            encoded = self.encoder(input_features.to(self.encoder.conv1.weight.dtype), **kwargs).last_hidden_state
            encoded = encoded[:, : int(num_outputs.max())]
        logits = self._head(encoded, length_mask(num_outputs, encoded.shape[1]))
        num_predictions = config.frames_per_output * num_outputs
        loss = ctc_loss = None
        if labels is not None:
            ctc_loss = _ctc_loss(logits, num_predictions, labels)
            loss = ctc_loss + parts.pop("loss", 0.0)
        parts.pop("loss", None)
        return SpeechEncoderForCtcOutput(
            loss=loss, logits=logits, num_predictions=num_predictions, ctc_loss=ctc_loss, **parts
        )

    def _check_num_samples(self, num_samples: Tensor, input_features: Tensor) -> Tensor:
        num_samples = torch.as_tensor(num_samples, device=input_features.device)
        low, high = self.config.min_samples, self.config.max_samples
        if num_samples.shape != input_features.shape[:1] or num_samples.is_floating_point():
            raise ValueError(
                f"num_samples: expected {len(input_features)} integers, got {num_samples.dtype} "
                f"{tuple(num_samples.shape)}"
            )
        if int(num_samples.min()) < low or int(num_samples.max()) > high:
            raise ValueError(f"num_samples: accepted are {low} to {high}, got {num_samples.tolist()}")
        return num_samples

    def _encode_quantized(self, input_features: Tensor, num_samples: Tensor, **kwargs) -> tuple[Tensor, dict]:
        """Quantised vectors, or plain ones before the start, with the parts of the loss."""
        encoder, config = self.encoder, self.config
        frames = -(-num_samples // encoder.config.mel_hop_length)
        mask = length_mask(frames, input_features.shape[-1])
        follows = self.training and self.is_quantizing
        restart = 0.0
        if follows and (self.num_batches - config.quantize_start_batches + 1) % self._restart_interval == 0:
            restart = config.quantize_restart_share * float(encoder.ema_count.mean())
        quantizing = self.is_quantizing
        output = encoder(input_features, mask, update_codebook=follows, restart_codes=restart, **kwargs)
        if self.training:
            self.num_batches += 1
            if not quantizing:
                self._remember(output.vectors[output.codes_mask])
                if self.is_quantizing:
                    self._start_codebook(int(output.codes_mask.sum()))
        if not quantizing:
            return output.vectors + encoder.embed_positions2.weight[: output.vectors.shape[1]], {}
        return output.last_hidden_state, {
            name: output[name] for name in ("loss", "commitment_loss", "perplexity", "codes")
        }

    @property
    def _restart_interval(self) -> int:
        return self.encoder.config.quantize_restart_interval

    @torch.no_grad()
    def _remember(self, vectors: Tensor) -> None:
        size = len(self.recent_vectors)
        vectors = vectors.detach().float()[-size:]
        places = (self.num_recent + torch.arange(len(vectors), device=vectors.device)) % size
        self.recent_vectors[places] = vectors
        self.num_recent += len(vectors)

    @torch.no_grad()
    def _start_codebook(self, num_vectors: int) -> None:
        """Codebook by k-means over the last vectors; the averages count as if they were of batches of `num_vectors`."""
        encoder = self.encoder
        known = min(int(self.num_recent), len(self.recent_vectors))
        quantizer = EmaVectorQuantizer(
            encoder.codebook_size,
            encoder.config.d_model,
            decay=encoder.config.quantize_ema_decay,
            kmeans_init=True,
            kmeans_iterations=self.config.kmeans_iterations,
        ).to(self.recent_vectors.device)
        quantizer(self.recent_vectors[None, :known], update_codebook=True)
        share = num_vectors / known
        encoder.codebook.weight.copy_(quantizer.embed)
        encoder.ema_count.copy_(share * quantizer.cluster_size)
        encoder.ema_weight.copy_(share * quantizer.embed_avg)

    def _head(self, encoded: Tensor, mask: Tensor) -> Tensor:
        """Logits `[B, T * frames_per_output, 1 + vocabulary]`."""
        attention_mask = None
        if len(self.head_layers):
            attention_mask = create_bidirectional_mask(self.config.encoder_config, encoded, mask)
        for layer in self.head_layers:
            encoded = layer(encoded, attention_mask)
        logits = self.head(self.head_norm(encoded))
        return logits.unflatten(-1, (self.config.frames_per_output, -1)).flatten(1, 2)

    def decode(self, logits: Tensor, num_predictions: Tensor | None = None) -> list[str]:
        """
        Transcripts by the most likely id of each prediction: repetitions are joined, blanks left out.

        Args:
            logits (`torch.Tensor`): `[B, T, 1 + vocabulary]`, or their ids `[B, T]`, integers; negative ones are blanks.
            num_predictions (`torch.LongTensor`, *optional*): `[B]`, valid ones of each row; all when omitted.
        """
        ids = logits.argmax(dim=-1) if logits.is_floating_point() else logits
        if num_predictions is not None:
            ids = ids.masked_fill(~length_mask(num_predictions.to(ids.device), ids.shape[1]), BLANK_ID)
        return [ctc_text(row, self.config.vocabulary) for row in ids.tolist()]

    def transcribe(self, waveforms: Tensor, num_samples: Tensor | None = None) -> list[str]:
        """Transcripts of `waveforms [B, S]` (float, 16 kHz, in [-1, 1]) in evaluation mode; `num_samples [B]` of each."""
        waveforms, num_samples = check_waveforms("waveforms", waveforms, num_samples)
        features = [
            encoder_features(row[:length], self.config)
            for row, length in zip(waveforms, num_samples.tolist(), strict=True)
        ]
        with evaluating(self):
            output = self(pad_features(features).to(self.device), num_samples.to(self.device))
        return self.decode(output.logits, output.num_predictions)


def ctc_text(ids: list[int], vocabulary: list[str] | tuple[str, ...]) -> str:
    """The text that a path of CTC stands for; negative ids are blanks."""
    kept = [new for old, new in zip([BLANK_ID, *ids], ids, strict=False) if new != old and new > BLANK_ID]
    return " ".join("".join(vocabulary[index - BLANK_ID - 1] for index in kept).split())


def encoder_features(waveform: Tensor, config: SpeechEncoderForCtcConfig) -> Tensor:
    """
    Log-mel features of one recording, as the encoder gets them in use.

    Args:
        waveform (`torch.Tensor`): `[S]` float, 16 kHz.

    Returns:
        `torch.Tensor`: `[num_mel_bins, F]` with 100 frames per second: for Whisper all that it has positions for, zeros
        behind the end of the waveform; for Whisper-VQ a whole number of codes.
    """
    part = config.encoder_config
    if config.is_quantized:
        num_frames = part.frames_per_code * config.num_outputs(len(waveform))
    else:
        num_frames = 2 * part.max_source_positions
    return log_mel_spectrogram(waveform, part.num_mel_bins, num_frames)


def pad_features(features: list[Tensor]) -> Tensor:
    """Features `[bins, F_i]` as a batch `[B, bins, F]`, zeros behind shorter ones."""
    longest = max(row.shape[-1] for row in features)
    return torch.stack([F.pad(row, (0, longest - row.shape[-1])) for row in features])


def min_predictions(labels: list[int]) -> int:
    """Fewest predictions of which CTC can make these ids: a blank must stand between equal neighbours."""
    return len(labels) + sum(left == right for left, right in pairwise(labels))


def _ctc_loss(logits: Tensor, num_predictions: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood per character."""
    mask = labels != IGNORED
    lengths = mask.sum(dim=1)
    equal = (labels[:, 1:] == labels[:, :-1]) & mask[:, 1:]
    short = (lengths + equal.sum(dim=1) > num_predictions) | (lengths == 0)
    if bool(short.any()):
        rows = short.nonzero()[:, 0].tolist()
        raise ValueError(f"labels: rows {rows} have no characters, or more than their predictions can spell")
    log_probabilities = logits.float().log_softmax(dim=-1).transpose(0, 1)
    loss = F.ctc_loss(log_probabilities, labels[mask], num_predictions, lengths, blank=BLANK_ID, reduction="sum")
    return loss / lengths.sum()


__all__ = [
    "SpeechEncoderForCtc",
    "SpeechEncoderForCtcOutput",
    "ctc_text",
    "encoder_features",
    "min_predictions",
    "pad_features",
]
