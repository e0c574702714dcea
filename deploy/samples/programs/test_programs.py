"""The programs of the samples by themselves: a run that was cut and resumed ends as one that was not.

Run with the samples' Python: python -m unittest discover -s deploy/samples/programs
"""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import unittest

HERE = pathlib.Path(__file__).parent
# Another number of threads adds up in another order.
ENVIRONMENT = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}


def run(command, **more):
    result = subprocess.run(command, env={**ENVIRONMENT, **more}, capture_output=True, text=True, timeout=120)
    if result.returncode:
        raise AssertionError(f"{command} ended with {result.returncode}:\n{result.stdout}\n{result.stderr}")
    return result.stdout


class InDirectory(unittest.TestCase):
    def setUp(self):
        holder = tempfile.TemporaryDirectory()
        self.addCleanup(holder.cleanup)
        self.directory = pathlib.Path(holder.name)


class JaxOrbax(InDirectory):
    def command(self, name, *more):
        return [sys.executable, HERE / "jax-orbax/train.py", "--out", self.directory / name, *more]

    def test_resumed_and_uninterrupted_runs_end_in_the_same_weights(self):
        whole = run(self.command("whole", "--steps", "60"))
        self.assertIn("starting from step 0\n", whole)
        run(self.command("cut", "--steps", "40"))
        second = run(self.command("cut", "--steps", "60"))
        self.assertIn("resumed from step 40\n", second)
        weights = lambda printed: re.search(r"weights (\S+)", printed)[1]
        self.assertEqual(weights(whole), weights(second))
        loss = lambda printed, step: float(re.search(rf"step {step}/60 loss (\S+)", printed)[1])
        self.assertLess(loss(second, 60), loss(whole, 5), "it learns")
        names = sorted(path.name for path in (self.directory / "whole").iterdir())
        self.assertEqual(names, ["20", "40", "60"], "what the pattern of the sample takes")

    def test_a_stop_saves_and_half_a_save_is_no_obstacle(self):
        program = subprocess.Popen(self.command("out", "--steps", "100000", "--sleep", "0.01"), env=ENVIRONMENT,
                                   stdout=subprocess.PIPE, text=True)
        for line in program.stdout:
            if line.startswith("step 15/"):
                program.send_signal(signal.SIGTERM)
                break
        rest = program.communicate(timeout=60)[0]
        self.assertEqual(program.returncode, 143, rest)
        step = int(rest.split("stopped at step ")[1])
        half = self.directory / "out" / f"{step + 20}.orbax-checkpoint-tmp"
        (half / "default").mkdir(parents=True)
        second = run(self.command("out", "--steps", str(step + 5)))
        self.assertIn(f"resumed from step {step}\n", second)


