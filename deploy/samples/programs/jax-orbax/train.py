"""Trains a small network with JAX and saves with Orbax, the way Orbax' own guide does it.

An ordinary script: when it starts it goes on from the newest checkpoint in its directory. It knows nothing of where it runs.
"""

import argparse
import os
import signal
import sys
import time

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="checkpoints", help="directory of the checkpoints")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--save-every", type=int, default=20, help="steps between two checkpoints")
    parser.add_argument("--keep", type=int, default=3, help="checkpoints to keep")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--rate", type=float, default=0.003, help="learning rate")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sleep", type=float, default=0.0, help="seconds to wait after each step, to make a small job last")
    return parser.parse_args()


def new_state(args):
    first, second = jax.random.split(jax.random.key(args.seed))
    params = {
        "w1": jax.random.normal(first, (2, args.hidden)) * 0.5,
        "b1": jnp.zeros(args.hidden),
        "w2": jax.random.normal(second, (args.hidden, 1)) * args.hidden**-0.5,
        "b2": jnp.zeros(1),
    }
    zeros = jax.tree.map(jnp.zeros_like, params)
    return {"params": params, "mean": zeros, "var": zeros}


def loss_of(params, points, wanted):
    hidden = jnp.tanh(points @ params["w1"] + params["b1"])
    return jnp.mean((hidden @ params["w2"] + params["b2"] - wanted) ** 2)


@jax.jit
def train_step(state, step, seed, rate):
    """One step of Adam. Its batch follows from the step alone, so that a resumed run sees the same data."""
    points = jax.random.uniform(jax.random.fold_in(jax.random.key(seed), step), (128, 2), minval=-2, maxval=2)
    wanted = jnp.sin(points[:, :1] * 2) * jnp.cos(points[:, 1:])
    loss, gradients = jax.value_and_grad(loss_of)(state["params"], points, wanted)
    mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, state["mean"], gradients)
    var = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, state["var"], gradients)
    factor = rate * jnp.sqrt(1 - 0.999**step) / (1 - 0.9**step)
    params = jax.tree.map(lambda p, m, v: p - factor * m / (jnp.sqrt(v) + 1e-8), state["params"], mean, var)
    return {"params": params, "mean": mean, "var": var}, loss


def main():
    args = arguments()
    options = ocp.CheckpointManagerOptions(save_interval_steps=args.save_every, max_to_keep=args.keep)
    state, step = new_state(args), 0
    stopping = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
    with ocp.CheckpointManager(os.path.abspath(args.out), options=options) as manager:
        newest = manager.latest_step()
        if newest is not None:
            state, step = manager.restore(newest, args=ocp.args.StandardRestore(state)), newest
            print(f"resumed from step {step}", flush=True)
        else:
            print("starting from step 0", flush=True)
        while step < args.steps and not stopping:
            step += 1
            state, loss = train_step(state, step, args.seed, args.rate)
            if step % 5 == 0:
                print(f"step {step}/{args.steps} loss {loss:.4f}", flush=True)
            manager.save(step, args=ocp.args.StandardSave(state))  # only where save_interval_steps says so
            time.sleep(args.sleep)
        if manager.latest_step() != step:
            manager.save(step, args=ocp.args.StandardSave(state), force=True)
        # Saving goes on in the background: a program that leaves now would leave half a checkpoint.
        manager.wait_until_finished()
    if stopping and step < args.steps:
        print(f"stopped at step {step}", flush=True)
        return 143
    digest = sum(float(jnp.sum(jnp.abs(leaf))) for leaf in jax.tree.leaves(state["params"]))
    print(f"finished, weights {digest.hex()}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
