"""Outputs of AP-BWE's released generator and judges, small, with parameters by a formula.

    python tests/golden/extender.py FOLDER tests/golden/extender.npz

FOLDER is a copy of github.com/yxlu-0102/AP-BWE, commit 751710f. Log amplitudes, phases and sound
of one batch are written, the losses of both sides of the game, and the scores of what was made.
Channels of the judges, which that code has as numbers, are divided by `LESS`. It needs torch alone.

Phases that are read are written too: those of real numbers are pi or -pi by the sign of what
rounding leaves, and the first and the last frame of a signal that is reflected are real.
"""

from __future__ import annotations

import sys
import types
import zlib
from collections.abc import Iterator

import numpy as np

WIDTH, ROUNDS = 6, 3
SIZE, WINDOW, HOP, SAMPLES = 32, 16, 4, 64
LESS = 16
"""Channels of the judges are 2, 8, 32, 64 and 64, and 4 of those of spectra."""
PERIODS = (2, 3, 5, 7, 11)
FRAMES = (16, 32)
"""Of the judges of spectra."""


def values(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """A parameter, in PyTorch's order of axes."""
    n = np.arange(np.prod(shape)).reshape(shape)
    wave = np.sin(0.37 * n + zlib.crc32(path.encode()) % 100)
    return 1.0 + 0.2 * wave if "gain" in path or "scale" in path else 0.3 * wave


def audio() -> tuple[np.ndarray, np.ndarray]:
    """Narrow and wide, [2, SAMPLES] each."""
    n = np.arange(2 * SAMPLES).reshape(2, SAMPLES)
    narrow = np.cos(0.23 * n) + 0.3 * np.sin(0.05 * n * n / SAMPLES)
    return narrow, narrow + 0.5 * np.cos(2.1 * n)


def generator_names() -> Iterator[tuple[str, int, int | None, str]]:
    """(our path, stream, round, name there) of each parameter that both streams have."""
    for stream, end in enumerate(("mag", "pha")):
        for ours, theirs in (("weight", "weight"), ("bias", "bias")):
            yield f"enter/{ours}", stream, None, f"conv_pre_{end}.{theirs}"
        for ours, theirs in (("scale", "weight"), ("shift", "bias")):
            yield f"enter/{ours}", stream, None, f"norm_pre_{end}.{theirs}"
            yield f"leave/{ours}", stream, None, f"norm_post_{end}.{theirs}"
        for i in range(ROUNDS):
            block = f"convnext_{end}.{i}"
            yield "rounds/gamma", stream, i, f"{block}.gamma"
            for ours, theirs in (("scale", "weight"), ("shift", "bias")):
                yield f"rounds/norm/{ours}", stream, i, f"{block}.norm.{theirs}"
            parts = (("depthwise", "dwconv"), ("in", "pwconv1"), ("out", "pwconv2"))
            for ours, theirs in parts:
                for kind in ("weight", "bias"):
                    yield f"rounds/{ours}/{kind}", stream, i, f"{block}.{theirs}.{kind}"


def judge_names() -> Iterator[tuple[str, str]]:
    """(our path of a convolution, its name there)."""
    convs = [(f"convolution_{i}", f"convs.{i}") for i in range(5)] + [("last", "conv_post")]
    kinds = (("period", "mpd", PERIODS), ("amplitude", "mrad", FRAMES), ("phase", "mrpd", FRAMES))
    for ours, theirs, each in kinds:
        for j, size in enumerate(each):
            for own, name in convs:
                yield f"{ours}_{size}/{own}", f"{theirs}.discriminators.{j}.{name}"


def main(folder: str, path: str) -> None:
    """Writes the file."""
    import torch
    from torch.nn import functional

    sys.path.insert(0, folder)
    for name in ("matplotlib", "matplotlib.pylab", "matplotlib.pyplot"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["matplotlib"].use = lambda *_: None
    sys.modules.setdefault("torchaudio", types.ModuleType("torchaudio"))
    sys.modules.setdefault("torchaudio.functional", types.ModuleType("torchaudio.functional"))
    sys.modules["torchaudio"].functional = sys.modules["torchaudio.functional"]
    from datasets.dataset import amp_pha_istft, amp_pha_stft
    from models import model as released

    window = torch.hann_window
    torch.hann_window = lambda size: window(size, dtype=torch.float64)
    fields = {"n_fft": SIZE, "ConvNeXt_channels": WIDTH, "ConvNeXt_layers": ROUNDS}
    model = released.APNet_BWE_Model(types.SimpleNamespace(**fields)).double()
    plain = torch.nn.Conv2d

    def smaller(inputs: int, outputs: int, *args: object, **more: object) -> torch.nn.Module:
        return plain(max(1, inputs // LESS), max(1, outputs // LESS), *args, **more)

    torch.nn.Conv2d = smaller
    sizes = [(size, size // 4, size) for size in FRAMES]
    judges = torch.nn.ModuleDict(
        {
            "mpd": released.MultiPeriodDiscriminator(),
            "mrad": released.MultiResolutionAmplitudeDiscriminator(sizes),
            "mrpd": released.MultiResolutionPhaseDiscriminator(sizes),
        }
    ).double()
    with torch.no_grad():
        own = dict(model.named_parameters())
        for ours, stream, number, theirs in generator_names():
            place = "" if number is None else str(number)
            value = values(f"{ours}/{stream}/{place}", tuple(own[theirs].shape))
            own[theirs].copy_(torch.tensor(value))
        for theirs in ("linear_post_mag", "linear_post_pha_r", "linear_post_pha_i"):
            for kind in ("weight", "bias"):
                to = own[f"{theirs}.{kind}"]
                to.copy_(torch.tensor(values(f"{theirs}/{kind}", tuple(to.shape))))
        modules = dict(judges.named_modules())
        for ours, theirs in judge_names():
            conv = modules[theirs]
            for kind, name in (("weight", "weight_v"), ("gain", "weight_g"), ("bias", "bias")):
                to = getattr(conv, name)
                to.copy_(torch.tensor(values(f"{ours}/{kind}", tuple(to.shape))))
    narrow, wide = (torch.tensor(x) for x in audio())
    mag, pha, com = amp_pha_stft(wide, SIZE, HOP, WINDOW)
    given = amp_pha_stft(narrow, SIZE, HOP, WINDOW)[:2]
    mag_made, pha_made, com_made = model(*given)
    made = amp_pha_istft(mag_made, pha_made, SIZE, HOP, WINDOW)
    again = amp_pha_stft(made, SIZE, HOP, WINDOW)[2]
    found = {
        "given_log_amplitude": given[0].swapaxes(1, 2),
        "given_phase": given[1].swapaxes(1, 2),
        "log_amplitude": mag_made.swapaxes(1, 2),
        "phase": pha_made.swapaxes(1, 2),
        "audio": made,
        "loss_amplitude": functional.mse_loss(mag, mag_made) * 45,
        "loss_phase": sum(released.phase_losses(pha, pha_made)) * 100,
        "loss_spectrum": functional.mse_loss(com, com_made) * 90,
        "loss_consistency": functional.mse_loss(com_made, again) * 90,
        "lsd": released.cal_lsd(
            torch.nn.functional.pad(made, (0, 2000)), torch.nn.functional.pad(wide, (0, 2000))
        ),
        "snr": released.cal_snr(made, wide),
    }
    totals = {"judges": 0.0, "made": 0.0, "features": 0.0}
    for name, weight in (("mpd", 1.0), ("mrad", 0.1), ("mrpd", 0.1)):
        true_scores, made_scores, true_maps, made_maps = judges[name](
            wide[:, None], made.detach()[:, None]
        )
        totals["judges"] += weight * released.discriminator_loss(true_scores, made_scores)[0]
        totals["made"] += weight * released.generator_loss(made_scores)[0]
        totals["features"] += weight * released.feature_loss(true_maps, made_maps)
        for j, judge in enumerate(judges[name].discriminators if name == "mrpd" else ()):
            found[f"phases_true_{j}"] = judge.spectrogram(wide)
            found[f"phases_made_{j}"] = judge.spectrogram(made)
        for j, scores in enumerate(made_scores):
            found[f"scores_{name}_{j}"] = scores
    found |= {f"game_{name}": total for name, total in totals.items()}
    np.savez_compressed(path, **{name: x.detach().numpy() for name, x in found.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
