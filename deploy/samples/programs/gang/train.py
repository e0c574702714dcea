"""Trains one model in several processes that add up their gradients, as torchrun's programs do, with nothing but NumPy.

Every process reads MASTER_ADDR, MASTER_PORT, RANK and WORLD_SIZE, as torch.distributed's env:// does. Process zero saves; when
they start, all go on from the newest save. It knows nothing of where it runs.
"""

import argparse
import hashlib
import os
import re
import signal
import socket
import struct
import sys
import time

import numpy as np


class Sum:
    """A sum over all processes: everybody sends to process zero, which adds in the order of the ranks and sends the sum back.

    Always the same order of adding, so that the same run gives the same bytes.
    """

    def __init__(self, rank, size, address, port, patience=60.0):
        self.rank, self.size = rank, size
        self.peers = self.gather_peers(address, port, patience) if rank == 0 else [self.join(address, port, patience)]

    def gather_peers(self, address, port, patience):
        with socket.create_server((address, port), backlog=self.size) as server:
            server.settimeout(patience)
            peers = {}
            while len(peers) < self.size - 1:
                connection, _ = server.accept()
                connection.settimeout(patience)
                (rank,) = struct.unpack("!I", receive(connection, 4))
                peers[rank] = connection
        return [peers[rank] for rank in range(1, self.size)]

    def join(self, address, port, patience):
        deadline = time.monotonic() + patience
        while True:
            try:
                connection = socket.create_connection((address, port), timeout=patience)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        connection.sendall(struct.pack("!I", self.rank))
        return connection

    def sum(self, values):
        """The sum of `values` (float64) of all processes, the same bytes in each."""
        values = np.ascontiguousarray(values, dtype=np.float64)
        if self.rank:
            self.peers[0].sendall(values.tobytes())
            return np.frombuffer(receive(self.peers[0], values.nbytes)).reshape(values.shape)
        total = values.copy()
        for peer in self.peers:
            total += np.frombuffer(receive(peer, values.nbytes)).reshape(values.shape)
        for peer in self.peers:
            peer.sendall(total.tobytes())
        return total

    def all_equal(self, number):
        """Whether every process has this number."""
        numbers = np.zeros(self.size)
        numbers[self.rank] = number
        return bool((self.sum(numbers) == number).all())


def receive(connection, count):
    data = bytearray()
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise ConnectionError("another process of the gang is gone")
        data += part
    return bytes(data)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="checkpoints", help="directory of the saves")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--save-every", type=int, default=20, help="steps between two saves")
    parser.add_argument("--keep", type=int, default=3, help="saves to keep")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32, help="examples of each process in a step")
    parser.add_argument("--rate", type=float, default=0.05, help="learning rate")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sleep", type=float, default=0.0, help="seconds to wait after each step, to make a small job last")
    return parser.parse_args()


def new_weights(args):
    rng = np.random.default_rng(args.seed)
    return [
        rng.standard_normal((2, args.hidden)) * 0.5,
        np.zeros(args.hidden),
        rng.standard_normal((args.hidden, 1)) * args.hidden**-0.5,
        np.zeros(1),
    ]


def gradients_of(weights, points, wanted):
    w1, b1, w2, b2 = weights
    hidden = np.tanh(points @ w1 + b1)
    off = hidden @ w2 + b2 - wanted
    loss = float((off * off).mean())
    back = 2 * off / len(points)
    inner = (back @ w2.T) * (1 - hidden * hidden)
    return loss, [points.T @ inner, inner.sum(axis=0), hidden.T @ back, back.sum(axis=0)]


def batch(args, step, rank):
    """What this process learns from in this step: another part of the data in each, the same again in a resumed run."""
    rng = np.random.default_rng([args.seed, step, rank])
    points = rng.uniform(-2, 2, (args.batch, 2))
    return points, np.sin(points[:, :1] * 2) * np.cos(points[:, 1:])


def saves(directory):
    if not os.path.isdir(directory):
        return []
    named = ((re.fullmatch(r"step-(\d+)\.npz", name), name) for name in os.listdir(directory))
    return sorted((int(match[1]), os.path.join(directory, name)) for match, name in named if match)


def save(weights, step, args):
    """Under a name that no reader takes for a save first, so that it is there whole or not at all."""
    os.makedirs(args.out, exist_ok=True)
    path = os.path.join(args.out, f"step-{step:06}.npz")
    with open(path + ".tmp", "wb") as file:
        np.savez(file, *weights)
    os.replace(path + ".tmp", path)
    for _, old in saves(args.out)[: -args.keep]:
        os.remove(old)


def digest(weights):
    """48 bits of a hash: as many as a float holds exactly."""
    return int.from_bytes(hashlib.sha256(b"".join(w.tobytes() for w in weights)).digest()[:6], "big")


def main():
    args = arguments()
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    weights, step = new_weights(args), 0
    found = saves(args.out)
    if found:
        step = found[-1][0]
        with np.load(found[-1][1]) as arrays:
            weights = [arrays[f"arr_{i}"] for i in range(len(weights))]
    print(f"rank {rank} of {size}: " + (f"resumed from step {step}" if found else "starting from step 0"), flush=True)

    gang = Sum(rank, size, os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    if not gang.all_equal(step):
        print(f"rank {rank} begins at step {step}, others elsewhere: they would not train the same model", flush=True)
        return 1
    stopping = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
    while step < args.steps:
        loss, gradients = gradients_of(weights, *batch(args, step, rank))
        # One message for all: gradients, loss, and whether somebody was told to stop, so that all stop after the same step.
        total = gang.sum(np.concatenate([*(g.ravel() for g in gradients), [loss, float(bool(stopping))]])) / size
        at = 0
        for weight in weights:
            weight -= args.rate * total[at : at + weight.size].reshape(weight.shape)
            at += weight.size
        step += 1
        if rank == 0 and step % 5 == 0:
            print(f"step {step}/{args.steps} loss {total[-2]:.4f}", flush=True)
        stop = total[-1] > 0
        if step % args.save_every == 0 or step == args.steps or stop:
            if not gang.all_equal(digest(weights)):
                print(f"rank {rank}: the weights of the processes differ at step {step}", flush=True)
                return 1
            if rank == 0:
                save(weights, step, args)
        if stop and step < args.steps:
            print(f"rank {rank}: stopped at step {step}", flush=True)
            return 143
        time.sleep(args.sleep)
    print(f"rank {rank}: finished, weights {digest(weights):012x}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