class Gang(InDirectory):
    size = 4

    def start(self, name, *more):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        gang = []
        for rank in range(self.size):
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(self.size)}
            out = self.directory / f"{name}-{rank}"
            command = [sys.executable, HERE / "gang/train.py", "--out", out, *more]
            gang.append(subprocess.Popen(command, env={**ENVIRONMENT, **place}, stdout=subprocess.PIPE,
                                         stderr=subprocess.STDOUT, text=True))
        return gang

    def end(self, gang):
        return [(process.communicate(timeout=60)[0], process.returncode) for process in gang]

    def restore_everywhere(self, name):
        """What Tradewind does before a gang begins: every rank gets the newest save of rank zero."""
        newest = sorted((self.directory / f"{name}-0").glob("step-*.npz"))[-1]
        for rank in range(1, self.size):
            target = self.directory / f"{name}-{rank}"
            target.mkdir(exist_ok=True)
            (target / newest.name).write_bytes(newest.read_bytes())

    def weights(self, ended):
        self.assertEqual([code for _, code in ended], [0] * self.size, ended)
        found = {re.search(r"finished, weights (\w+)", printed)[1] for printed, _ in ended}
        self.assertEqual(len(found), 1, "all have the same weights")
        return found

    def test_all_have_equal_weights_and_a_resumed_gang_the_same_again(self):
        whole = self.end(self.start("whole", "--steps", "60"))
        self.end(self.start("cut", "--steps", "40"))
        self.assertFalse((self.directory / "cut-1").exists(), "only rank zero saves")
        self.restore_everywhere("cut")
        second = self.end(self.start("cut", "--steps", "60"))
        self.assertIn("rank 3 of 4: resumed from step 40\n", second[3][0])
        self.assertEqual(self.weights(whole), self.weights(second))
        loss = lambda printed, step: float(re.search(rf"step {step}/60 loss (\S+)", printed)[1])
        self.assertLess(loss(second[0][0], 60), loss(whole[0][0], 5), "it learns")

    def test_every_rank_counts(self):
        four = self.weights(self.end(self.start("four", "--steps", "20")))
        self.size = 3
        self.assertNotEqual(four, self.weights(self.end(self.start("three", "--steps", "20"))))

    def test_one_that_is_told_to_stop_stops_all_after_the_same_step(self):
        gang = self.start("out", "--steps", "100000", "--sleep", "0.01")
        for line in gang[0].stdout:
            if line.startswith("step 10/"):
                break
        gang[2].send_signal(signal.SIGTERM)
        ended = self.end(gang)
        self.assertEqual([code for _, code in ended], [143] * 4, ended)
        self.assertEqual(len({re.search(r"stopped at step (\d+)", printed)[1] for printed, _ in ended}), 1)

    def test_a_lost_rank_ends_the_others_with_an_error(self):
        gang = self.start("out", "--steps", "100000", "--sleep", "0.01")
        for line in gang[0].stdout:
            if line.startswith("step 10/"):
                break
        gang[3].kill()
        ended = self.end(gang)
        self.assertEqual([code for _, code in ended], [1, 1, 1, -9])

    def test_ranks_that_begin_at_different_steps_refuse_to_train(self):
        self.end(self.start("out", "--steps", "40"))
        ended = self.end(self.start("out", "--steps", "60"))
        self.assertEqual([code for _, code in ended], [1] * 4)
        self.assertIn("rank 0 begins at step 40, others elsewhere", ended[0][0])


class SdScripts(InDirectory):
    def command(self, name, steps, *more):
        program = [sys.executable, HERE / "lora-sd-scripts/bin/accelerate", "launch", "sdxl_train_network.py"]
        return [*program, "--output_dir", self.directory / name, "--output_name=portrait", "--network_dim=2", "--seed=1",
                "--learning_rate=0.01", "--save_state", "--save_every_n_steps=25", "--save_last_n_steps_state=50",
                f"--max_train_steps={steps}", *more]

    def test_the_layout_is_that_of_sd_scripts_and_a_resumed_run_ends_the_same(self):
        run(self.command("whole", 110))
        names = sorted(path.name for path in (self.directory / "whole").glob("*-state"))
        self.assertEqual(names, ["portrait-state", *(f"portrait-step{n:08}-state" for n in (50, 75, 100))])
        run(self.command("cut", 60))
        state = self.directory / "cut" / "portrait-step00000050-state"
        printed = run(self.command("cut", 110, "--skip_until_initial_step", "--resume", state))
        self.assertIn("resume training from local state", printed)
        final = lambda name: (self.directory / name / "portrait.safetensors").read_bytes()
        self.assertEqual(final("whole"), final("cut"))

    def test_it_needs_a_token_to_upload_and_refuses_what_it_does_not_know(self):
        with self.assertRaisesRegex(AssertionError, "no token"):
            run(self.command("out", 30, "--huggingface_repo_id=me/x"), HF_TOKEN="")
        self.assertIn("to me/x", run(self.command("out", 30, "--huggingface_repo_id=me/x"), HF_TOKEN="t"))
        with self.assertRaisesRegex(AssertionError, "unrecognized arguments"):
            run(self.command("out", 30, "--save_stat"))


if __name__ == "__main__":
    unittest.main()
