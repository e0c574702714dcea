"""Trains a small character-level language model on text.txt with NumPy.

An ordinary training script: it saves its whole state every so many steps and, when it starts, goes on from the newest save
in its own checkpoint directory. It knows nothing of where it runs.
"""

import argparse
import json
import os
import re
import signal
import sys
import time

import numpy as np

CONTEXT = 16  # characters that the model sees
EMBEDDING = 24  # numbers per character


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", default="text.txt")
    parser.add_argument("--out", default="checkpoints", help="directory of the saves")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--save-every", type=int, default=20, help="steps between two saves")
    parser.add_argument("--print-every", type=int, default=5, help="steps between two lines")
    parser.add_argument("--keep", type=int, default=3, help="saves to keep; 0 = all")
    parser.add_argument("--hidden", type=int, default=384, help="hidden units; 384 make saves of about 2 MB")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=0.002, help="learning rate")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sleep", type=float, default=0.0, help="seconds to wait after each step, to make a small job last")
    return parser.parse_args()


def new_state(args, characters):
    rng = np.random.default_rng(args.seed)
    shapes = {
        "embed": (characters, EMBEDDING),
        "w1": (CONTEXT * EMBEDDING, args.hidden),
        "b1": (args.hidden,),
        "w2": (args.hidden, characters),
        "b2": (characters,),
    }
    state = {"step": 0, "rng": rng, "params": {}, "mean": {}, "var": {}}
    for name, shape in shapes.items():
        scale = 0.0 if len(shape) == 1 else 1.0 if name == "embed" else shape[0] ** -0.5
        state["params"][name] = (rng.standard_normal(shape) * scale).astype(np.float32)
        state["mean"][name] = np.zeros(shape, np.float32)
        state["var"][name] = np.zeros(shape, np.float32)
    return state


def save(state, directory, keep):
    """Writes one save under a name that no reader takes for a save, then renames it: it is there whole or not at all."""
    os.makedirs(directory, exist_ok=True)
    arrays = {"step": np.int64(state["step"]), "rng": json.dumps(state["rng"].bit_generator.state)}
    for part in ("params", "mean", "var"):
        arrays.update({f"{part}.{name}": array for name, array in state[part].items()})
    path = os.path.join(directory, f"step-{state['step']:06}.npz")
    with open(path + ".tmp", "wb") as file:
        np.savez(file, **arrays)  # no timestamps: the same state gives the same bytes
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".tmp", path)
    for _, old in saves(directory)[:-keep] if keep else []:
        os.remove(old)


def saves(directory):
    """All saves as (step, path), oldest first."""
    if not os.path.isdir(directory):
        return []
    named = ((re.fullmatch(r"step-(\d+)\.npz", name), name) for name in os.listdir(directory))
    return sorted((int(match[1]), os.path.join(directory, name)) for match, name in named if match)


def load(path, state):
    with np.load(path) as arrays:
        state["step"] = int(arrays["step"])
        state["rng"].bit_generator.state = json.loads(str(arrays["rng"]))
        for part in ("params", "mean", "var"):
            for name in state[part]:
                state[part][name] = arrays[f"{part}.{name}"]


def batch(state, text, size):
    """Random places in the text: the context before each, and the character that follows."""
    ends = state["rng"].integers(CONTEXT, len(text), size)
    return text[ends[:, None] - np.arange(CONTEXT, 0, -1)], text[ends]


def loss_and_gradients(params, context, target):
    rows = np.arange(len(target))
    embedded = params["embed"][context].reshape(len(target), -1)
    hidden = np.tanh(embedded @ params["w1"] + params["b1"])
    logits = hidden @ params["w2"] + params["b2"]
    logits -= logits.max(axis=1, keepdims=True)
    shares = np.exp(logits)
    shares /= shares.sum(axis=1, keepdims=True)
    loss = -np.log(shares[rows, target]).mean()

    shares[rows, target] -= 1
    shares /= len(target)
    back = (shares @ params["w2"].T) * (1 - hidden * hidden)
    embed = np.zeros_like(params["embed"])
    np.add.at(embed, context, (back @ params["w1"].T).reshape(*context.shape, EMBEDDING))
    return float(loss), {
        "embed": embed,
        "w1": embedded.T @ back,
        "b1": back.sum(axis=0),
        "w2": hidden.T @ shares,
        "b2": shares.sum(axis=0),
    }


def adam(state, gradients, rate):
    step = state["step"] + 1
    factor = np.float32(rate * (1 - 0.999**step) ** 0.5 / (1 - 0.9**step))
    for name, gradient in gradients.items():
        mean, var = state["mean"][name], state["var"][name]
        mean += np.float32(0.1) * (gradient - mean)
        var += np.float32(0.001) * (gradient * gradient - var)
        state["params"][name] -= factor * mean / (np.sqrt(var) + np.float32(1e-8))
    state["step"] = step


def main():
    args = arguments()
    with open(args.text, encoding="utf-8") as file:
        content = file.read()
    characters = sorted(set(content))
    text = np.array([characters.index(character) for character in content])
    state = new_state(args, len(characters))

    found = saves(args.out)
    if found:
        load(found[-1][1], state)
        print(f"resumed from step {state['step']}", flush=True)
    else:
        print("starting from step 0", flush=True)

    stopping = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
    while state["step"] < args.steps and not stopping:
        loss, gradients = loss_and_gradients(state["params"], *batch(state, text, args.batch))
        adam(state, gradients, args.rate)
        step = state["step"]
        if step % args.print_every == 0 or step == args.steps:
            print(f"step {step}/{args.steps} loss {loss:.3f}", flush=True)
        if step % args.save_every == 0 or step == args.steps:
            save(state, args.out, args.keep)
        time.sleep(args.sleep)
    if stopping and state["step"] < args.steps:
        save(state, args.out, args.keep)
        print(f"stopped at step {state['step']}", flush=True)
        return 143
    print("finished", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
