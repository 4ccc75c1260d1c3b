"""The stacked step of an MLP in JAX, ``jit(vmap(step))``: the peer of ``scripts/bench.py step``. Optional.

    pip install "jax[cpu]"     # into an environment of your own; the project does without

The same model, loss and update as ours: ReLU layers, cross-entropy, SGD with momentum, and where a layer has
a gain ``w = g v / ||v||``.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

Params = dict[str, dict[str, Any]]  # layer -> weight, or v and g; bias


def nested(tensors: dict[str, Any]) -> Params:
    """A stack's tensors, by ``layer.name`` in the order of the layers, as arrays by layer and name."""
    params: Params = {}
    for path, tensor in tensors.items():
        layer, _, name = path.rpartition(".")
        params.setdefault(layer, {})[name] = jnp.array(tensor.detach().numpy())
    return params


def logits_of(params: Params, order: tuple[str, ...], x: jax.Array) -> jax.Array:
    """``[batch, classes]`` of images ``x [batch, inputs]``."""
    for layer in order:
        p = params[layer]
        w = p["v"] * (p["g"] / jnp.linalg.norm(p["v"], axis=1))[:, None] if "g" in p else p["weight"]
        x = x @ w.T + p["bias"]
        if layer != order[-1]:
            x = jax.nn.relu(x)
    return x


def stacked_step(order: tuple[str, ...]) -> Any:
    """``step(params, moments, lr, momentum, images, labels, batch)`` for all members at once.

    Returns params, moments, loss and error ``[members]``. ``params``, ``moments``, ``lr [members]`` and the
    indices ``batch [members, batch]`` are the members'; ``images``, ``labels`` and ``momentum`` are shared.
    The first two are given up: the step may write into their memory.
    """

    def step(
        params: Params, moments: Params, lr: Any, momentum: Any, images: Any, labels: Any, batch: Any
    ) -> tuple[Params, Params, Any, Any]:
        x, y = images[batch], labels[batch]

        def loss_and_error(params: Params) -> tuple[Any, Any]:
            logits = logits_of(params, order, x)
            picked = jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1)
            return -picked.mean(), (logits.argmax(1) != y).mean()

        (loss, error), grads = jax.value_and_grad(loss_and_error, has_aux=True)(params)
        moments = jax.tree.map(lambda m, grad: momentum * m + grad, moments, grads)
        return jax.tree.map(lambda p, m: p - lr * m, params, moments), moments, loss, error

    return jax.jit(jax.vmap(step, in_axes=(0, 0, 0, None, None, None, 0)), donate_argnums=(0, 1))
