"""The planes of one file of a series: where each lies, and what tells it from others at its place.

Three ways in which a scanner stores planes: one a file (classic), many a file with functional groups
that are shared or per frame (enhanced, DICOM PS3.3 C.7.6.16), and many as tiles of one large picture
(Siemens' mosaic).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from client_app.imaging.elements import Elements
from client_app.imaging.header import Plane
from client_app.imaging.set_aside import Reason, Unfit

_ORTHOGONAL = 1e-3  # how far direction cosines may be from orthogonal unit vectors
_LARGEST_COORDINATE = 1e5  # mm; no scanner's room is larger
_DIFFUSION_B, _DIFFUSION_DIRECTION = 0x00189087, 0x00189089
# Siemens (MR HEADER), GE (GEMS_PARM_01), Philips (Imaging DD 001), as their conformance statements say.
_PRIVATE_B = (0x0019100C, 0x00431039, 0x20011003)
_PRIVATE_CREATORS = {
    0x0019: "SIEMENS MR HEADER",
    0x0043: "GEMS_PARM_01",
    0x2001: "Philips Imaging DD 001",
}
_SIEMENS_DIRECTION = 0x0019100E
_GE_B_OFFSET = 1_000_000_000  # is added to some of GE's b-values
_CSA_IMAGE_HEADER = 0x0010  # last two bytes of (0029,xx10)
_CSA_CREATOR = "SIEMENS CSA HEADER"
_MOST_TILES = 1024

# Values of ImageType and FrameType to words; PS3.3 C.8.3.1.1.1, C.8.13.3.1 and vendors' own.
_TYPES = {
    "ORIGINAL": "original",
    "DERIVED": "derived",
    "PRIMARY": "primary",
    "SECONDARY": "secondary",
    **dict.fromkeys(("M", "M_FFE", "M_SE", "M_IR", "M_TSE", "MAGNITUDE"), "magnitude"),
    **dict.fromkeys(("P", "PHASE", "PHASE MAP", "PHASE_MAP", "P_FFE"), "phase"),
    **dict.fromkeys(("R", "REAL", "R_FFE", "R_IR"), "real"),
    **dict.fromkeys(("I", "IMAGINARY", "I_FFE", "I_IR"), "imaginary"),
    **dict.fromkeys(("WATER", "W"), "water"),
    **dict.fromkeys(("FAT", "F"), "fat"),
    **dict.fromkeys(("IN_PHASE", "IP"), "inphase"),
    **dict.fromkeys(("OUT_PHASE", "OPP_PHASE", "OP"), "outphase"),
    "ADC": "adc",
    "EADC": "eadc",
    "TRACEW": "trace",
    "TRACE": "trace",
    "FA": "fa",
    "DIFFUSION": "diffusion",
    "PERFUSION": "perfusion",
    "SUBTRACTION": "subtraction",
    "MPR": "reformatted",
    "REFORMATTED": "reformatted",
    "MIP": "mip",
    "PROJECTION IMAGE": "projection",
    "AXIAL": "axial",
    "MOSAIC": "mosaic",
    "T1": "t1",
    "T2": "t2",
    "NONE": "none",
    "": "none",
}


def classic(file: Elements) -> tuple[Plane, ...]:
    """The one plane of a file. Raises Unfit: no geometry, or nonsense."""
    plane = _plane(
        0,
        _vector(file, "ImagePositionPatient"),
        _vector(file, "ImageOrientationPatient"),
        _vector(file, "PixelSpacing"),
        stack=(*_words(file), *_private_diffusion(file)),
        order=_order(file),
    )
    return (plane,)


def enhanced(file: Elements, frames: int) -> tuple[Plane, ...]:
    """The planes of a multi-frame file.

    Raises:
        Unfit: fewer groups than frames, or frames without geometry.
    """
    shared = _groups(file.items("SharedFunctionalGroupsSequence")[:1])
    groups = file.items("PerFrameFunctionalGroupsSequence")
    if len(groups) < frames:
        raise Unfit(Reason.NO_GEOMETRY, f"positions for {len(groups):,} of {frames:,} frames")
    return tuple(_frame(number, shared, groups[number]) for number in range(frames))


_GROUPS = (
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelMeasuresSequence",
    "FrameContentSequence",
    "MRImageFrameTypeSequence",
    "CTImageFrameTypeSequence",
    "PETFrameTypeSequence",
    "MREchoSequence",
    "MRTimingAndRelatedParametersSequence",
    "MRModifierSequence",
    "MRDiffusionSequence",
    "MRMetaboliteMapSequence",
    "CardiacSynchronizationSequence",
    "TemporalPositionSequence",
    "CTReconstructionSequence",
    "CTXRayDetailsSequence",
)


def _groups(items: Iterable[Elements]) -> dict[str, Elements]:
    found = {}
    for item in items:
        for name in _GROUPS:
            if content := item.items(name):
                found[name] = content[0]
    return found


def _frame(number: int, shared: Mapping[str, Elements], own: Elements) -> Plane:
    groups = {**shared, **_groups([own])}
    nothing = next(iter(groups.values()), own)

    def vector(group: str, name: str) -> tuple[float, ...]:
        return _vector(groups[group], name) if group in groups else ()

    def number_of(group: str, name: str) -> float | None:
        return groups[group].number(name) if group in groups else None

    content = groups.get("FrameContentSequence", nothing)
    kinds = [
        groups[name] for name in _GROUPS if name.endswith("FrameTypeSequence") and name in groups
    ]
    components = [word for kind in kinds for word in kind.words("ComplexImageComponent")]
    diffusion = groups.get("MRDiffusionSequence")
    gradients = diffusion.items("DiffusionGradientDirectionSequence") if diffusion else []
    direction = _vector(gradients[0], "DiffusionGradientOrientation") if gradients else ()
    reconstruction = groups.get("CTReconstructionSequence")
    stack = (
        *_type_words([*(word for kind in kinds for word in kind.words("FrameType")), *components]),
        *_measured("echo", number_of("MREchoSequence", "EffectiveEchoTime")),
        *_measured("flip", number_of("MRTimingAndRelatedParametersSequence", "FlipAngle")),
        *_measured("inversion", number_of("MRModifierSequence", "InversionTimes")),
        *_measured("kv", number_of("CTXRayDetailsSequence", "KVP")),
        *_kernel(reconstruction.text("ConvolutionKernel") if reconstruction else ""),
        *_diffusion(number_of("MRDiffusionSequence", "DiffusionBValue"), direction),
        *_hashed("stack", content.text("StackID")),
        *_measured("time", content.number("TemporalPositionIndex")),
        *_measured(
            "phase", number_of("CardiacSynchronizationSequence", "NominalPercentageOfCardiacPhase")
        ),
    )
    order = (
        content.number("TemporalPositionIndex") or 0.0,
        content.number("FrameAcquisitionNumber") or 0.0,
        number_of("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime")
        or number_of("TemporalPositionSequence", "TemporalPositionTimeOffset")
        or 0.0,
        float(number),
    )
    return _plane(
        number,
        vector("PlanePositionSequence", "ImagePositionPatient"),
        vector("PlaneOrientationSequence", "ImageOrientationPatient"),
        vector("PixelMeasuresSequence", "PixelSpacing"),
        stack=stack,
        order=order,
    )


def mosaic(
    file: Elements, shape: tuple[int, int]
) -> tuple[tuple[Plane, ...], int, tuple[int, int]]:
    """The planes of a mosaic, columns of tiles in it, and (rows, columns) of a tile.

    The stated position is that of a plane as large as the whole mosaic around the tile's centre, and
    is moved back; nibabel's `doc/theory/dicom_mosaic` derives how.

    Raises:
        Unfit: the private header is missing, or does not fit the picture.
    """
    from nibabel.nicom import csareader  # warns when it is imported, and mosaics are rare

    csa = csareader.read(_csa_header(file))
    count = csareader.get_n_mosaic(csa) or 0
    normal = csareader.get_slice_normal(csa)
    if not 0 < count <= _MOST_TILES or normal is None:
        raise Unfit(
            Reason.NO_GEOMETRY, "a mosaic whose private header does not say how it is laid out"
        )
    across = math.ceil(math.sqrt(count))
    if shape[0] % across or shape[1] % across:
        raise Unfit(
            Reason.NO_GEOMETRY, f"a mosaic of {shape[0]} × {shape[1]} pixels for {count} tiles"
        )
    tile = shape[0] // across, shape[1] // across
    whole = _plane(
        0,
        _vector(file, "ImagePositionPatient"),
        _vector(file, "ImageOrientationPatient"),
        _vector(file, "PixelSpacing"),
        stack=(*_words(file), *_private_diffusion(file)),
        order=_order(file),
    )
    along_row, down_column = np.reshape(whole.orientation, (2, 3))
    step = np.asarray(normal, dtype=float)
    if abs(abs(float(step @ np.cross(along_row, down_column))) - 1) > _ORTHOGONAL:
        raise Unfit(Reason.NO_GEOMETRY, "a mosaic whose slice normal is not that of its planes")
    between = file.number("SpacingBetweenSlices") or file.number("SliceThickness") or 0.0
    if count > 1 and between <= 0:
        raise Unfit(Reason.NO_GEOMETRY, "a mosaic without spacing between slices")
    first = (
        np.asarray(whole.position)
        + along_row * whole.spacing[1] * (shape[1] - tile[1]) / 2
        + down_column * whole.spacing[0] * (shape[0] - tile[0]) / 2
    )
    # Each mosaic is a volume; with motion correction each has a place of its own.
    stack = (*whole.stack, *_measured("acquisition", file.number("AcquisitionNumber")))
    planes = (
        _plane(
            number,
            tuple(map(float, first + number * between * step)),
            whole.orientation,
            whole.spacing,
            stack=stack,
            order=whole.order,
        )
        for number in range(count)
    )
    return tuple(planes), across, tile


def _csa_header(file: Elements) -> bytes:
    for block in range(0x10, 0x20):
        if file.text(0x00290000 | block).startswith(_CSA_CREATOR):
            return file.value(0x00290000 | block << 8 | _CSA_IMAGE_HEADER)
    raise Unfit(Reason.NO_GEOMETRY, "a mosaic without Siemens' private header")


def _plane(
    number: int,
    position: Sequence[float],
    orientation: Sequence[float],
    spacing: Sequence[float],
    *,
    stack: tuple[str, ...],
    order: tuple[float, ...],
) -> Plane:
    """Raises Unfit: a part is missing, not finite, or no place in a patient."""
    if (len(position), len(orientation), len(spacing)) != (3, 6, 2):
        raise Unfit(Reason.NO_GEOMETRY, "no position, orientation or pixel spacing")
    if not all(map(math.isfinite, (*position, *orientation, *spacing))):
        raise Unfit(Reason.NO_GEOMETRY, "position, orientation or pixel spacing is not finite")
    if max(map(abs, position)) > _LARGEST_COORDINATE or not 0 < min(spacing) <= max(spacing) < 1000:
        raise Unfit(Reason.NO_GEOMETRY, "position or pixel spacing is out of any range")
    row, column = orientation[:3], orientation[3:]
    lengths = math.hypot(*row) - 1, math.hypot(*column) - 1
    across = sum(a * b for a, b in zip(row, column, strict=True))
    if max(map(abs, (*lengths, across))) > _ORTHOGONAL:
        raise Unfit(Reason.NO_GEOMETRY, "its rows and columns are not orthogonal unit vectors")
    return Plane(
        number,
        (position[0], position[1], position[2]),
        (*row, *column),  # type: ignore[arg-type]
        (spacing[0], spacing[1]),
        stack,
        order,
    )


def _vector(elements: Elements, name: str | int) -> tuple[float, ...]:
    try:
        return elements.numbers(name)
    except ValueError:
        raise Unfit(Reason.NO_GEOMETRY, "position, orientation or spacing is no number") from None


def _words(file: Elements) -> tuple[str, ...]:
    return (
        *_type_words([*file.words("ImageType"), *file.words("ComplexImageComponent")]),
        *(
            _measured("echo", file.number("EchoTime"))
            or _measured("echonumber", file.number("EchoNumbers"))
        ),
        *_measured("flip", file.number("FlipAngle")),
        *_measured("inversion", file.number("InversionTime")),
        *_measured("kv", file.number("KVP")),
        *_measured("thickness", file.number("SliceThickness")),
        *_kernel(file.text("ConvolutionKernel")),
        *_measured("phase", file.number("NominalPercentageOfCardiacPhase")),
        *_measured("time", file.number("TemporalPositionIdentifier")),
    )


def _order(file: Elements) -> tuple[float, ...]:
    """In time: of repeats by dynamic position, acquisition, delay in the cycle or of the frame, number.

    AcquisitionNumber is no stack word: in some CT it counts volumes, in others single slices.
    """
    delay = file.number("TriggerTime") or file.number("FrameReferenceTime")
    return (
        file.number("TemporalPositionIdentifier") or 0.0,
        file.number("AcquisitionNumber") or 0.0,
        delay or 0.0,
        file.number("InstanceNumber") or 0.0,
    )


def _private_diffusion(file: Elements) -> tuple[str, ...]:
    value = file.number(_DIFFUSION_B)
    direction = _vector(file, _DIFFUSION_DIRECTION) if _DIFFUSION_DIRECTION in file else ()
    for tag in _PRIVATE_B:
        group = tag >> 16
        if value is None and tag in file and _creator(file, group) == _PRIVATE_CREATORS[group]:
            value = file.number(tag)
    if value is not None and value >= _GE_B_OFFSET:
        value %= 100_000
    if (
        not direction
        and _SIEMENS_DIRECTION in file
        and _creator(file, 0x0019).startswith("SIEMENS")
    ):
        direction = file.numbers(_SIEMENS_DIRECTION)
    return _diffusion(value, direction)


def _creator(file: Elements, group: int) -> str:
    return file.text(group << 16 | 0x0010)


def _diffusion(value: float | None, direction: Sequence[float]) -> tuple[str, ...]:
    words = _measured("b", value)
    if value and len(direction) == 3 and all(map(math.isfinite, direction)):
        words += ("direction=" + ",".join(f"{part + 0.0:.3f}" for part in direction),)
    return words


def _type_words(types: Iterable[str]) -> tuple[str, ...]:
    """Words for the known values; unknown ones keep images apart without being repeated."""
    types = [word.upper() for word in types]
    known = sorted({word for name in types if (word := _TYPES.get(name, "none")) != "none"})
    unknown = sorted({name for name in types if name not in _TYPES})
    return (*(f"type={word}" for word in known), *_hashed("type", "\\".join(unknown)))


def _kernel(name: str) -> tuple[str, ...]:
    return _hashed("kernel", name)


def _measured(name: str, value: float | None) -> tuple[str, ...]:
    return () if value is None else (f"{name}={round(value, 2):g}",)


def _hashed(name: str, text: str) -> tuple[str, ...]:
    return (f"{name}={hashlib.sha256(text.encode()).hexdigest()[:8]}",) if text else ()
