"""Differential privacy whose unit is the patient: what a run promises, and the arithmetic of it.

The guarantee. Let D and D' be two hospitals' data of which one has all images of one more patient
(add/remove adjacency). Whatever a hospital lets out over all its private runs is (ε, δ)-differentially
private: P(out(D) in S) ≤ exp(ε) P(out(D') in S) + δ for every S, and the other way round, with ε what
`accounting.epsilon` makes of the charges in the hospital's ledger (Dwork et al. 2006; Abadi et al. 2016,
arXiv:1607.00133; patients as units as in McMahan et al. 2018, arXiv:1710.06963).

It holds where noise and sampling are as random as AES-256 keyed by the operating system is, where the
noise behaves as a real Gaussian does (`mechanism` rounds to a lattice so that the gaps of floating point
do not show), where a patient is one patient (one identifier), and where nothing else leaves: not the
time that a round takes, nor its failures; `docs/security.md` tells what is done about these.
"""
