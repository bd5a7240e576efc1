"""A linear layer whose fp32 inference on x86 CPUs runs in oneDNN."""

import torch
from torch import nn

ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class OneDnnLinear(nn.Linear):
    """
    `nn.Linear`; without gradients, in fp32 on a CPU, it calls the kernel that torch's own compiler (inductor) calls.

    Decoding multiplies every weight matrix by one row per sequence. The BLAS behind `nn.Linear` does that for one row
    in a single thread, and for a few rows it takes twice as long as for one; oneDNN reads the matrix once, on all
    threads. `benchmarks/acoustic_gpt.py --variants` prints what it gains. Results differ by fp32 rounding only.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        weight = self.weight
        if (
            ONEDNN
            and not torch.is_grad_enabled()
            and weight.device.type == input.device.type == "cpu"
            and weight.dtype == input.dtype == torch.float32
            and type(weight) is nn.Parameter  # neither sharded nor quantised
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
            and input.numel()
        ):
            return torch.ops.mkldnn._linear_pointwise(input, weight, self.bias, "none", [], "")
        return super().forward(input)


__all__ = ["OneDnnLinear"]
