"""`make weights WEIGHTS_DATA=<folder>`: train what every family shares and none trains: autoencoder, codebook, judge.

    python -m benchmarks.weights FOLDER [--only autoencoder codebook judge] [--scale 1.0] [--out DIR]

FOLDER is an image folder (train/<class>/*, val/<class>/*) of 64 px or larger pictures. A tenth as many procedural pictures
are mixed in, from a seed the benchmark never draws. Each stage writes one safetensors file and one line of scores (JSON).
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import data, procedural
from benchmarks.store import atomic_file, write_json
from metrics.features import WEIGHTS as JUDGE_WEIGHTS
from metrics.features import LocalFeatures
from models import codebook
from models.autoencoder import Autoencoder, load_weights, to_float, to_uint8

SIZE = 64
PROCEDURAL_SEED = 7919
CODEBOOK_SIZE = 2048
MODEL_WEIGHTS = Path(__file__).parent.parent / "models" / "weights"


class Config(SimpleNamespace):
    """A namespace with `.get`, as `benchmarks.data.load` reads its settings."""

    def get(self, key: str, default=None):
        return getattr(self, key, default)


def pictures(folder: str, cache: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Training pictures and labels, real and procedural; validation pictures and labels, real; the names of all classes."""
    cfg = Config(source="imagefolder", name="imagefolder", path=folder, image_size=SIZE, reference_images=2000)
    real = data.load(cfg, num_samples=1000, cache=cache)
    drawn, drawn_labels = procedural.draw(len(real.train) // 10, SIZE, seed=PROCEDURAL_SEED)
    train = np.concatenate([real.train[:], drawn])
    labels = np.concatenate([real.train.labels, drawn_labels + len(real.classes)])
    return train, labels, real.reference[:], real.reference.labels, real.classes + procedural.CLASS_NAMES


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 2%, then a cosine to zero."""
    warm = max(1, steps // 50)
    return peak * min(1, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / steps))


def batches(images: np.ndarray, labels: np.ndarray, steps: int, size: int, rng: torch.Generator, device: str):
    """Shuffled, randomly mirrored uint8 batches, epoch after epoch."""
    order = torch.cat([torch.randperm(len(images), generator=rng) for _ in range(math.ceil(steps * size / len(images)))])
    for step in range(steps):
        at = order[step * size : (step + 1) * size].numpy()
        x = torch.from_numpy(images[at]).to(device)
        mirror = torch.rand(size, generator=rng) < 0.5
        x[mirror] = x[mirror].flip(3)
        yield step, x, torch.from_numpy(labels[at]).to(device)


def shrunk(images: Tensor, size: int) -> Tensor:
    return to_uint8(F.interpolate(to_float(images), size=(size, size), mode="bilinear", antialias=True, align_corners=False))


def train_autoencoder(images: np.ndarray, labels: np.ndarray, *, count: int, device: str, batch: int = 32) -> Autoencoder:
    """Every fourth batch at 32 px. Per-picture log MSE is PSNR itself; the noise keeps neighbouring latents alike."""
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(1)
    model = Autoencoder().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-3)
    steps, started = count // batch, time.perf_counter()
    for step, x, _ in batches(images, labels, steps, batch, rng, device):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, 1.5e-3)
        target = to_float(shrunk(x, 32) if step % 4 == 3 else x).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device, torch.bfloat16):
            z = model.net.encoder(target)
            noise = 0.1 * torch.randn(z.shape, generator=rng).to(z)
            out = model.net.decoder(z + noise)
        mse = (out.float() - target).square().mean(dim=(1, 2, 3))
        loss = (mse + 1e-4).log().mean() + 1e-3 * z.float().square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0:
            rate = (step + 1) * batch / (time.perf_counter() - started)
            print(f"autoencoder {step}/{steps} psnr {-10 * math.log10(mse.mean().item() / 4):.2f} dB {rate:.0f} images/s", flush=True)
    return model.eval().requires_grad_(False)


def psnr(a: Tensor, b: Tensor) -> float:
    """Mean over pictures of the peak signal-to-noise ratio of uint8 (B, 3, H, W), in dB."""
    mse = (a.float() - b.float()).square().mean(dim=(1, 2, 3)).clamp(min=1e-3)
    return (10 * (255**2 / mse).log10()).mean().item()


@torch.inference_mode()
def reconstruction_scores(model: Autoencoder, book: codebook.Codebook | None, images: np.ndarray, device: str) -> dict:
    """PSNR through the autoencoder and, where given, through the codebook, at 64 and 32 px."""
    scores = {}
    for size in (SIZE, 32):
        x = shrunk(torch.from_numpy(images[:1000]).to(device), size)
        z = torch.cat([model.encode(part) for part in x.split(100)])
        scores[f"psnr_{size}px"] = psnr(x, torch.cat([model.decode(part) for part in z.split(100)]))
        if book is not None:
            ids = book.tokenize(z)
            rebuilt = book.detokenize(ids)
            scores[f"psnr_codebook_{size}px"] = psnr(x, torch.cat([model.decode(part) for part in rebuilt.split(100)]))
            scores[f"usage_{size}px"] = len(ids.unique()) / book.size
    return {k: round(v, 3) for k, v in scores.items()}


@torch.inference_mode()
def train_codebook(model: Autoencoder, images: np.ndarray, device: str) -> codebook.Codebook:
    """k-means on 160,000 latent vectors: half from 64 px pictures, half from 32 px ones."""
    rng = torch.Generator().manual_seed(2)
    at = torch.randperm(len(images), generator=rng)[:5000].numpy()
    points = []
    for size in (SIZE, 32):
        x = shrunk(torch.from_numpy(images[at]).to(device), size)
        z = torch.cat([model.encode(part) for part in x.split(100)]).permute(0, 2, 3, 1).flatten(0, 2)
        points.append(z[torch.randperm(len(z), generator=rng)[:80_000].to(device)])
    return codebook.fit(torch.cat(points).cpu(), CODEBOOK_SIZE, rng=rng)


def train_judge(images: np.ndarray, labels: np.ndarray, classes: int, *, count: int, device: str, batch: int = 64) -> LocalFeatures:
    """Cross-entropy with smoothed labels; shifts of up to 6 px; every third batch has been through 32 px."""
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(3)
    judge = LocalFeatures(classes).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=1e-3, weight_decay=0.05)
    steps, started, correct = count // batch, time.perf_counter(), 0.0
    for step, x, y in batches(images, labels, steps, batch, rng, device):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, 3e-3)
        dx, dy = torch.randint(0, 13, (2,), generator=rng).tolist()
        x = F.pad(to_float(x), (6, 6, 6, 6), mode="reflect")[:, :, dy : dy + SIZE, dx : dx + SIZE]
        x = shrunk(to_uint8(x), 32) if step % 3 == 2 else to_uint8(x)
        with torch.autocast(device, torch.bfloat16):
            logits = judge.logits(x)
        loss = F.cross_entropy(logits.float(), y, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        correct += (logits.argmax(1) == y).float().mean().item()
        if step % 100 == 99:
            rate = (step + 1) * batch / (time.perf_counter() - started)
            print(f"judge {step}/{steps} loss {loss.item():.3f} accuracy {correct:.1f}% {rate:.0f} images/s", flush=True)
            correct = 0.0
    return judge.eval().requires_grad_(False)


@torch.inference_mode()
def accuracy(judge: LocalFeatures, images: np.ndarray, labels: np.ndarray, device: str) -> float:
    x, y = torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)
    return (torch.cat([judge.logits(part).argmax(1) for part in x.split(250)]) == y).float().mean().item()


def save_judge(judge: LocalFeatures, path: Path, classes: int) -> None:
    from safetensors.torch import save_file

    state = {k: (v.half() if v.is_floating_point() else v).contiguous().cpu() for k, v in judge.state_dict().items()}
    save_file(state, str(path), metadata={"kind": "latentbench-judge", "classes": str(classes)})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--only", nargs="+", choices=["autoencoder", "codebook", "judge"], default=["autoencoder", "codebook", "judge"])
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full recipe's pictures (for trials)")
    parser.add_argument("--out", type=Path, help="write all files there instead of over the shipped ones")
    parser.add_argument("--cache", default=".cache")
    return parser.parse_args()


def main() -> None:
    args = _arguments()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    models_dir, judge_path = args.out or MODEL_WEIGHTS, (args.out / "judge.safetensors") if args.out else JUDGE_WEIGHTS
    try:
        train, labels, held_out, held_out_labels, class_names = pictures(args.folder, args.cache)
    except data.BadInput as error:
        sys.exit(f"latentbench: {error}")
    classes = len(class_names)
    print(f"{len(train)} training pictures, {classes} classes, device {device}", flush=True)

    def report(stage: str, started: float, scores: dict) -> None:
        scores |= {"stage": stage, "seconds": round(time.perf_counter() - started), "device": device}
        write_json(models_dir / f"{stage}.json", scores)
        print(json.dumps(scores), flush=True)

    if "autoencoder" in args.only:
        started = time.perf_counter()
        model = train_autoencoder(train, labels, count=int(110_000 * args.scale), device=device)
        with atomic_file(models_dir / "autoencoder.safetensors") as path:
            model.save(path)
        report("autoencoder", started, reconstruction_scores(model, None, held_out, device))
    if "codebook" in args.only:
        started = time.perf_counter()
        model = load_weights(Autoencoder(), models_dir / "autoencoder.safetensors", "autoencoder").to(device)
        book = train_codebook(model, train, device)
        with atomic_file(models_dir / "codebook.safetensors") as path:
            book.save(path)
        report("codebook", started, reconstruction_scores(model, book.to(device), held_out, device))
    if "judge" in args.only:
        started = time.perf_counter()
        judge = train_judge(train, labels, classes, count=int(250_000 * args.scale), device=device)
        with atomic_file(judge_path) as path:
            save_judge(judge, path, classes)
        write_json(models_dir / "data.json", {"pictures": len(train), "classes": class_names})  # reports on these classes say so
        report("judge", started, {"top1": round(accuracy(judge, held_out, held_out_labels, device), 4), "classes": classes})


if __name__ == "__main__":
    main()
