"""The demo's program by itself: a run that was cut and resumed ends in the same bytes as one that was not.

Run with the demo's Python: python -m unittest discover -s deploy/demo/program
"""

import hashlib
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import unittest

IMAGE = pathlib.Path(__file__).parent / "image"
# Another number of threads or another kernel adds up in another order.
ENVIRONMENT = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OPENBLAS_CORETYPE": "Haswell"}


def command(out, *more):
    return [sys.executable, IMAGE / "train.py", "--text", IMAGE / "text.txt", "--out", out, "--save-every", "10", *more]


def train(out, *more):
    return subprocess.run(command(out, *more), env=ENVIRONMENT, capture_output=True, text=True, check=True).stdout


def digest(directory, step):
    return hashlib.sha256((pathlib.Path(directory) / f"step-{step:06}.npz").read_bytes()).hexdigest()


class Training(unittest.TestCase):
    def setUp(self):
        holder = tempfile.TemporaryDirectory()
        self.addCleanup(holder.cleanup)
        self.directory = pathlib.Path(holder.name)

    def test_resumed_and_uninterrupted_runs_end_in_the_same_bytes(self):
        whole = train(self.directory / "whole", "--steps", "60")
        self.assertIn("starting from step 0\n", whole)
        self.assertIn("step 60/60 loss ", whole)
        first = train(self.directory / "cut", "--steps", "30")
        second = train(self.directory / "cut", "--steps", "60")
        self.assertIn("resumed from step 30\n", second)
        self.assertNotIn("step 30/", second)
        self.assertEqual(digest(self.directory / "whole", 60), digest(self.directory / "cut", 60))
        loss = lambda printed: float(printed.split("loss ")[-1].split()[0])
        self.assertLess(loss(second), loss(first.split("step 10/")[0]), "it learns")

    def test_saves_have_a_fair_size_and_old_ones_go(self):
        train(self.directory, "--steps", "50")
        names = sorted(path.name for path in self.directory.iterdir())
        self.assertEqual(names, ["step-000030.npz", "step-000040.npz", "step-000050.npz"])
        self.assertTrue(1 << 20 <= (self.directory / names[0]).stat().st_size <= 4 << 20)

    def test_a_stop_saves_first_and_changes_nothing(self):
        more = ("--steps", "1000000", "--sleep", "0.01", "--print-every", "1")
        program = subprocess.Popen(command(self.directory / "stopped", *more), env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
        for line in program.stdout:
            if line.startswith("step 12/"):
                program.send_signal(signal.SIGTERM)
                break
        rest = program.communicate(timeout=60)[0]
        self.assertEqual(program.returncode, 143)
        step = int(rest.split("stopped at step ")[1])
        train(self.directory / "whole", "--steps", str(step))
        self.assertEqual(digest(self.directory / "stopped", step), digest(self.directory / "whole", step))


if __name__ == "__main__":
    unittest.main()
