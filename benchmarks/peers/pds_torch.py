"""A noise level of PDS as the published PyTorch program orders it: six complex transforms an update, masks or no masks.

Written from its description: images [b, c, h, w], complex `fft2` both ways, masks over the whole plane in float32. The
drift M M^T s takes four transforms, the noise M z two; a level is a Langevin update and a reverse-diffusion one. The
network is one product, as in `benchmarks.preconditioned_step`.
"""

import torch
from torch import Tensor


def apply_noise(x: Tensor, freq: Tensor, space: Tensor) -> Tensor:
    """M x = F^-1 diag(freq) F diag(space) x."""
    return torch.fft.ifft2(freq * torch.fft.fft2(space * x)).real


def apply_transpose(x: Tensor, freq: Tensor, space: Tensor) -> Tensor:
    """M^T x."""
    return space * torch.fft.ifft2(freq * torch.fft.fft2(x)).real


def apply(x: Tensor, freq: Tensor, space: Tensor) -> Tensor:
    """M M^T x."""
    return apply_noise(apply_transpose(x, freq, space), freq, space)


def step(x: Tensor, sigma: float, sigma_next: float, freq: Tensor, space: Tensor, snr: float = 0.16) -> Tensor:
    """x [b, c, h, w] at noise scale sigma -> at sigma_next; freq and space [1, c, h, w]."""
    drift, noise = apply(-x / sigma**2, freq, space), apply_noise(torch.randn_like(x), freq, space)
    norms = [part.flatten(1).norm(dim=1).mean() for part in (noise, drift)]
    size = 2 * (snr * norms[0] / norms[1]) ** 2
    x = x + size * drift + torch.sqrt(2 * size) * noise
    gain = sigma**2 - sigma_next**2
    drift, noise = apply(-x / sigma**2, freq, space), apply_noise(torch.randn_like(x), freq, space)
    return x + gain * drift + gain**0.5 * noise
