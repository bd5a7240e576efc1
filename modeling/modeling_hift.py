"""HiFT: a vocoder with a neural source filter and an inverse Fourier transform (HiFTNet, arXiv 2309.09493)."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized, remove_parametrizations
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple
from transformers.utils.generic import maybe_autocast

from ..configuration.configuration_hift import HiFTConfig
from .audio_parts import check_finite, rows_by_length
from .hift_convolutions import SignalPieces, WholeSignal
from .hift_source import HiFTSource, precise_dtype, sample_noise
from .hift_streaming import HiFTOverlapStream, HiFTProgress, HiFTStream
from .vector_quantization import keeping_float32

LAST_LEAKY_RELU_SLOPE = 0.01  # in front of the last convolution, whatever the configuration says
SNAKE_EPS = 1e-9
# without gradients, longer signals are computed in pieces: memory stays bounded, and caches hold the activations
PIECE_FRAMES = 200

Signal = WholeSignal | SignalPieces


@dataclass
class HiFTOutput(ModelOutput):
    """
    waveform (`[B, F * hop_length]`): samples in [-audio_limit, audio_limit], zero behind the end of a row.
    f0 (`[B, F]`): predicted fundamental frequency in Hz, zero behind the end of a row; it has a gradient.
    source (`[B, 1, F * hop_length]`): excitation of the filter, zero behind the end of a row.
    """

    waveform: torch.FloatTensor | None = None
    f0: torch.FloatTensor | None = None
    source: torch.FloatTensor | None = None


def convolve(conv: nn.Conv1d | nn.ConvTranspose1d, x: Tensor, signal: Signal) -> Tensor:
    """The layer `conv` on `x [B, C, T]` or on the next piece of it, in the precision of `x`."""
    weight, bias = conv.weight.to(x.dtype), conv.bias.to(x.dtype)
    if isinstance(conv, nn.ConvTranspose1d):
        return signal.conv_transpose1d(conv, x, weight, bias, conv.stride[0], conv.padding[0])
    return signal.conv1d(conv, x, weight, bias, conv.stride[0], conv.padding[0], conv.dilation[0])


class HiFTSnake(nn.Module):
    """x + sin(a x)^2 / a with one a per channel."""

    def __init__(self, channels: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        alpha = self.alpha[:, None]
        return x + torch.sin(alpha * x).square() / (alpha + SNAKE_EPS)


class HiFTResidualBlock(nn.Module):
    """For each dilation: Snake, dilated convolution, Snake, convolution, and the input added. `[B, C, T]`."""

    def __init__(self, config: HiFTConfig, channels: int, kernel: int):
        super().__init__()
        dilations, half = config.resblock_dilation_sizes, kernel // 2
        self.convs1 = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, dilation=dilation, padding=half * dilation) for dilation in dilations
        )
        self.convs2 = nn.ModuleList(nn.Conv1d(channels, channels, kernel, padding=half) for _ in dilations)
        self.activations1 = nn.ModuleList(HiFTSnake(channels) for _ in dilations)
        self.activations2 = nn.ModuleList(HiFTSnake(channels) for _ in dilations)

    def forward(self, x: Tensor, signal: Signal) -> Tensor:
        parts = zip(self.activations1, self.convs1, self.activations2, self.convs2, strict=True)
        for activation1, conv1, activation2, conv2 in parts:
            update = convolve(conv1, activation1(x), signal)
            update = convolve(conv2, activation2(update), signal)
            x, update = signal.align((self, conv1), x, update)
            x = x + update
        return x


class HiFTF0Predictor(nn.Module):
    """
    Mel frames `[B, num_mel_bins, F]` to f0 `[B, F]` in Hz.

    Computed in float64 where the device has it (as in CosyVoice 3): the excitation sums f0 up over the utterance, so
    that rounding errors, which depend on how the utterance was cut, add up. In float32 the samples of a stream and of
    one pass differ by 0.02 within a minute, in float64 by 6e-6. The predictor is 1 % of the vocoder.
    """

    def __init__(self, config: HiFTConfig):
        super().__init__()
        size, kernel = config.f0_hidden_size, config.f0_kernel_size
        layers = []
        for layer in range(config.num_f0_layers):
            layers += [nn.Conv1d(size if layer else config.num_mel_bins, size, kernel, padding=kernel // 2), nn.ELU()]
        self.condnet = nn.Sequential(*layers)
        self.classifier = nn.Linear(size, 1)

    def forward(self, mel: Tensor, signal: Signal) -> Tensor:
        x = mel.to(precise_dtype(mel.device))
        for layer in self.condnet:
            x = convolve(layer, x, signal) if isinstance(layer, nn.Conv1d) else layer(x)
        weight, bias = self.classifier.weight.to(x.dtype), self.classifier.bias.to(x.dtype)
        return F.linear(x.transpose(1, 2), weight, bias).squeeze(-1).abs()


class HiFTModel(PreTrainedModel):
    """
    The vocoder of MOSS-Speech and CosyVoice 2: log-mel spectrogram to waveform.

    f0 is predicted from the mel frames and drives an excitation of sines and noise; a convolutional network up-samples
    the mel frames, takes the excitation in at every stage, and ends in the spectrum of the waveform.

    **Noise.** The release draws the noise of the excitation from the global random generator, so that its output
    depends on everything that was drawn before. Here noise is a function of a seed and the absolute sample: the same
    call gives the same waveform, in one pass or in pieces, and no generator is touched. Pass a `generator`
    (`torch.default_generator` for the global one) for the draws of the release in their order. In training mode
    without a seed, noise comes from the global generator.

    **Precision.** Everything is computed in float32, f0 in float64. The weights stay in float32 when the model is loaded
    in, or cast to, a half type (also as part of another model), and autocast is switched off inside: half types leave
    audible noise. On a GPU switch TF32 convolutions off too (`torch.backends.cudnn.allow_tf32 = False`).

    **Rows.** The convolutions look to both sides and see zeros behind the true end only, so rows of different lengths
    are computed in groups of equal length, each without padding: a row of a batch gives what it gives alone.

    Example:

    ```python
    >>> import torch
    >>> from dualspeech import HiFTConfig, HiFTModel

    >>> model = HiFTModel(HiFTConfig(upsample_initial_channel=32, f0_hidden_size=32)).eval()
    >>> model(torch.randn(1, 80, 50)).waveform.shape  # one second
    torch.Size([1, 24000])
    ```
    """

    config: HiFTConfig
    base_model_prefix = "hift"
    main_input_name = "mel"
    input_modalities = ("audio",)
    output_modalities = ("audio",)
    _no_split_modules = ["HiFTResidualBlock", "HiFTF0Predictor", "HiFTSource"]

    def __init__(self, config: HiFTConfig):
        super().__init__(config)
        channels, kernel = config.upsample_initial_channel, config.conv_kernel_size
        spectrum = config.istft_n_fft + 2
        self.m_source = HiFTSource(config)
        self.conv_pre = nn.Conv1d(config.num_mel_bins, channels, kernel, padding=kernel // 2)
        self.ups = nn.ModuleList()
        self.source_downs = nn.ModuleList()
        self.source_resblocks = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        for stage, (rate, up_kernel) in enumerate(
            zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True)
        ):
            width, stride = config.stage_channels[stage], config.source_strides[stage]
            self.ups.append(nn.ConvTranspose1d(2 * width, width, up_kernel, rate, padding=(up_kernel - rate) // 2))
            self.source_downs.append(
                nn.Conv1d(spectrum, width, config.source_kernel_sizes[stage], stride, padding=stride // 2)
            )
            self.source_resblocks.append(HiFTResidualBlock(config, width, config.source_resblock_kernel_sizes[stage]))
            self.resblocks.extend(HiFTResidualBlock(config, width, size) for size in config.resblock_kernel_sizes)
        self.conv_post = nn.Conv1d(config.stage_channels[-1], spectrum, kernel, padding=kernel // 2)
        self.f0_predictor = HiFTF0Predictor(config)
        if config.weight_norm:
            for conv in self._normed_convolutions():
                weight_norm(conv)
        self.float()  # also where a half type is the default while a checkpoint is loaded
        self.post_init()

    def _apply(self, fn, recurse=True):
        return super()._apply(keeping_float32(fn), recurse)

    def _normed_convolutions(self) -> list[nn.Module]:
        """The convolutions with weight norm: all but those that read the spectrum of the excitation."""
        plain = set(self.source_downs)
        return [m for m in self.modules() if isinstance(m, (nn.Conv1d, nn.ConvTranspose1d)) and m not in plain]

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(
            module, ParametrizationList
        ):  # weight norm; a module of its own, whose weights may be missing alone
            init.normal_(module.original1, std=self.config.initializer_range)
            init.copy_(module.original0, module.original1.flatten(1).norm(dim=1).view_as(module.original0))
        elif isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)):
            if not is_parametrized(module, "weight"):
                init.normal_(module.weight, std=self.config.initializer_range)
            init.zeros_(module.bias)
        elif isinstance(module, HiFTSnake):
            init.ones_(module.alpha)

    def fold_weight_norm(self) -> "HiFTModel":
        """Join gain and direction of each convolution to one weight, in place, and return the model.

        The output stays the same up to rounding. Otherwise the weights are joined again at every call, which counts
        when a stream makes many short steps. A folded model is saved as such, and is not for training.
        """
        for conv in self._normed_convolutions():
            if is_parametrized(conv, "weight"):
                remove_parametrizations(conv, "weight")
        self.config.weight_norm = False
        return self

    @property
    def hop_length(self) -> int:
        """Samples per mel frame."""
        return self.config.hop_length

    @property
    def sampling_rate(self) -> int:
        """Rate of the waveform in Hz."""
        return self.config.sampling_rate

    @can_return_tuple
    def forward(
        self,
        mel: Tensor,
        attention_mask: Tensor | None = None,
        source: Tensor | None = None,
        noise: Tensor | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        **kwargs,
    ) -> HiFTOutput:
        """
        Args:
            mel (`torch.Tensor`): `[B, num_mel_bins, F]`, natural logarithm of mel magnitudes; F may be 0.
            attention_mask (`torch.Tensor`, *optional*): `[B, F]`, 1 on the frames of a row, 0 on the padding behind
                them, which may be anything.
            source (`torch.Tensor`, *optional*): `[B, 1, F * hop_length]`, excitation to use instead of that of `mel`.
            noise (`torch.Tensor`, *optional*): `[B or 1, F * hop_length, num_harmonics]`, standard normal numbers of
                the excitation.
            seed (`int`, *optional*): noise of [`~hift_source.sample_noise`], the same in all rows; 0 when neither this
                nor `noise` nor `generator` is given and the model is in evaluation mode.
            generator (`torch.Generator`, *optional*): draw the noise from it as the release does: uniform
                `[B, num_harmonics]`, normal `[B, F * hop_length, num_harmonics]`, normal `[B, F * hop_length, 1]`, of
                which only the second one counts. Unlike with a seed, a row then depends on the shape of its batch.

        Raises:
            ValueError: another shape, integers, NaN or infinite numbers, a mask that is not right-padded, more than one
                of `source`, `noise`, `seed` and `generator`.
        """
        lengths = self.check_mel(mel, attention_mask)
        given = {"source": source, "noise": noise, "seed": seed, "generator": generator}
        if len(names := [name for name, value in given.items() if value is not None]) > 1:
            raise ValueError(f"only one of source, noise, seed and generator can be given, got {names}")
        batch, _, frames = mel.shape
        samples = frames * self.config.hop_length
        mel = mel.to(self.device, self.conv_pre.bias.dtype)
        if source is not None:
            self._check_signal("source", source, (batch,), (1, samples))
            source = source.to(mel)
        elif noise is not None:
            self._check_signal("noise", noise, (1, batch), (samples, self.config.num_harmonics))
            noise = noise.to(mel)
        elif generator is not None:
            noise = self.drawn_noise(batch, samples, generator).to(mel)
        elif seed is None and self.training:
            noise = torch.randn(batch, samples, self.config.num_harmonics, device=mel.device, dtype=mel.dtype)
        else:
            noise = 0 if seed is None else seed
        with maybe_autocast(mel.device.type, enabled=False):
            if lengths is None:
                return self._synthesize(mel, source, noise)
            output = HiFTOutput(
                waveform=mel.new_zeros(batch, samples),
                f0=mel.new_zeros(batch, frames),
                source=mel.new_zeros(batch, 1, samples),
            )
            for rows, length in rows_by_length(lengths.to(mel.device)):
                end = length * self.config.hop_length
                part = self._synthesize(
                    mel[rows, :, :length],
                    None if source is None else source[rows, :, :end],
                    noise[rows] if isinstance(noise, Tensor) and len(noise) > 1 else noise,
                )
                output.waveform[rows, :end] = part.waveform
                output.f0[rows, :length] = part.f0
                output.source[rows, :, :end] = part.source
        return output

    def _synthesize(self, mel: Tensor, source: Tensor | None, noise: Tensor | int | None) -> HiFTOutput:
        """Rows without padding; `noise` is a seed or at least as long as the rows."""
        batch, _, frames = mel.shape
        if not mel.numel():
            empty = mel.new_zeros(batch, 0)
            return HiFTOutput(waveform=empty, f0=empty, source=empty[:, None])

        def noise_of(start: int, length: int) -> Tensor:
            if isinstance(noise, Tensor):
                return noise[:, start : start + length]
            return self.seeded_noise(start, length, noise)

        if torch.is_grad_enabled() or frames <= PIECE_FRAMES:
            signal, hop = WholeSignal(), self.config.hop_length
            f0 = self.f0_predictor(mel, signal)
            source = self.m_source(f0, noise_of(0, frames * hop).to(mel)) if source is None else source
            return HiFTOutput(waveform=self.filter(mel, source, signal), f0=f0.to(mel.dtype), source=source)
        progress, pieces = HiFTProgress(self, noise_of), []
        for start in range(0, frames, PIECE_FRAMES):
            end = min(start + PIECE_FRAMES, frames)
            given = None if source is None else source[..., start * self.hop_length : end * self.hop_length]
            pieces.append(progress.advance(mel[..., start:end], end == frames, given))
        waveform, f0, source = (torch.cat(parts, dim=-1) for parts in zip(*pieces, strict=True))
        return HiFTOutput(waveform=waveform, f0=f0.to(mel.dtype), source=source)

    def stream(self, lookahead_frames: int | None = None, seed: int | None = None) -> HiFTStream:
        """Mel frames to waveform as they come, equal to `forward` with the same `seed`; see [`HiFTStream`]."""
        return HiFTStream(self, lookahead_frames, seed)

    def overlap_stream(
        self,
        overlap_frames: int = 8,
        window: str = "hamming",
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> HiFTOverlapStream:
        """Mel frames to waveform by the overlap protocol of the released code; see [`HiFTOverlapStream`]."""
        return HiFTOverlapStream(self, overlap_frames, window, seed, generator)

    def excitation(self, mel: Tensor, noise: Tensor) -> Tensor:
        """Excitation `[B, 1, F * hop_length]` of the f0 predicted from `mel [B, num_mel_bins, F]`."""
        return self.m_source(self.f0_predictor(mel, WholeSignal()), noise)

    def seeded_noise(self, start: int, length: int, seed: int = 0) -> Tensor:
        """Noise `[1, length, num_harmonics]` of the excitation from sample `start` on, as `forward` makes it of `seed`."""
        return sample_noise(seed, start, length, self.config.num_harmonics, self.device)

    def drawn_noise(self, batch: int, length: int, generator: torch.Generator) -> Tensor:
        """Noise `[batch, length, num_harmonics]` as the release draws it, on the device of the generator."""
        device, channels = generator.device, self.config.num_harmonics
        torch.rand(batch, channels, generator=generator, device=device)
        # the release fills a transposed tensor; the numbers that a generator gives depend on the layout in memory
        noise = torch.empty(batch, channels, length, device=device).transpose(1, 2).normal_(generator=generator)
        torch.randn(batch, length, 1, generator=generator, device=device)
        return noise

    def filter(self, mel: Tensor, source: Tensor, signal: Signal | None = None) -> Tensor:
        """Mel frames `[B, num_mel_bins, F]` and excitation `[B, 1, F * hop_length]` to the waveform `[B, F * hop_length]`.

        With a `SignalPieces` as `signal`, the next pieces of both, of any lengths, to the samples that became final.
        """
        signal = signal or WholeSignal()
        config, branches = self.config, len(self.config.resblock_kernel_sizes)
        spectrum = self._spectrum(source, signal)
        x = convolve(self.conv_pre, mel, signal)
        for stage, up in enumerate(self.ups):
            x = convolve(up, F.leaky_relu(x, config.leaky_relu_slope), signal)
            if stage == len(self.ups) - 1:
                x = signal.reflect("front", x, 1, 0)
            branch = convolve(self.source_downs[stage], spectrum, signal)
            branch = self.source_resblocks[stage](branch, signal)
            x, branch = signal.align(("source", stage), x, branch)
            x = x + branch
            blocks = self.resblocks[stage * branches : (stage + 1) * branches]
            x = sum(signal.align(("blocks", stage), *(block(x, signal) for block in blocks))) / branches
        x = convolve(self.conv_post, F.leaky_relu(x, LAST_LEAKY_RELU_SLOPE), signal)
        return self._waveform(x, signal).clamp(-config.audio_limit, config.audio_limit)

    def _fourier_basis(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Analysis `[n_fft + 2, 1, n_fft]` (cosines, then minus sines, windowed) and the window `[n_fft]`."""
        n_fft = self.config.istft_n_fft
        time = torch.arange(n_fft, device=like.device, dtype=precise_dtype(like.device))
        window = 0.5 - 0.5 * torch.cos(2 * math.pi * time / n_fft)
        angle = 2 * math.pi / n_fft * (torch.arange(n_fft // 2 + 1, device=like.device)[:, None] * time % n_fft)
        basis = torch.cat([angle.cos(), -angle.sin()]) * window
        return basis[:, None], window

    def _spectrum(self, source: Tensor, signal: Signal) -> Tensor:
        """Short Fourier transform of the excitation, real above imaginary parts: `[B, n_fft + 2, frames]`."""
        half = self.config.istft_n_fft // 2
        basis, _ = self._fourier_basis(source)
        source = signal.reflect("source", source, half, half)
        return signal.conv1d("stft", source, basis.to(source.dtype), stride=self.config.istft_hop_length)

    def _waveform(self, x: Tensor, signal: Signal) -> Tensor:
        """Inverse short Fourier transform of log magnitudes above phases `[B, n_fft + 2, frames]`."""
        n_fft, hop = self.config.istft_n_fft, self.config.istft_hop_length
        basis, window = self._fourier_basis(x)
        # every bin but the first and the last one stands for two
        weights = torch.full((n_fft // 2 + 1, 1, 1), 2.0 / n_fft, device=x.device, dtype=window.dtype)
        weights[0] = weights[-1] = 1.0 / n_fft
        basis = (basis * weights.repeat(2, 1, 1)).to(x.dtype)
        log_magnitude, phase = x.chunk(2, dim=1)
        magnitude = log_magnitude.exp().clamp(max=self.config.max_magnitude)
        phase = torch.sin(phase)  # the sine itself is the angle
        spectrum = torch.cat([magnitude * phase.cos(), magnitude * phase.sin()], dim=1)
        waveform = signal.conv_transpose1d("istft", spectrum, basis, stride=hop, padding=n_fft // 2)
        envelope = signal.conv_transpose1d(
            "envelope",
            torch.ones_like(x[:1, :1]),
            window.square().to(x.dtype)[None, None],
            stride=hop,
            padding=n_fft // 2,
        )
        return (waveform / envelope)[:, 0]

    def check_mel(self, mel: Tensor, attention_mask: Tensor | None = None) -> Tensor | None:
        """Frames of each row, or `None` without a mask; raises what `forward` raises."""
        if mel.ndim != 3 or mel.shape[1] != self.config.num_mel_bins:
            raise ValueError(f"mel must be [batch, {self.config.num_mel_bins}, frames], got {tuple(mel.shape)}")
        if not mel.is_floating_point():
            raise ValueError(f"mel must be floating point, got {mel.dtype}")
        if attention_mask is None:
            check_finite("mel", mel)
            return None
        if attention_mask.shape != (mel.shape[0], mel.shape[2]):
            raise ValueError(
                f"attention_mask must be {(mel.shape[0], mel.shape[2])}, got {tuple(attention_mask.shape)}"
            )
        mask = attention_mask.to(mel.device).bool()
        if bool((mask[:, 1:] & ~mask[:, :-1]).any()):
            raise ValueError("attention_mask must be 1 on the first frames of a row and 0 behind them")
        check_finite("mel", mel, mask[:, None])
        return mask.sum(dim=1)

    @staticmethod
    def _check_signal(name: str, signal: Tensor, batches: tuple[int, ...], shape: tuple[int, int]) -> None:
        if signal.ndim != 3 or signal.shape[0] not in batches or tuple(signal.shape[1:]) != shape:
            raise ValueError(f"{name} must be {[batches[-1], *shape]}, got {list(signal.shape)}")
        if not signal.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {signal.dtype}")
        check_finite(name, signal)


__all__ = ["HiFTModel", "HiFTOutput"]
