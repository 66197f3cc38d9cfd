"""The Fréchet distance between two sets of features, the one place where it is computed.

d^2 = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr sqrt(S1 S2) (Dowson & Landau 1982; of Inception features
the FID, arXiv 1706.08500), with unbiased covariances, in float64, and never through a matrix square
root.
"""

import torch
from torch import Tensor

REPEATS = 200  # of the bootstrap: its standard deviation is then known to one part in twenty


def _moments(features: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Mean (d,) and centred features / sqrt(N - 1), (N, d), whose Gram matrix is the covariance.

    Raises ValueError for features that are not finite or fewer than two rows; `name` says whose.
    """
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(
            f"{name}: features must be (N, d) with N >= 2, got {tuple(features.shape)}"
        )
    features = features.detach().to("cpu", torch.float64)
    if not features.isfinite().all():
        raise ValueError(f"{name}: features hold NaN or infinity")
    mean = features.mean(0)
    return mean, (features - mean) / (len(features) - 1) ** 0.5


def _cross_trace(a: Tensor, b: Tensor) -> Tensor:
    """tr sqrt(S1 S2) for centred, scaled features a (N, d) and b (M, d), of S1 = a^T a, S2 = b^T b.

    S1 S2 has the eigenvalues of R^T S2 R for any root R R^T = S1, which is symmetric.
    """
    # With fewer rows than dimensions the covariances are singular, but a b^T is small.
    if min(len(a), len(b)) < a.shape[1]:
        return torch.linalg.svdvals(a @ b.T).sum()  # the nuclear norm of a b^T, exactly
    return _cross_trace_of_covariances(a.T @ a, b.T @ b)


def _cross_trace_of_covariances(first: Tensor, second: Tensor) -> Tensor:
    """tr sqrt(S1 S2) for covariances (d, d)."""
    root, failed = torch.linalg.cholesky_ex(first)
    if failed:  # a dead feature: the covariance is singular
        values, vectors = torch.linalg.eigh(first)
        root = vectors * values.clamp(min=0).sqrt()
    return torch.linalg.eigvalsh(root.T @ second @ root).clamp(min=0).sqrt().sum()


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """Squared Fréchet distance of Gaussians fitted to features (N, d) and (M, d); at least 0.

    In squared units of the features; exact up to rounding. Biased upwards for small N and M (see
    `frechet_bias`). Call it FID only for the FID Inception-v3's features. Raises ValueError for
    fewer than two rows, differing d, or NaN.
    """
    mean1, a = _moments(real, "real")
    mean2, b = _moments(fake, "fake")
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"features of {a.shape[1]} and {b.shape[1]} dimensions cannot be compared")
    # The sums of squares of the scaled features are the traces of the covariances.
    means_apart = (mean1 - mean2).square().sum()
    trace1, trace2 = a.square().sum(), b.square().sum()
    distance = means_apart + trace1 + trace2 - 2 * _cross_trace(a, b)
    return distance.clamp(min=0).item()  # rounding may leave equal sets a little below 0


def frechet_bias(features: Tensor, n: int, m: int, labels: Tensor | None = None) -> float:
    """The distance that two samples of *one* distribution are expected to have: C (1/n + 1/m).

    n and m are the samples' sizes, `features` (N, d) come from the distribution. In the basis of
    the eigenvectors of the covariance, with eigenvalues l,

        C = tr W + 1/2 sum_ij V_ij / (l_i + l_j)

    is the expansion to second order of the expected distance. W is the covariance of one row about
    its mean, V_ij the variance of the product of its i-th and j-th coordinate. For a Gaussian V_ij
    = l_i l_j (1 + delta_ij); here both are measured, because features are not Gaussian. What a
    finite N takes off C is put back by the difference to its halves (Quenouille 1956).

    With `labels` (N,) the samples have equally many rows of each class, and only what varies within
    a class counts. Raises ValueError below four rows a class.
    """
    if labels is None:
        labels = torch.zeros(len(features), dtype=torch.long)
    # Every other row of each class, so that both halves have all classes.
    in_first_half = torch.zeros(len(features), dtype=torch.bool)
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        if len(rows) < 4:
            raise ValueError(
                f"frechet_bias: {len(rows)} rows of a class say too little "
                "about the spread within it"
            )
        in_first_half[rows[::2]] = True
    # C + c / N + ...: twice the whole less the mean of the halves cancels c / N.
    first = _bias_constant(features[in_first_half], labels[in_first_half])
    second = _bias_constant(features[~in_first_half], labels[~in_first_half])
    whole = _bias_constant(features, labels)
    return (2 * whole - (first + second) / 2) * (1 / n + 1 / m)


def _bias_constant(features: Tensor, labels: Tensor) -> float:
    """C of `frechet_bias` as these rows have it, (N, d) with labels (N,)."""
    _, scaled = _moments(features, "features")
    values, basis = torch.linalg.eigh(scaled.T @ scaled)
    alive = values > values.max() * 1e-12  # dead directions would divide by zero
    values, x = values[alive], scaled @ basis[:, alive] * (len(scaled) - 1) ** 0.5
    within, products = torch.zeros_like(values), values.new_zeros(len(values), len(values))
    for label in labels.unique():
        rows = x[labels == label]
        count = len(rows)
        weight = count / len(x) * count / (count - 1)  # of the class, with Bessel's correction
        mean_product = rows.T @ rows / count
        product_variance = rows.square().T @ rows.square() / count - mean_product.square()
        within += weight * rows.var(0, correction=0)
        products += weight * product_variance
    return (within.sum() + (products / (values[:, None] + values)).sum() / 2).item()


def _strata(count: int, labels: Tensor | None) -> list[Tensor]:
    """The row indices of each class, where labels (count,) are given; else those of all rows."""
    if labels is None:
        return [torch.arange(count)]
    return [(labels == label).nonzero()[:, 0] for label in labels.unique()]


def _resampled_rows(strata: list[Tensor], rng: torch.Generator) -> Tensor:
    """As many row indices, chosen with replacement within each of `strata`, so that what was
    balanced stays balanced.
    """
    chosen = [own[torch.randint(len(own), (len(own),), generator=rng)] for own in strata]
    return torch.cat(chosen)


def bootstrap(
    real: Tensor,
    fake: Tensor,
    *,
    rng: torch.Generator,
    labels: tuple[Tensor | None, Tensor | None] = (None, None),
    repeats: int = REPEATS,
) -> Tensor:
    """Distances (repeats,), float64, of resamples of both sets of features, (N, d) and (M, d).

    `labels` are those of the real and of the fake rows, where these are class-balanced by design.
    The standard deviation of the values is that of the distance, above it by up to a factor of two
    very near the floor. The values themselves lie too high, so percentiles are no interval. With
    the same `rng` state and labels, two sets of samples are resampled alike: the standard deviation
    of the differences is that of a paired comparison, in which what the samples share cancels.
    """
    real, fake = real.detach().to("cpu", torch.float64), fake.detach().to("cpu", torch.float64)
    real_strata, fake_strata = _strata(len(real), labels[0]), _strata(len(fake), labels[1])
    distances = []
    for _ in range(repeats):
        real_rows = _resampled_rows(real_strata, rng)
        fake_rows = _resampled_rows(fake_strata, rng)
        if min(len(real), len(fake)) < real.shape[1]:
            distances.append(frechet_distance(real[real_rows], fake[fake_rows]))
        else:
            distances.append(_resampled_distance(real, real_rows, fake, fake_rows))
    return torch.tensor(distances, dtype=torch.float64)


def _resampled_distance(real: Tensor, real_rows: Tensor, fake: Tensor, fake_rows: Tensor) -> float:
    """The distance of resamples, each of at least as many rows as dimensions."""
    (mean1, first), (mean2, second) = (
        _resampled_moments(real, real_rows),
        _resampled_moments(fake, fake_rows),
    )
    apart = (mean1 - mean2).square().sum() + first.trace() + second.trace()
    return (apart - 2 * _cross_trace_of_covariances(first, second)).clamp(min=0).item()


def _resampled_moments(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,) and covariance (d, d) of x[rows].

    Each row that occurs is taken once, times how often it does: that is two thirds of the work.
    """
    counts = rows.bincount(minlength=len(x)).to(x.dtype)
    seen = counts > 0
    counts, scaled = counts[seen], x[seen]
    mean = counts @ scaled / len(rows)
    # In place, in this function's own copy: new memory twice would double the seconds.
    scaled -= mean
    scaled *= (counts / (len(rows) - 1)).sqrt()[:, None]
    return mean, scaled.T @ scaled


def frechet_infinity(real: Tensor, fake: Tensor, *, rng: torch.Generator, sizes: int = 15) -> float:
    """The distance extrapolated to infinitely many samples of both sets (arXiv 1911.07023).

    A line through the distances of random subsets against 1 / size, for `sizes` sizes from half of
    the smaller set to all of it. Secondary to the plain value. Raises ValueError below 2 d rows,
    where the relation is not a line.
    """
    n = min(len(real), len(fake))
    if n < 2 * real.shape[1]:
        raise ValueError(
            f"frechet_infinity: needs twice as many rows as the {real.shape[1]} dimensions, got {n}"
        )
    counts = torch.linspace(n / 2, n, sizes).round().long()
    distances = []
    for count in counts.tolist():
        real_rows = torch.randperm(len(real), generator=rng)[:count]
        fake_rows = torch.randperm(len(fake), generator=rng)[:count]
        distances.append(frechet_distance(real[real_rows], fake[fake_rows]))
    # d(n) = a + b / n by least squares; a is the distance at infinitely many.
    design = torch.stack([torch.ones(sizes), 1 / counts], dim=1).double()
    values = torch.tensor(distances, dtype=torch.float64)
    return torch.linalg.lstsq(design, values[:, None]).solution[0].item()
