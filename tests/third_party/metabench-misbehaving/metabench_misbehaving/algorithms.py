"""A prototype network, and what becomes of it when its training step goes wrong."""

import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from metabench import Algorithm


class Patient(Algorithm):
    """Prototypes on a linear layer; waits before each step as long as the environment says."""

    name = "patient"
    family = "metric"
    reference = "none"
    summary = "A prototype network that takes its time."
    inference = "inductive"

    def build(self):
        self.linear = torch.nn.LazyLinear(16)
        self.linear(torch.zeros(1, *self.problem.item.shape).flatten(1))

    def training_loss(self, batch, ctx):
        time.sleep(float(os.environ.get("PATIENT_SECONDS", "0")))
        return super().training_loss(batch, ctx)

    def embed(self, items):
        return self.linear(items.data.flatten(2))  # (B, S, 16)

    def adapt(self, support, ctx):
        member = F.one_hot(support.targets.values, support.ways).float()  # (B, S, N)
        sums = torch.einsum("bsn,bsd->bnd", member, self.embed(support.items))
        return sums / member.sum(1).unsqueeze(-1)

    def predict(self, state, queries, ctx):
        return -torch.cdist(self.embed(queries), state)


class Raising(Patient):
    name = "raising"

    def training_loss(self, batch, ctx):
        print("about to raise")
        raise ValueError(f"bad luck at step {ctx.step}")


class NotANumber(Patient):
    name = "not-a-number"

    def training_loss(self, batch, ctx):
        return super().training_loss(batch, ctx) * float("nan")


class Greedy(Patient):
    name = "greedy"

    def training_loss(self, batch, ctx):
        return torch.empty(2**55).sum()


class Exiting(Patient):
    name = "exiting"

    def training_loss(self, batch, ctx):
        sys.exit("usage: train.py --train")


class Endless(Patient):
    name = "endless"

    def training_loss(self, batch, ctx):
        while True:
            time.sleep(0.1)  # so that the tests beside it have a processor


class Leaving(Patient):
    """Its process ends as if all were well."""

    name = "leaving"

    def training_loss(self, batch, ctx):
        os._exit(0)


class Mortal(Patient):
    """Its process is killed, once for each value of MORTAL_MARK, a file that tells of it."""

    name = "mortal"

    def training_loss(self, batch, ctx):
        mark = Path(os.environ["MORTAL_MARK"])
        if ctx.step == 3 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().training_loss(batch, ctx)
