"""Reasons to stop: what is noted, and what a run does about it."""

import json
import os
import re
import signal
import weakref
from pathlib import Path

import pytest
import torch
from test_loop import assert_equal_weights
from torch.nn.parallel import DistributedDataParallel

from ddpm_hf.cores import available_cores
from ddpm_hf.diffusion.losses import DiffusionLoss
from ddpm_hf.outputs.checkpoint import list_checkpoints
from ddpm_hf.outputs.folder import OutputFolder
from ddpm_hf.training import optimizer
from ddpm_hf.training.interruption import TIME_UP, Interruption, Stopped, describe_reason, exit_status


def test_a_signal_is_noted_and_the_second_one_acts():
    before = signal.getsignal(signal.SIGTERM)
    with Interruption(None) as interruption:
        assert interruption.reason() == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.reason() == exit_status(interruption.reason()) == 128 + signal.SIGTERM
        assert describe_reason(interruption.reason()) == "SIGTERM"
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_end_of_the_time_is_no_failure():
    with Interruption(0.0) as interruption:
        assert interruption.reason() == TIME_UP and exit_status(TIME_UP) == 0


def test_a_run_that_is_asked_to_stop_saves_and_goes_on_to_the_same_bits(start, train, tmp_path, capsys):
    unbroken = train(output_dir=tmp_path / "unbroken", ending=False)
    for step, reason in ((2, 128 + signal.SIGTERM), (4, TIME_UP)):
        broken = start(output_dir=tmp_path / "broken")
        after_step = broken._after_step

        def interrupt(broken=broken, after_step=after_step, step=step, reason=reason):
            after_step()
            if broken.step == step:
                broken.interruption.reason = lambda: reason

        broken._after_step = interrupt
        with pytest.raises(Stopped) as stop:
            broken.train()
        assert stop.value.status == exit_status(reason)
        line = capsys.readouterr().out.splitlines()[-1]
        assert line == (
            f"stopped by {describe_reason(reason)} at step {step} of 6. "
            f"Run the same command again to continue from checkpoint-{step}."
        )
        assert list_checkpoints(tmp_path / "broken")[-1].name == f"checkpoint-{step}"
    assert_equal_weights(unbroken, train(output_dir=tmp_path / "broken", ending=False))


def test_a_run_ends_well_when_its_time_is_up_and_goes_on(train, tmp_path, capsys):
    reached = [0]
    for _ in range(2):
        with pytest.raises(Stopped) as stop:
            train("--max_train_time", "1", "--max_train_steps", "1000000", "--checkpointing_steps", "1000000")
        assert stop.value.status == 0
        *_, before_last, last = capsys.readouterr().out.splitlines()
        checkpoint = list_checkpoints(tmp_path / "out")[-1]
        reached.append(int(checkpoint.name.partition("-")[2]))
        assert last.startswith(f"stopped by the end of --max_train_time at step {reached[-1]} of ")
        assert last.endswith(f"{checkpoint.name}.") and reached[-1] > reached[-2]
    assert f"checkpoint-{reached[1]} at step {reached[1]} of" in before_last  # it resumed from there


def test_nothing_holds_the_process_group_when_it_is_left(train, monkeypatch):
    """DistributedDataParallel did, and one of twenty exits of two processes then waited for ever."""
    distributed = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in (distributed | {"ACCELERATE_USE_CPU": "true"}).items():
        monkeypatch.setenv(name, value)
    wrapped, alive = [], []
    make, destroy = DistributedDataParallel.__init__, torch.distributed.destroy_process_group

    def remember(self, *args, **kwargs):
        wrapped.append(weakref.ref(self))
        make(self, *args, **kwargs)

    def look(group=None):
        alive.append(wrapped[0]() is not None)
        destroy(group)

    monkeypatch.setattr(DistributedDataParallel, "__init__", remember)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", look)
    train()
    assert alive == [False]


@pytest.mark.processes
def test_two_runs_do_not_share_a_folder(command, tmp_path):
    first = OutputFolder(tmp_path)
    first.lock()
    script = tmp_path / "script.py"
    script.write_text("import sys\nfrom ddpm_hf.outputs.folder import OutputFolder\nOutputFolder(sys.argv[1]).lock()")
    second = command(script, tmp_path)
    assert second.wait() == 1 and f"is in use by process {os.getpid()} on" in second.err.splitlines()[-1]
    first.unlock()
    assert command(script, tmp_path).wait() == 0


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_without_a_finite_gradient_is_skipped_and_counted(start, monkeypatch, fused):
    monkeypatch.setattr(optimizer, "has_fused_optimizer", lambda device: fused)
    trainer = start()
    before = []
    loss = DiffusionLoss.__call__

    def state() -> list[torch.Tensor]:
        """Weights, Adam's moments and its count of steps."""
        adam = [
            value for parameter in trainer.optimizer.state_dict()["state"].values() for value in parameter.values()
        ]
        return [value.clone() for value in (*trainer.plan.system.network.unet.state_dict().values(), *adam)]

    def broken_at_three(self, network, x_0, noise, timesteps, **conditions):
        if trainer.step == 2:
            before.extend(state())
        values = loss(self, network, x_0, noise, timesteps, **conditions)
        return values * float("nan") if trainer.step in (2, 5) else values

    def check_unchanged():
        after_step()
        if trainer.step == 3:
            assert all(map(torch.equal, before, state())) and len(before) == 4 * len(list(trainer.model.parameters()))

    after_step, trainer._after_step = trainer._after_step, check_unchanged
    monkeypatch.setattr(DiffusionLoss, "__call__", broken_at_three)
    trainer.train()
    summary = trainer.output.read_summary()
    losses = [row["loss"] for row in trainer.bookkeeper.table.rows]
    assert [step for step, loss in enumerate(losses) if loss != loss] == [2, 5]
    assert summary["bad_steps"] == 2 and summary["status"] == "finished" and summary["final_loss"] == losses[4]
    assert trainer.bookkeeper.watch.sums.isfinite().all() and trainer.bookkeeper.watch.sums[0].sum() == 4 * 4


