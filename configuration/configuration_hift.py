"""Configuration of HiFT, the vocoder of MOSS-Speech and CosyVoice 2."""

import math

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class HiFTConfig(PreTrainedConfig):
    """
    Configuration of [`HiFTModel`]. The defaults are the released vocoder of MOSS-Speech, which is that of CosyVoice 2.

    Args:
        num_mel_bins (`int`): bins of the log-mel spectrogram.
        sampling_rate (`int`): rate in Hz of the waveform.
        upsample_initial_channel (`int`): channels in front of the first up-sampling; every stage halves them.
        upsample_rates (`list[int]`): up-sampling factor of each stage; their product times `istft_hop_length` is the
            hop length.
        upsample_kernel_sizes (`list[int]`): kernels of the transposed convolutions; kernel minus rate must be even.
        resblock_kernel_sizes (`list[int]`): kernels of the parallel residual blocks of each stage.
        resblock_dilation_sizes (`list[int]`): dilations inside every residual block.
        source_resblock_kernel_sizes (`list[int]`): kernel of the residual block that the excitation passes, per stage.
        conv_kernel_size (`int`): kernel of the first and of the last convolution.
        istft_n_fft, istft_hop_length (`int`): samples of a frame of the short Fourier transforms (periodic Hann window)
            of the excitation and of the waveform, and samples between two frames.
        f0_hidden_size, f0_kernel_size, num_f0_layers (`int`): convolutions that predict the fundamental frequency.
        num_harmonics (`int`): sines of the excitation, the fundamental included.
        sine_amplitude (`float`): amplitude of each sine.
        noise_amplitude (`float`): standard deviation of the noise in voiced frames; elsewhere `sine_amplitude / 3`.
        voiced_threshold (`float`): frames above so many Hz are voiced.
        leaky_relu_slope (`float`): slope in front of the up-samplings. In front of the last convolution it is 0.01.
        max_magnitude (`float`): limit of the magnitudes of the decoded spectrum.
        audio_limit (`float`): limit of the absolute value of the samples.
        weight_norm (`bool`): keep the weights of the convolutions as gain and direction, as they are trained and
            released. [`HiFTModel.fold_weight_norm`] joins them and sets this to `False`.
        initializer_range (`float`): standard deviation of the normal that initialises the convolutions.
    """

    model_type = "hift"
    attribute_map = {"hidden_size": "upsample_initial_channel"}

    num_mel_bins: int = 80
    sampling_rate: int = 24000
    upsample_initial_channel: int = 512
    upsample_rates: list[int] | tuple[int, ...] = (8, 5, 3)
    upsample_kernel_sizes: list[int] | tuple[int, ...] = (16, 11, 7)
    resblock_kernel_sizes: list[int] | tuple[int, ...] = (3, 7, 11)
    resblock_dilation_sizes: list[int] | tuple[int, ...] = (1, 3, 5)
    source_resblock_kernel_sizes: list[int] | tuple[int, ...] = (7, 7, 11)
    conv_kernel_size: int = 7
    istft_n_fft: int = 16
    istft_hop_length: int = 4
    f0_hidden_size: int = 512
    f0_kernel_size: int = 3
    num_f0_layers: int = 5
    num_harmonics: int = 9
    sine_amplitude: float | int = 0.1
    noise_amplitude: float | int = 0.003
    voiced_threshold: float | int = 10
    leaky_relu_slope: float | int = 0.1
    max_magnitude: float | int = 100
    audio_limit: float | int = 0.99
    weight_norm: bool = True
    initializer_range: float | int = 0.01

    @property
    def hop_length(self) -> int:
        """Samples per mel frame."""
        return math.prod(self.upsample_rates) * self.istft_hop_length

    @property
    def frame_rate(self) -> float:
        """Mel frames per second."""
        return self.sampling_rate / self.hop_length

    @property
    def num_hidden_layers(self) -> int:
        """Stages of up-sampling."""
        return len(self.upsample_rates)

    @property
    def stage_channels(self) -> list[int]:
        """Channels behind each up-sampling."""
        return [self.upsample_initial_channel // 2 ** (stage + 1) for stage in range(len(self.upsample_rates))]

    @property
    def source_strides(self) -> list[int]:
        """Frames of the Fourier transform of the excitation per position of each stage."""
        return [math.prod(self.upsample_rates[stage + 1 :]) for stage in range(len(self.upsample_rates))]

    @property
    def source_kernel_sizes(self) -> list[int]:
        """Kernels of the convolutions that bring the excitation to the rate of each stage."""
        return [2 * stride if stride > 1 else 1 for stride in self.source_strides]

    @property
    def lookahead_frames(self) -> int:
        """Mel frames that must follow a frame before its samples are final: 20 with the default sizes.

        They are the right half of the receptive field: of the f0 predictor, the interpolation of the phase, the branch
        of the excitation and the filter, in this order, or of the filter alone where that reaches farther.
        """
        frames = 1
        while self.final_samples(frames) <= 0:
            frames *= 2
        # beyond the start every frame adds one hop
        return math.ceil((frames * self.hop_length - self.final_samples(frames)) / self.hop_length)

    def final_samples(self, frames: int) -> int:
        """Samples of the waveform that `frames` mel frames determine, whatever follows them (0 or less: none)."""
        known_f0 = frames - self.num_f0_layers * (self.f0_kernel_size // 2)
        source = known_f0 * self.hop_length - (self.hop_length + 1) // 2
        spectra = (source - self.istft_n_fft // 2) // self.istft_hop_length + 1
        known = frames - self.conv_kernel_size // 2
        for stage, rate in enumerate(self.upsample_rates):
            known = known * rate - (self.upsample_kernel_sizes[stage] - rate) // 2
            if stage == len(self.upsample_rates) - 1:
                known += 1  # the sample that is mirrored to the front
            stride, kernel = self.source_strides[stage], self.source_kernel_sizes[stage]
            branch = (spectra + stride // 2 - kernel) // stride + 1
            branch -= self._resblock_reach(self.source_resblock_kernel_sizes[stage])
            known = min(known, branch) - self._resblock_reach(max(self.resblock_kernel_sizes))
        known -= self.conv_kernel_size // 2
        return known * self.istft_hop_length - self.istft_n_fft // 2

    def _resblock_reach(self, kernel: int) -> int:
        """Positions to the right that one position behind a residual block depends on."""
        return sum((kernel // 2) * (dilation + 1) for dilation in self.resblock_dilation_sizes)

    def validate_sizes(self):
        names = ("num_mel_bins", "sampling_rate", "istft_hop_length", "f0_hidden_size", "num_f0_layers")
        for name in (*names, "num_harmonics", "max_magnitude", "audio_limit"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("sine_amplitude", "noise_amplitude", "voiced_threshold", "leaky_relu_slope"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        n_fft, hop = self.istft_n_fft, self.istft_hop_length
        if n_fft % 2 or n_fft < 2 * hop:
            raise ValueError(f"istft_n_fft must be even and at least two hops of {hop} samples, got {n_fft}")

    def validate_stages(self):
        if not self.upsample_rates or min(self.upsample_rates) < 1:
            raise ValueError(f"upsample_rates must hold positive factors, got {list(self.upsample_rates)}")
        for name in ("upsample_kernel_sizes", "source_resblock_kernel_sizes"):
            if len(getattr(self, name)) != len(self.upsample_rates):
                raise ValueError(
                    f"{name} must have one entry per stage, {len(self.upsample_rates)}, got {list(getattr(self, name))}"
                )
        for rate, kernel in zip(self.upsample_rates, self.upsample_kernel_sizes, strict=True):
            if kernel < rate or (kernel - rate) % 2:
                raise ValueError(
                    "upsample_kernel_sizes must be the upsample_rates plus even numbers, "
                    f"got {list(self.upsample_kernel_sizes)} for {list(self.upsample_rates)}"
                )
        divisor = 2 ** len(self.upsample_rates)
        if self.upsample_initial_channel < divisor or self.upsample_initial_channel % divisor:
            raise ValueError(
                f"upsample_initial_channel must be a multiple of {divisor}, got {self.upsample_initial_channel}"
            )
        if self.istft_n_fft // 2 >= self.hop_length:
            raise ValueError(
                f"istft_n_fft must be less than two mel frames of {self.hop_length} samples, got {self.istft_n_fft}"
            )

    def validate_kernels(self):
        if not self.resblock_dilation_sizes or min(self.resblock_dilation_sizes) < 1:
            raise ValueError(
                f"resblock_dilation_sizes must hold positive numbers, got {list(self.resblock_dilation_sizes)}"
            )
        for name in ("resblock_kernel_sizes", "source_resblock_kernel_sizes"):
            kernels = getattr(self, name)
            if not kernels or any(kernel < 1 or kernel % 2 == 0 for kernel in kernels):
                raise ValueError(f"{name} must hold odd kernels, got {list(kernels)}")
        for name in ("conv_kernel_size", "f0_kernel_size"):
            if getattr(self, name) < 1 or getattr(self, name) % 2 == 0:
                raise ValueError(f"{name} must be odd, got {getattr(self, name)}")


__all__ = ["HiFTConfig"]
