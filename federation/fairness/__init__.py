"""How good a model is by group of patients, from integer counts that can be summed over hospitals.

    predictions → cases (words of groups, bins of scores) → withheld words → counts → their sum → table

`layout` fixes the cells, which depend on the experiment alone, so that all hospitals' vectors add up, in
secret or in the open. At the hospital, `cases` reads predictions, `suppression` takes out what could
point at few patients, `counts` makes the vector. From a sum of vectors the coordinator makes `table`,
with the arithmetic of `measures` and `intervals`.

What leaves. Without patient-level privacy a vector is exact, and `suppression` says what it can and
cannot give away. With it a vector may leave only with noise (`counts.sensitivity`), and nothing is
withheld: which words are would depend on patients, without noise.
"""
