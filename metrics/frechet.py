"""The Fréchet distance between two sets of features, the one place where it is computed.

d^2 = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr sqrt(S1 S2) (Dowson & Landau 1982; as FID, Heusel et al.
2017, arXiv 1706.08500), with unbiased covariances, in float64, and never through a matrix square
root.
"""

import torch
from torch import Tensor


def _moments(features: Tensor, what: str) -> tuple[Tensor, Tensor]:
    """Mean (d,) and centred features / sqrt(n - 1), whose Gram matrix is the covariance."""
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(
            f"{what}: features must be (N, d) with N >= 2, got {tuple(features.shape)}"
        )
    features = features.detach().to("cpu", torch.float64)
    if not features.isfinite().all():
        raise ValueError(f"{what}: features hold NaN or infinity")
    mean = features.mean(0)
    return mean, (features - mean) / (len(features) - 1) ** 0.5


def _cross_trace(a: Tensor, b: Tensor) -> Tensor:
    """tr sqrt(A^T A B^T B) for centred, scaled features (N, d), (M, d)."""
    if min(len(a), len(b)) < a.shape[1]:
        return torch.linalg.svdvals(a @ b.T).sum()  # the nuclear norm of A B^T, exactly
    first, second = a.T @ a, b.T @ b
    root, failed = torch.linalg.cholesky_ex(first)
    if failed:  # a dead feature: the covariance is singular
        values, vectors = torch.linalg.eigh(first)
        root = vectors * values.clamp(min=0).sqrt()
    return torch.linalg.eigvalsh(root.T @ second @ root).clamp(min=0).sqrt().sum()


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """Squared Fréchet distance of Gaussians fitted to features (N, d) and (M, d); at least 0, up to
    rounding.

    Call it FID only for the FID Inception-v3's features. Raises ValueError for fewer than two rows,
    differing d, or NaN.
    """
    mean1, a = _moments(real, "real")
    mean2, b = _moments(fake, "fake")
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"features of {a.shape[1]} and {b.shape[1]} dimensions cannot be compared")
    distance = (
        (mean1 - mean2).square().sum()
        + a.square().sum()
        + b.square().sum()
        - 2 * _cross_trace(a, b)
    )
    return distance.clamp(min=0).item()


def frechet_bias(features: Tensor, n: int, m: int, labels: Tensor | None = None) -> float:
    """What two samples of n and m draws from the *one* distribution behind `features` (N, d) would
    read: C (1/n + 1/m).

    C = tr W + 1/2 sum_ij V_ij / (l_i + l_j) in the basis of the covariance's eigenvalues l: the
    expansion to second order of the expected distance, where W is the covariance of one draw about
    its mean and V_ij the variance of the product of its i-th and j-th coordinate. For a Gaussian
    V_ij = l_i l_j (1 + delta_ij), DESIGN's formula; here both are measured, because features are
    not Gaussian. With `labels` (N,) the samples have equally many draws of each class, and only
    what varies within a class counts. What finite N takes off C is put back by the difference to
    its halves (Quenouille 1956). Raises ValueError below four rows a class.
    """
    labels = torch.zeros(len(features), dtype=torch.long) if labels is None else labels
    half = torch.zeros(len(features), dtype=torch.bool)
    for k in labels.unique():
        rows = (labels == k).nonzero()[:, 0]
        if len(rows) < 4:
            raise ValueError(
                f"frechet_bias: {len(rows)} rows of a class say too little about the spread within it"
            )
        half[rows[::2]] = True
    halves = [_spread(features[part], labels[part]) for part in (half, ~half)]
    return (2 * _spread(features, labels) - sum(halves) / 2) * (1 / n + 1 / m)


def _spread(features: Tensor, labels: Tensor) -> float:
    """C of `frechet_bias` as these rows have it."""
    _, scaled = _moments(features, "features")
    values, basis = torch.linalg.eigh(scaled.T @ scaled)
    kept = values > values.max() * 1e-12
    values, x = values[kept], scaled @ basis[:, kept] * (len(scaled) - 1) ** 0.5
    within, products = torch.zeros_like(values), values.new_zeros(len(values), len(values))
    for part in (x[labels == k] for k in labels.unique()):
        count = len(part)
        share = count / len(x) * count / (count - 1)
        within += share * part.var(0, correction=0)
        products += share * (
            part.square().T @ part.square() / count - (part.T @ part / count).square()
        )
    return (within.sum() + (products / (values[:, None] + values)).sum() / 2).item()


def _redrawn(count: int, labels: Tensor | None, rng: torch.Generator) -> Tensor:
    """Rows drawn with replacement, within each class where labels (N,) are given: what was balanced
    stays balanced.
    """
    if labels is None:
        return torch.randint(count, (count,), generator=rng)
    rows = torch.empty(count, dtype=torch.long)
    for k in labels.unique():
        own = (labels == k).nonzero()[:, 0]
        rows[own] = own[torch.randint(len(own), (len(own),), generator=rng)]
    return rows


def bootstrap(
    real: Tensor,
    fake: Tensor,
    *,
    rng: torch.Generator,
    labels: tuple[Tensor | None, Tensor | None] = (None, None),
    repeats: int = 20,
) -> Tensor:
    """Distances (repeats,) of resamples of both sets; `labels` are of real and fake rows where
    these are class-balanced by design.

    Their standard deviation is that of the distance, above it by up to a factor of two very near
    the floor; the values themselves lie too high, so no percentiles are offered. With the same
    `rng` state and labels, two sets of samples are resampled alike: the standard deviation of the
    differences is that of a paired comparison, in which what the samples share cancels.
    """
    values = []
    for _ in range(repeats):
        rows, columns = (
            _redrawn(len(x), own, rng) for x, own in zip((real, fake), labels, strict=True)
        )
        values.append(frechet_distance(real[rows], fake[columns]))
    return torch.tensor(values, dtype=torch.float64)


def frechet_infinity(real: Tensor, fake: Tensor, *, rng: torch.Generator, sizes: int = 15) -> float:
    """The distance extrapolated to infinitely many samples of both sets (Chong & Forsyth 2020,
    arXiv 1911.07023).

    A line through the distances of random subsets against 1/size, from half of the smaller set to
    all of it; secondary to the plain value. Raises ValueError below 2 d rows, where the relation is
    not a line.
    """
    n = min(len(real), len(fake))
    if n < 2 * real.shape[1]:
        raise ValueError(
            f"frechet_infinity: needs twice as many rows as the {real.shape[1]} dimensions, got {n}"
        )
    counts = torch.linspace(n / 2, n, sizes).round().long()
    pick = lambda x, k: x[torch.randperm(len(x), generator=rng)[:k]]  # noqa: E731
    read = torch.tensor(
        [frechet_distance(pick(real, k), pick(fake, k)) for k in counts.tolist()],
        dtype=torch.float64,
    )
    design = torch.stack([torch.ones(sizes), 1 / counts], dim=1).double()
    return torch.linalg.lstsq(design, read[:, None]).solution[0].item()
