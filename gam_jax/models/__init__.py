"""Models: what a run trains. Any class that `Model` describes can take part."""

from gam_jax.models.apnet import APNet
from gam_jax.models.autoencoder import Autoencoder
from gam_jax.models.base import BATCH, TOKEN, Batch, Measures, Model
from gam_jax.models.classifier import ImageClassifier
from gam_jax.models.denoiser import VideoDenoiser
from gam_jax.models.enhancer import Enhancer
from gam_jax.models.extender import BandExtender
from gam_jax.models.inpainter import Inpainter
from gam_jax.models.language import LanguageModel
from gam_jax.models.masked import Masked
from gam_jax.models.motion import MotionTuned
from gam_jax.models.phase import PhaseModel
from gam_jax.models.pictures import PictureDenoiser
from gam_jax.models.semi import SemiDrafter
from gam_jax.models.side_tuned import SideTuned
from gam_jax.models.source_reader import SourceReader
from gam_jax.models.units import LexicalUnits

MODELS: dict[str, type[Model]] = {
    model.__name__: model
    for model in (
        APNet,
        Autoencoder,
        BandExtender,
        Enhancer,
        ImageClassifier,
        Inpainter,
        LanguageModel,
        LexicalUnits,
        Masked,
        MotionTuned,
        PhaseModel,
        PictureDenoiser,
        SemiDrafter,
        SideTuned,
        SourceReader,
        VideoDenoiser,
    )
}
"""Every model by name: configurations name them, tests run their laws over all of them."""

__all__ = [
    "BATCH",
    "MODELS",
    "TOKEN",
    "APNet",
    "Autoencoder",
    "BandExtender",
    "Batch",
    "Enhancer",
    "ImageClassifier",
    "Inpainter",
    "LanguageModel",
    "LexicalUnits",
    "Masked",
    "Measures",
    "Model",
    "MotionTuned",
    "PhaseModel",
    "PictureDenoiser",
    "SemiDrafter",
    "SideTuned",
    "SourceReader",
    "VideoDenoiser",
]
