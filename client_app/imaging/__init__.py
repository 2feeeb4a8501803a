"""DICOM and NIfTI on a hospital's disk → index → cohort → cached tensors.

`cohort.build_cohort` says which patients serve a task, `cache.CachedCases` gives their tensors,
`pseudonym` makes the one name by which a patient is known past the reader of a file.
"""
