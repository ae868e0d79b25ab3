"""The terms of the loss that options ask for, read by name: any command may have these options."""

from __future__ import annotations

from ..base.host import InflatedUNet
from ..clips.batches import Plan
from ..losses.contrastive import contrastive_term, middle_cells
from ..losses.debias import debias_term
from ..losses.objective import Term
from ..losses.regularisation import regularisation_term
from ..losses.trs import trs_term
from ..options import FewShotOptions, LossOptions, TrainOptions


def terms_of(options: TrainOptions, network: InflatedUNet, plan: Plan) -> list[Term]:
    """Make the terms that have a weight; none for a command without such options."""
    if isinstance(options, FewShotOptions) and options.debias:
        return [debias_term(options.debias, plan)]
    if not isinstance(options, LossOptions):
        return []
    terms = []
    if options.regularisation:
        terms.append(regularisation_term(options.regularisation, options.regularise_every, options.detach_image))
    if options.trs:
        terms.append(trs_term(options.trs, options.trs_reduction, options.ramp))
    if options.contrastive:
        levels = network.inflation.structure.levels
        cells = middle_cells(plan.cells, len(levels))
        terms.append(
            contrastive_term(options.contrastive, levels[-1].width, cells, plan.seed, options.queue, options.ramp)
        )
    return terms
