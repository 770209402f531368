"""Activations with what kernels get wrong first: counts beyond INT8, and a token of zeros."""

import torch


def activations(num_tokens, num_inputs, dtype=torch.float32):
    x = torch.distributions.Laplace(0.0, 1.0).sample((num_tokens, num_inputs))
    if num_inputs > 50:
        x[0, 3], x[-1, 5] = 30000, -400  # counts beyond INT8
    if num_tokens > 2:
        x[1] = 0
    return x.to(dtype)
