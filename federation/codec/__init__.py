"""Updates → few bytes → updates: a chain of named stages, each with its inverse.

    update → exchange (which arrays) → sparsify (which values) → quantise (b bits) → pack → zstd

`chain.build` makes an experiment's chain, at hospitals and coordinator alike; `down` is what the global
model goes down in; `packing` and `pieces` are the bytes. An update is a hospital's model minus the
global one.

Sums. Values are integers on scales that all hospitals share (`scales`), and which coordinates travel is
known to all, so the sum of the hospitals' integers stands for the sum of their updates, exactly: with
masks, encrypted, or in the open it is the same number. Stages for which that does not hold say so
(`LINEAR`), and `Chain.unshared` names the first of them.

Error. Rounding is unbiased and by less than one step of the scale (`quantise.integers`); clipping,
top-k, and rand-k that is not scaled up are biased. Error feedback (Karimireddy et al. 2019,
arXiv:1901.09847) mends that: what a round did not send is the hospital's residual, is added to the next
round's update, and so is sent later. With it nothing is scaled up; without it rand-k is, and unbiased.

Privacy. Under patient-level privacy an update is noised before it comes here. What is sent is a function
of it, of the residual, and of public numbers (scales, the shared seed) and coins; the residual is a
function of earlier noised updates and the same. So all of it, error feedback too, is post-processing of
what the ledger has paid for, and costs nothing (Dwork & Roth 2014, proposition 2.1).
"""
