"""Which values of the travelling vector are sent: one file a choice.

A file offers `LINEAR` (whether all hospitals send the same coordinates, so that sums of what is sent
stand for sums of updates), `Options` (closed) and

    count(options, sizes) -> int                        how many values are sent
    choose(options, sizes, moving, draw) -> int64       where they stand (count,), ascending
    factors(options, sizes) -> float64 (count,) | None  what makes them unbiased; None: nothing

`sizes` are the segments'. `draw(n)` gives n words that are the same for everybody in this round. Where
`LINEAR`, `moving` (the vector) is None and must not matter. The inverse is the same for all: the values
at their positions, zeros elsewhere.

Adding a choice is adding its file here and `configs/codec/NAME.yaml`.
"""
