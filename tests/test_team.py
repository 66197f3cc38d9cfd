"""What the processes of a team agree on, divide and refuse, each tried in one process."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import LOSSES, random_batch, rng, tiny

from benchmarks.core import team
from benchmarks.core.errors import BadInput, PeerLost, raise_if_stopped
from benchmarks.core.session import Session
from benchmarks.core.settings import compose
from benchmarks.run import refuse_within_a_team
from benchmarks.stages import prepare

# --- a part of a batch


def own(batch, rows: slice):
    """The batch as a process has it that has read only these images: zeros in place of others."""
    latents, tokens = torch.zeros_like(batch.latents), torch.zeros_like(batch.tokens)
    latents[rows], tokens[rows] = batch.latents[rows], batch.tokens[rows]
    return batch._replace(latents=latents, tokens=tokens)


@pytest.mark.parametrize("family", LOSSES)
def test_the_parts_of_a_batch_have_the_loss_and_gradients_of_the_whole(family):
    model, batch = tiny(family).train(), random_batch(6)
    whole = model(batch, rng=rng())
    (wanted,) = torch.autograd.grad(whole, [next(model.parameters())])
    parts = [model(own(batch, rows), rng=rng(), rows=rows) for rows in (slice(0, 3), slice(3, 6))]
    loss = torch.stack(parts).mean()
    (gradient,) = torch.autograd.grad(loss, [next(model.parameters())])
    torch.testing.assert_close(loss, whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-6)
    assert parts[0] != parts[1], "they are of other images"


def test_a_batch_that_cannot_be_divided_is_refused():
    assert [team.rows(6, part, 3) for part in range(3)] == [slice(0, 2), slice(2, 4), slice(4, 6)]
    with pytest.raises(BadInput, match=r"train.batch=6 .* give a multiple of 4"):
        team.rows(6, 0, 4)


def test_the_processes_of_a_team_are_no_other_programs(monkeypatch):
    monkeypatch.setattr(team, "size", lambda: 3)

    def gather(into, own):
        into[:] = [own, (own[0], 2.0), ("another machine", 50.0)]

    monkeypatch.setattr(team.dist, "all_gather_object", gather)
    watched = SimpleNamespace(own_seconds=lambda: 3.0, share=lambda own: own)
    assert team.of_others(watched) == 5


def test_that_is_said_before_anything_is_computed(monkeypatch):
    monkeypatch.setattr(prepare, "load_dataset", None)
    with pytest.raises(BadInput, match=r"train.batch=32 cannot be divided .* multiple of 3"):
        prepare.prepare(compose("model=dit", "train.batch=32", "train.accumulate=3"))


@pytest.mark.parametrize("count", [0, 1, 7, 25, 64])
def test_images_are_divided_in_whole_batches(count, monkeypatch):
    images = torch.arange(count).repeat_interleave(12).view(count, 3, 2, 2)
    assert team.share_of(images, lambda size: 4) is images, "one process has all"
    monkeypatch.setattr(team, "size", lambda: 3)
    monkeypatch.setattr(team, "scattered", lambda shares: shares)
    assert team.share_of(None, lambda size: 4) is None, "who follows has nothing to divide"
    shares = team.share_of(images, lambda size: 2 * size)
    assert np.array_equal(np.concatenate(shares), images)
    lengths = [len(share) for share in shares]
    assert all(length % 4 == 0 for length in lengths[:2]) and max(lengths) - min(lengths) <= 8


@pytest.mark.parametrize("word", ["hydra/launcher=joblib", "device=cuda:1"])
def test_what_would_start_processes_or_choose_a_card_within_a_team_is_refused(word, monkeypatch):
    refuse_within_a_team([word])  # by itself it may
    monkeypatch.setattr(team, "size", lambda: 2)
    refuse_within_a_team(["model=dit", "device=cuda", "hydra/launcher=basic"])
    with pytest.raises(BadInput, match=word):
        refuse_within_a_team(["model=dit", word])


def test_more_processes_than_cards_are_refused(monkeypatch):
    for name in (*team.NEEDED, "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(BadInput, match="2 processes on this machine and 1 GPU"):
        team.start()


def test_after_an_error_that_the_others_did_not_have_the_run_ends(monkeypatch, capsys):
    """It is raised where it can be recorded; what all would do together next is not begun."""
    monkeypatch.setattr(team, "size", lambda: 2)
    monkeypatch.setattr(team.dist, "broadcast_object_list", lambda *args, **options: None)
    monkeypatch.setattr(team, "session", Session())
    with pytest.raises(ZeroDivisionError):
        team.together(0, lambda own: 1 / own)
    with pytest.raises(SystemExit) as ended_by:
        team.together(1, lambda own: pytest.fail("begun"))
    assert ended_by.value.code == 1
    assert "all 2 processes end" in capsys.readouterr().err


# --- a process that is gone


def test_a_broken_connection_is_no_fault_of_the_training(monkeypatch):
    error = RuntimeError(
        "[/pytorch/gloo/transport/tcp/pair.cc:553] Connection closed by peer [::1]"
    )
    session = Session()
    session.guard(_raise, error)
    assert len(session.errors) == 1, "one process has nobody to lose"
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    with pytest.raises(PeerLost, match="gloo"):
        Session().guard(_raise, error)
    with pytest.raises(PeerLost):
        raise_if_stopped(error)
    session = Session()
    session.guard(_raise, RuntimeError("the sizes of tensors must match"))
    assert len(session.errors) == 1, "anything else is"


def _raise(error: Exception) -> None:
    raise error


def test_who_does_not_see_the_leader_s_files_says_so(monkeypatch):
    """It would make anew what the leader has found."""
    monkeypatch.setattr(team, "size", lambda: 2)
    monkeypatch.setattr(team, "leads", lambda: False)
    with pytest.raises(BadInput, match="cache_dir must be on a disk that all processes share"):
        team.together(None, print)


def test_what_stops_one_process_stops_all(monkeypatch, capsys):
    """Here one that follows: it says why, and the leader is told by the sum of faults."""
    monkeypatch.setattr(team, "session", Session())
    monkeypatch.setattr(team, "rank", lambda: 1)
    assert team.alike(lambda: 3) == 3
    with pytest.raises(BadInput, match="a process could not do as the others"):
        team.alike(lambda: 1 / 0)
    assert "process 1: ZeroDivisionError" in capsys.readouterr().err
    monkeypatch.setattr(team, "rank", lambda: 0)
    with pytest.raises(ZeroDivisionError):
        team.alike(lambda: 1 / 0)
    monkeypatch.setattr(team, "anywhere", lambda fact: True)
    with pytest.raises(BadInput):
        team.alike(lambda: 3)
