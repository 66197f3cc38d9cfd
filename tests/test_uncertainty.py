"""The errors and floors that stand beside the numbers: do they cover what they say, on Gaussians
whose truth is known?
"""

import time
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.linalg
import torch
from conftest import composed

from benchmarks.analysis.differences import difference, over_seeds
from benchmarks.frozen.autoencoder import load_latent_space
from benchmarks.frozen.extractors import load_extractors
from benchmarks.images.dataset import Split, load_dataset
from benchmarks.stages.floors import PROBE_IMAGES, measure_floors
from benchmarks.stages.score import Evaluator
from metrics.features import extract
from metrics.frechet import bootstrap, frechet_bias, frechet_distance, frechet_infinity
from metrics.kid import kid
from metrics.memorisation import RATE, memorisation
from metrics.per_class import frechet_per_class, kid_per_class
from metrics.probe import fit_probe


def gaussian(n: int, d: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + shift


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_two_jackknife_errors_of_kid_cover_the_truth_nineteen_times_in_twenty():
    """The truth is the mean of 1500 readings, itself within 0.05 errors; 500 readings tell 0.954
    from it to +-0.028 (three SE).
    """
    read = [kid(gaussian(80, 8, 2 * i), gaussian(120, 8, 2 * i + 1, 0.2)) for i in range(1500)]
    truth = np.mean([k.distance for k in read])
    covered = np.mean([abs(k.distance - truth) < 2 * k.error for k in read[:500]])
    assert 0.954 - 0.028 - 0.02 < covered < 0.954 + 0.028, (
        "0.02: the error is itself estimated, and the tails are longer than normal"
    )


def test_kid_jackknife_is_the_one_of_the_definition():
    a, b = gaussian(12, 5, 0), gaussian(9, 5, 1, 0.3)
    left_out = [
        [kid(a[torch.arange(12) != i], b).distance for i in range(12)],
        [kid(a, b[torch.arange(9) != i]).distance for i in range(9)],
    ]
    variance = sum(
        (len(x) - 1) / len(x) * np.sum((np.array(x) - np.mean(x)) ** 2) for x in left_out
    )
    assert kid(a, b).error == pytest.approx(variance**0.5, rel=1e-6)


def test_kid_per_class_sees_which_class_is_off():
    labels = torch.arange(300) % 3
    fake = gaussian(300, 8, 1) + 1.5 * (labels == 2)[:, None]
    found = kid_per_class(gaussian(300, 8, 0), labels, fake, labels)
    assert found[2].distance > 10 * found[2].error and all(
        abs(found[k].distance) < 4 * found[k].error for k in (0, 1)
    )
    distances = frechet_per_class(gaussian(300, 8, 0), labels, fake, labels)
    assert max(distances, key=distances.get) == 2 and set(distances) == {0, 1, 2}
    assert frechet_per_class(gaussian(30, 8, 0), labels[:30], fake[:30], labels[:30]) == {}, (
        "ten rows of eight dimensions are mostly bias"
    )
    assert set(kid_per_class(gaussian(300, 8, 0), labels, fake[:5], labels[:5])) == set(), (
        "two rows of a class say nothing"
    )


def test_two_bootstrap_deviations_cover_the_expected_distance_at_this_n():
    """FD is biased, so what its error covers is the mean over samples of this size. 20 resamples: t
    with 19 degrees, 0.94; of 200 readings three standard errors are 0.05.
    """
    d, n = 6, 200
    pairs = [(gaussian(n, d, 2 * i), gaussian(n, d, 2 * i + 1, 0.4)) for i in range(1000)]
    read = [frechet_distance(*pair) for pair in pairs]
    errors = [bootstrap(*pair, rng=rng(i)).std().item() for i, pair in enumerate(pairs[:200])]
    covered = [
        abs(value - np.mean(read)) < 2 * error for value, error in zip(read, errors, strict=False)
    ]
    assert 0.89 <= np.mean(covered) <= 0.99
    assert np.mean(errors) == pytest.approx(np.std(read), rel=0.15)


def balanced(n: int, seed: int, shift: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Ten classes far apart, as many rows of each."""
    labels = torch.arange(n) % 10
    return 3 * gaussian(10, 6, 7)[labels] + gaussian(n, 6, seed, shift), labels


def test_errors_of_class_balanced_sets_leave_out_what_balance_takes_away():
    """Of 300 repetitions the true spread has 4% SE; the estimates are means of 20."""
    sets = [(*balanced(300, 2 * i), *balanced(300, 2 * i + 1, 0.5)) for i in range(300)]
    for measure, guess in (
        (
            frechet_distance,
            lambda a, k, b, m: bootstrap(a, b, rng=rng(), labels=(k, m)).std().item(),
        ),
        (lambda a, b: kid(a, b).distance, lambda a, k, b, m: kid(a, b, labels=(k, m)).error),
    ):
        true = np.std([measure(a, b) for a, _, b, _ in sets], ddof=1)
        assert np.mean([guess(*one) for one in sets[:20]]) == pytest.approx(true, rel=0.2)
    plain = np.mean([bootstrap(a, b, rng=rng()).std().item() for a, _, b, _ in sets[:20]])
    assert plain > 1.3 * np.std([frechet_distance(a, b) for a, _, b, _ in sets]), (
        "unlike a bootstrap that forgets the classes"
    )


def test_alike_bootstraps_give_the_spread_of_differences_and_less_of_it_where_samples_share_noise():
    """True spread over 200 repetitions (5% SE); mean of 20 estimates of 20 resamples (4% SE)."""
    d, n = 6, 200

    def one(i: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        shared = gaussian(n, d, 3 * i + 1)
        return (
            gaussian(n, d, 3 * i),
            shared + 0.4,
            0.9 * shared + 0.3 * gaussian(n, d, 3 * i + 2) + 0.5,
        )

    true = np.std(
        [frechet_distance(r, a) - frechet_distance(r, b) for r, a, b in map(one, range(200))],
        ddof=1,
    )
    found, apart = [], []
    for i, (real, a, b) in enumerate(one(1000 + i) for i in range(20)):
        redrawn = [bootstrap(real, x, rng=rng(i)) for x in (a, b)]
        records = [
            {
                "row": {"fd": 1.0, "fd_std": x.std().item(), "num_samples": n},
                "diagnostics": {"bootstrap": x.tolist()},
            }
            for x in redrawn
        ]
        found.append(difference(*records).error)
        records[1]["sampling_seed"] = 1
        apart.append(difference(*records).error)
        assert difference(*records).basis == "two bootstraps, unpaired"
    assert np.mean(found) == pytest.approx(true, rel=0.2) and np.mean(found) < 0.8 * np.mean(apart)


def test_verdicts_of_differences():
    record = lambda fd, sd: {"row": {"fd": fd, "fd_std": sd, "num_samples": 9}}  # noqa: E731
    said = [
        difference(record(5.0, a), record(fd, b)).verdict
        for fd, a, b in ((4.0, 0.1, 0.1), (6.0, 0.1, 0.1), (5.1, 0.1, 0.1), (50.0, 0.1, None))
    ]
    assert said == ["better", "worse", "tie", "unknown"]
    assert difference(record(5.0, 0.0), record(5.0, 0.0)).verdict == "tie"
    assert difference(record(5.0, 0.4), record(5.1, 0.4)).verdict == "inconclusive", (
        "it could not have shown a fifth of 5"
    )


def test_verdicts_over_seeds():
    two = over_seeds([5.0, 5.0], [6.0, 6.2], margin=1.0)
    assert two.value == pytest.approx(1.1) and two.error == pytest.approx(0.1)
    assert two.verdict == "inconclusive", (
        "Student's limit for two is 12.7 errors: nothing below 1.27 could have been seen"
    )
    assert over_seeds([5.0, 5.0, 5.0], [6.0, 6.2, 6.1], margin=1.0).verdict == "worse"
    assert over_seeds([6.0, 6.2, 6.1], [5.0, 5.0, 5.0], margin=1.0).verdict == "better"
    assert over_seeds([5.0, 5.1, 5.3], [5.05, 5.05, 5.35], margin=1.0).verdict == "tie"
    for wide in ([0.0, 1.0, 3.0], [0.5, 2.0, 6.0]):
        assert over_seeds([0.0] * 3, wide, margin=1.0).verdict == "inconclusive"


@pytest.mark.parametrize("d, n, m", [(32, 128, 128), (32, 128, 400)])
def test_the_analytic_floor_is_within_five_percent_at_four_times_the_dimension(d, n, m):
    """Of 120 readings the mean has 1% SE; the floor is computed as the benchmark does, from M
    reference rows alone (mean of 10).
    """
    scale = torch.linspace(0.3, 2, d)
    read = np.mean(
        [
            frechet_distance(gaussian(n, d, 2 * i) * scale, gaussian(m, d, 2 * i + 1) * scale)
            for i in range(120)
        ]
    )
    floor = np.mean([frechet_bias(gaussian(m, d, 5000 + i) * scale, n, m) for i in range(10)])
    assert floor == pytest.approx(read, rel=0.05)


def classed(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ten classes far apart, as many rows of each, heavy tails within."""
    labels, x = torch.arange(n) % 10, gaussian(n, 16, seed)
    return 2 * gaussian(10, 16, 7)[labels] + x * x.abs(), labels


def test_the_analytic_floor_knows_of_balanced_classes_and_heavy_tails():
    read = np.mean(
        [frechet_distance(classed(400, 2 * i)[0], classed(600, 2 * i + 1)[0]) for i in range(100)]
    )
    own = [
        frechet_bias(x, 400, 600, labels)
        for x, labels in (classed(600, 9000 + i) for i in range(10))
    ]
    assert np.mean(own) == pytest.approx(read, rel=0.05)
    assert frechet_bias(classed(20_000, 1)[0], 400, 600) > 1.2 * read, (
        "without labels it counts what balance takes away"
    )
    with pytest.raises(ValueError, match="too little"):
        frechet_bias(gaussian(30, 4, 0), 10, 10, torch.arange(30) // 3)


def test_the_extrapolated_distance_is_near_the_true_one_and_wants_rows_enough():
    d, shift = 8, 0.3
    read = [
        frechet_infinity(gaussian(400, d, 2 * i), gaussian(400, d, 2 * i + 1, shift), rng=rng(i))
        for i in range(60)
    ]
    plain = np.mean(
        [
            frechet_distance(gaussian(400, d, 2 * i), gaussian(400, d, 2 * i + 1, shift))
            for i in range(60)
        ]
    )
    truth = d * shift**2
    assert (
        abs(np.mean(read) - truth) < 3 * np.std(read) / 60**0.5
        and abs(np.mean(read) - truth) < (plain - truth) / 2
    )
    with pytest.raises(ValueError, match="twice as many"):
        frechet_infinity(gaussian(15, d, 0), gaussian(400, d, 1), rng=rng())


TRAIN, REFERENCE, HELD_OUT = gaussian(3000, 24, 0), gaussian(800, 24, 1), gaussian(400, 24, 2)


@pytest.mark.parametrize(
    "samples, flagged",
    [
        (TRAIN[:400], True),
        (TRAIN[:400] + 0.1 * gaussian(400, 24, 3), True),
        (torch.cat([TRAIN[:40], gaussian(360, 24, 4)]), True),
        (gaussian(400, 24, 5), False),
        (0.3 * gaussian(400, 24, 6), False),
        (gaussian(400, 24, 7, 2.0), False),
    ],
    ids=["copies", "near copies", "a tenth copies", "held-out pictures", "collapsed", "far off"],
)
def test_copies_are_flagged_and_nothing_else_is(samples, flagged):
    found = memorisation(samples, train=TRAIN, reference=REFERENCE, held_out=HELD_OUT)
    assert found.flagged == flagged, found.fraction
    if flagged:
        assert (
            found.fraction > 0.09
            and found.nearest[:40].equal(torch.arange(40))
            and found.closeness[:40].max() < 0.5
        )


def test_pictures_that_cannot_be_copies_are_called_copies_at_the_stated_rate():
    """40 sets of 400 held-out rows against 40 others: the mean share is RATE within three binomial
    errors of both.
    """
    shares = [
        memorisation(
            gaussian(400, 24, 100 + i),
            train=TRAIN,
            reference=REFERENCE,
            held_out=gaussian(400, 24, 200 + i),
        ).fraction
        for i in range(40)
    ]
    assert np.mean(shares) == pytest.approx(
        RATE, abs=3 * (RATE / 400 * 2 / 40) ** 0.5 + 1 / 400
    )  # 1/400: a quantile of 400 is between two rows


def test_copies_are_flagged_where_some_held_out_pictures_are_in_the_training_set_too():
    double = torch.cat([TRAIN[:8], HELD_OUT[8:]])
    copies, others = (
        memorisation(x, train=TRAIN, reference=REFERENCE, held_out=double)
        for x in (TRAIN[100:500], gaussian(400, 24, 9))
    )
    assert (
        copies.flagged
        and copies.fraction == 1
        and not others.flagged
        and others.expected == pytest.approx(0.02)
    )


def test_training_pictures_through_the_shared_latents_are_flagged_as_copies(tmp_path):
    """What a network that learnt its latents by heart would draw; held-out pictures through the
    same latents are not flagged.
    """
    cfg = composed("data.image_size=32", "data.train_images=400", "data.reference_images=200")
    dataset = load_dataset(cfg.data, num_samples=200, cache=tmp_path)
    cpu = torch.device("cpu")
    space = load_latent_space(cfg.autoencoder, dataset, cache=tmp_path, device=cpu)
    (local,) = load_extractors(cfg.features)

    def through(split: Split) -> torch.Tensor:
        latents = space.autoencoder.encode(torch.from_numpy(split[:200]))
        return space.autoencoder.decode(latents)

    sets = {
        name: extract(local.net, getattr(dataset, name))
        for name in ("train", "reference", "holdout")
    }
    known = dict(train=sets["train"], reference=sets["reference"], held_out=sets["holdout"])
    copies, others = (
        memorisation(extract(local.net, through(split).numpy()), **known)
        for split in (dataset.train, dataset.holdout)
    )
    assert copies.flagged and copies.fraction > 0.3, copies.fraction
    assert not others.flagged, others.fraction


@pytest.mark.alone
@pytest.mark.parametrize("n, times, equal", [(5000, 5, 1e-4), (1000, 20, 1e-3)])
def test_the_distance_is_many_times_faster_than_a_matrix_square_root(n, times, equal):
    """At d = 2048, covariances included on both sides."""
    real, fake = (
        gaussian(n, 2048, seed, shift).double().relu().numpy()
        for seed, shift in ((0, 0.0), (1, 0.1))
    )
    sets, took = [torch.from_numpy(x) for x in (real, fake)], []
    for _ in range(3):  # the best of three: the machine may be busy, and has never done this before
        started = time.perf_counter()
        mine = frechet_distance(*sets)
        took.append(time.perf_counter() - started)
    started = time.perf_counter()
    covariances = [np.cov(x, rowvar=False) for x in (real, fake)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
    theirs = (
        ((real.mean(0) - fake.mean(0)) ** 2).sum()
        + sum(map(np.trace, covariances))
        - 2 * np.trace(root).real
    )
    by_scipy = time.perf_counter() - started
    assert mine == pytest.approx(theirs, rel=equal)
    print(f"d=2048, N={n}: {min(took):.2f} s, scipy {by_scipy:.2f} s")
    assert by_scipy > times * min(took)


@pytest.mark.alone
def test_all_scores_of_five_thousand_samples_take_less_than_half_a_minute():
    """256 features, 10,000 training and 5,000 reference pictures, 9 classes (555 pictures each,
    enough for a distance within each).

    Everything once the features are there: floors, their analytic part and the probe, done once for
    a data set, and what each record holds.
    """
    sizes = {"reference": 5000, "train": 10_000} | dict.fromkeys(
        ("holdout", "floor_autoencoder", "floor_codebook", "floor_colour"), 5000
    )
    sets = {
        name: gaussian(n, 256, seed, 0.1 * seed) for seed, (name, n) in enumerate(sizes.items())
    }
    labels, samples = torch.arange(5000) % 9, gaussian(5000, 256, 9, 0.1)
    started = time.perf_counter()
    probe = fit_probe(sets["train"][:PROBE_IMAGES], torch.arange(PROBE_IMAGES) % 9, 9)
    known = measure_floors(sets, probe, labels)
    once = time.perf_counter() - started
    of_judge = {name: sets[name] for name in ("reference", "holdout", "train")}
    judge = Evaluator(
        SimpleNamespace(name="made-up", key="made-up"),
        torch.device("cpu"),
        reference_labels=labels,
        probe=probe,
        **of_judge,
    )
    found = judge.of_features(samples, labels)
    took = time.perf_counter() - started
    print(f"all scores of 5,000 x 256 features: {took:.1f} s, {once:.1f} s of it once for the data")
    assert {
        "fd_floor_analytic",
        "fd_floor_real",
        "fd_floor_autoencoder",
        "fd_floor_codebook",
        "fd_anchor",
        "label_accuracy_real",
    } <= known.keys()
    assert {
        "fd",
        "fd_std",
        "kid",
        "kid_stderr",
        "precision",
        "coverage",
        "label_accuracy",
        "memorised_fraction",
    } <= found.row.keys()
    assert {
        "fd_infinity",
        "kid_per_class",
        "memorised_expected",
    } <= found.diagnostics.keys() and "fd_train" in found.selection
    assert len(found.diagnostics["fd_per_class"]) == 9
    assert took < 30
