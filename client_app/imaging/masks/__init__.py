"""DICOM masks, read and written: segmentations (SEG) and structure sets (RTSTRUCT).

For one mask the formats give one and the same voxels on the image's grid; how contours that other
software drew through the middles of pixels are read is said in `contours.filled`.
"""