# With a report in every third step, four have gone wrong when it is seen.
@pytest.mark.parametrize(("logging_steps", "seen_at", "bad"), [("1", 4, 2), ("3", 6, 4)])
def test_too_many_bad_steps_end_the_run_and_tell_what_was_in_the_batch(
    start, tmp_path, monkeypatch, logging_steps, seen_at, bad
):
    trainer = start("--max_bad_steps", "2", "--checkpointing_steps", "1", "--logging_steps", logging_steps)
    loss = DiffusionLoss.__call__
    broken = lambda *a, **k: loss(*a, **k) * (float("inf") if trainer.step >= 2 else 1.0)  # noqa: E731
    monkeypatch.setattr(DiffusionLoss, "__call__", broken)
    with pytest.raises(FloatingPointError, match=f"{bad} steps in a row.*bad_batch.json"):
        trainer.train()
    record = json.loads((tmp_path / "out" / "bad_batch.json").read_text())
    assert record["step"] == seen_at and len(record["rows"]) == len(record["timesteps"]) == len(record["losses"]) == 4
    assert [path.name for path in list_checkpoints(tmp_path / "out")] == ["checkpoint-1", "checkpoint-2"]


@pytest.mark.processes
@pytest.mark.parametrize(
    ("number", "processes", "launched", "reason"),
    [
        (signal.SIGTERM, 1, False, "SIGTERM"),
        # One process: its launcher dies without passing the signal on. For two, torch's agent within it passes it on.
        (signal.SIGTERM, 1, True, "the end of its launcher"),
        (signal.SIGTERM, 2, True, "SIGTERM"),
        (signal.SIGKILL, 2, False, "the end of its launcher"),
    ],
)
def test_a_run_whose_first_process_gets_a_signal_saves_and_ends(real_run, number, processes, launched, reason):
    run = real_run(processes=processes, launched=launched)
    run.wait_for_steps(3)
    (threads,) = re.findall(rf"{processes} process\(es\) on cpu, (\d+) thread\(s\) each", run.text())
    assert 1 <= int(threads) <= (max(1, available_cores() // processes) if launched else 1)  # fewer on a busy machine
    assert len(run.pids()) == processes
    run.process.send_signal(number)
    assert run.process.wait(60) == 128 + number or run.has_launcher
    run.wait_for(lambda: not run.pids())
    (checkpoint,) = list_checkpoints(run.out)
    assert f"stopped by {reason} at step" in run.text()
    assert f"Run the same command again to continue from {checkpoint.name}." in run.text()
    assert not list(run.out.glob("*.partial"))


@pytest.mark.processes
def test_control_c_reaches_the_workers_too_and_the_step_is_finished(real_run):
    """A terminal sends SIGINT to every process of the job."""
    run = real_run("--dataloader_num_workers", "2")
    run.wait_for_steps(3)
    assert len(run.pids()) == 3
    os.killpg(run.process.pid, signal.SIGINT)
    assert run.process.wait(60) == 128 + signal.SIGINT
    assert "stopped by SIGINT at step" in run.text() and "Traceback" not in run.text()
    assert len(list_checkpoints(run.out)) == 1
    run.wait_for(lambda: not run.pids())


@pytest.mark.processes
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="only Linux tells which signals are caught")
def test_a_second_signal_ends_a_step_that_takes_long(real_run):
    """4,500 micro-steps to a step: the first signal waits for its end, the second one does not."""
    run = real_run("--train_batch_size", "1", "--gradient_accumulation_steps", "4500", images=None)

    def catches_signals() -> bool:
        status = Path(f"/proc/{run.process.pid}/status").read_text()
        caught = int(next(line for line in status.splitlines() if line.startswith("SigCgt")).split()[1], 16)
        return bool(caught >> (signal.SIGTERM - 1) & 1)

    run.wait_for(catches_signals)
    run.process.send_signal(signal.SIGTERM)
    run.wait_for(lambda: not catches_signals())
    assert run.process.poll() is None
    run.process.send_signal(signal.SIGTERM)
    assert run.process.wait(60) == -signal.SIGTERM
    assert not list_checkpoints(run.out) and "stopped by" not in run.text()
