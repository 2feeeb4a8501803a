"""Sums of the hospitals' updates that the coordinator cannot take apart.

`masks` says what is promised by secret-shared masks, `ckks` by homomorphic encryption.
"""
