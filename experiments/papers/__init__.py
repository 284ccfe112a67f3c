"""Papers as data, one file each: `gam study list`."""

from experiments.papers import (
    balance,
    bam,
    c4_comm,
    cloudmatrix,
    compare,
    cxl_offload,
    digits,
    falcon_sd,
    gam,
    gpipe,
    intar,
    mofme,
    nanoflow,
    parscale,
    pim_gpt,
    recall,
    samba_coe,
    t3_overlap,
    tpe_bitweight,
)
from experiments.study.declare import Study

STUDIES: dict[str, Study] = {
    module.STUDY.name: module.STUDY
    for module in (
        balance,
        bam,
        c4_comm,
        cloudmatrix,
        compare,
        cxl_offload,
        digits,
        falcon_sd,
        gam,
        gpipe,
        intar,
        mofme,
        nanoflow,
        parscale,
        pim_gpt,
        recall,
        samba_coe,
        t3_overlap,
        tpe_bitweight,
    )
}
"""By the name that `gam study run` takes."""
