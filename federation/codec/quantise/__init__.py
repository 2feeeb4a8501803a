"""How a value becomes an integer of few bits: one file a choice.

A file offers `LINEAR` (whether sums of the integers stand for sums of values: it needs a scale that all
share), `Options` (closed) and

    bits(options, round) -> int                      of an integer in this round, 2 to 32
    encode(values, exponent, bits, source) -> int32  of float32 values that share a scale
    decode(integers, exponent) -> float64            the values; where LINEAR, of sums of integers too

and where LINEAR

    most(bits) -> int                                no integer of so many bits is further from 0
    wanted(values, bits) -> int | None               the exponent that would suit them; None: any

`exponent` is the scale's; where not LINEAR it is 0 and does not matter. `source` is the hospital's own
randomness. `encode` clips and never fails on finite values; `decode` may give values that are not finite
for integers that `encode` does not make. Adding a choice is adding its file here and
`configs/codec/NAME.yaml`.
"""
