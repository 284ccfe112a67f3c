"""Papers as data, one file each: `gam study list`."""

from experiments.papers import (
    balance,
    bam,
    compare,
    digits,
    falcon_sd,
    gam,
    gpipe,
    mofme,
    parscale,
    recall,
)
from experiments.study.declare import Study

STUDIES: dict[str, Study] = {
    module.STUDY.name: module.STUDY
    for module in (
        balance,
        bam,
        compare,
        digits,
        falcon_sd,
        gam,
        gpipe,
        mofme,
        parscale,
        recall,
    )
}
"""By the name that `gam study run` takes."""
