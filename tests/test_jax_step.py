"""The JAX peer of the benchmark takes the step that it is compared with."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

from bench_step import MLP, stack_of

from wn.config.compose import compose


@pytest.mark.parametrize("norm", ["none", "weight_norm"])
def test_the_peer_has_the_same_losses_and_updates(norm: str) -> None:
    jax = pytest.importorskip("jax")
    import jax.numpy as jnp
    from jax_step import nested, stacked_step

    trainer = stack_of(compose({**MLP, "norm": norm}), members=3)
    hyper, train = trainer.optimizer.hyper, trainer.data.train
    lr, momentum = jnp.array(hyper["lr"].numpy()), float(hyper["momentum"][0])
    images, labels = jnp.array(train.x.flatten(1).numpy()), jnp.array(train.y.numpy())
    params = nested(trainer.stack.params)
    advance = stacked_step(tuple(params))
    moments, before = jax.tree.map(jnp.zeros_like, params), trainer.stack.params["logits.bias"].clone()
    total = torch.zeros_like(trainer.totals)
    for batch in trainer.batches(1)[:3]:
        trainer.update(batch)
        indices = jnp.array(batch.numpy())
        params, moments, loss, error = advance(params, moments, lr, momentum, images, labels, indices)
        total += torch.stack([torch.tensor(jax.device_get(t).tolist()) for t in (loss, error)])
    assert not torch.equal(before, trainer.stack.params["logits.bias"])
    torch.testing.assert_close(total, trainer.totals, rtol=1e-5, atol=1e-5)
    for path, ours in trainer.stack.params.items():
        layer, name = path.split(".")
        theirs = torch.tensor(jax.device_get(params[layer][name]).tolist())
        torch.testing.assert_close(ours.detach(), theirs, rtol=1e-5, atol=1e-5)
