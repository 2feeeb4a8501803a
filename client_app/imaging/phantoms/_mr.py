"""Headers of MR phantoms: a file a plane (PS3.3 A.4), or one multi-frame file a series (A.36)."""

from __future__ import annotations

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import MRImageStorage

from client_app.imaging.phantoms._dicom import (
    Grid,
    Study,
    code,
    decimals,
    header,
    orientation,
    pixel_spacing,
    position,
)


def classic(
    study: Study,
    series: int,
    description: str,
    where: Grid,
    *,
    tesla: float,
    echo: float,
    repetition: float,
    inversion: float | None,
) -> Dataset:
    """The modules of a classic MR image, PS3.3 A.4 and C.8.3, but its plane and pixels."""
    result = header(study, MRImageStorage, modality="MR", series=series, description=description)
    between = float(np.linalg.norm(where.affine[:3, 2]))
    result.ImageType = ["ORIGINAL", "PRIMARY", "M"]
    result.BodyPartExamined, result.PatientPosition = "HEAD", "HFS"
    result.FrameOfReferenceUID = study.uid("frame of reference")
    result.PositionReferenceIndicator = ""
    gradient = inversion is not None or description == "localizer"
    result.ScanningSequence = (["GR", "IR"] if inversion else "GR") if gradient else "SE"
    result.SequenceVariant, result.ScanOptions = ("SP" if gradient else "SK"), ""
    result.MRAcquisitionType = "3D" if inversion else "2D"
    result.RepetitionTime, result.EchoTime = repetition, echo
    result.EchoTrainLength, result.FlipAngle = (1 if gradient else 15), (9 if gradient else 150)
    if inversion:
        result.InversionTime = inversion
    result.MagneticFieldStrength = tesla
    result.SliceThickness, result.SpacingBetweenSlices = decimals((between, between))
    result.PixelBandwidth, result.ProtocolName = 240, description
    return result


def enhance(target: Dataset, study: Study, where: Grid, *, tesla: float) -> None:
    """Make a header that of a 3-D gradient echo with inversion, a frame for each slice of a grid."""
    day = f"{study.taken:%Y%m%d}"
    frames = where.shape[2]
    target.FrameOfReferenceUID = study.uid("frame of reference")
    target.PositionReferenceIndicator, target.PatientPosition = "", "HFS"
    target.BodyPartExamined = "HEAD"
    target.ImageType = ["ORIGINAL", "PRIMARY", "T1", "NONE"]
    target.PixelPresentation, target.VolumetricProperties = "MONOCHROME", "VOLUME"
    target.VolumeBasedCalculationTechnique, target.ComplexImageComponent = "NONE", "MAGNITUDE"
    target.AcquisitionContrast, target.ContentQualification = "T1", "RESEARCH"
    target.AcquisitionNumber, target.AcquisitionDateTime = 2, f"{day}090200"
    target.AcquisitionDuration, target.AcquisitionContextSequence = 312.0, []
    target.BurnedInAnnotation, target.LossyImageCompression = "NO", "00"
    target.PresentationLUTShape = "IDENTITY"
    target.MagneticFieldStrength, target.ResonantNucleus = tesla, "1H"
    target.KSpaceFiltering, target.ApplicableSafetyStandardAgency = "NONE", "IEC"
    target.PulseSequenceName, target.MRAcquisitionType = "TFE", "3D"
    target.EchoPulseSequence, target.MultiPlanarExcitation = "GRADIENT", "NO"
    target.PhaseContrast, target.TimeOfFlightContrast = "NO", "NO"
    target.SteadyStatePulseSequence, target.EchoPlanarPulseSequence = "NONE", "NO"
    target.SaturationRecovery, target.SpectrallySelectedSuppression = "NO", "NONE"
    target.OversamplingPhase, target.GeometryOfKSpaceTraversal = "NONE", "RECTILINEAR"
    target.SegmentedKSpaceTraversal = "SINGLE"
    target.RectilinearPhaseEncodeReordering, target.NumberOfKSpaceTrajectories = "LINEAR", 1
    target.CoverageOfKSpace, target.ArterialSpinLabelingContrast = "FULL", "NONE"
    del target.AcquisitionDate, target.AcquisitionTime  # said by AcquisitionDateTime
    target.NumberOfFrames = frames
    stack = study.uid("stacks")
    target.DimensionOrganizationSequence = [_item(DimensionOrganizationUID=stack)]
    target.DimensionIndexSequence = [
        _item(
            DimensionOrganizationUID=stack,
            DimensionIndexPointer=pointer,
            FunctionalGroupPointer=0x00209111,  # FrameContentSequence
        )
        for pointer in (0x00209056, 0x00209057)  # StackID, InStackPositionNumber
    ]
    target.SharedFunctionalGroupsSequence = [_shared(where)]
    target.PerFrameFunctionalGroupsSequence = [
        _item(
            FrameContentSequence=[
                _item(
                    StackID="1",
                    InStackPositionNumber=frame + 1,
                    DimensionIndexValues=[1, frame + 1],
                    FrameReferenceDateTime=f"{day}090200",
                    FrameAcquisitionDateTime=f"{day}090200",
                    FrameAcquisitionDuration=312000.0,
                )
            ],
            PlanePositionSequence=[_item(ImagePositionPatient=position(where, frame))],
        )
        for frame in range(frames)
    ]


def _shared(where: Grid) -> Dataset:
    between = decimals([float(np.linalg.norm(where.affine[:3, 2]))])[0]
    return _item(
        PixelMeasuresSequence=[
            _item(
                PixelSpacing=pixel_spacing(where),
                SliceThickness=between,
                SpacingBetweenSlices=between,
            )
        ],
        PlaneOrientationSequence=[_item(ImageOrientationPatient=orientation(where))],
        FrameAnatomySequence=[
            _item(FrameLaterality="U", AnatomicRegionSequence=[code("69536005", "SCT", "Head")])
        ],
        PixelValueTransformationSequence=[
            _item(RescaleIntercept="0", RescaleSlope="1", RescaleType="US")
        ],
        MRImageFrameTypeSequence=[
            _item(
                FrameType=["ORIGINAL", "PRIMARY", "T1", "NONE"],
                PixelPresentation="MONOCHROME",
                VolumetricProperties="VOLUME",
                VolumeBasedCalculationTechnique="NONE",
                ComplexImageComponent="MAGNITUDE",
                AcquisitionContrast="T1",
            )
        ],
        MRTimingAndRelatedParametersSequence=[
            _item(
                RepetitionTime="8.1",
                FlipAngle="8",
                EchoTrainLength="0",
                RFEchoTrainLength=0,
                GradientEchoTrainLength=1,
                GradientOutputType="DB_DT",
                GradientOutput=60.0,
                SpecificAbsorptionRateSequence=[
                    _item(
                        SpecificAbsorptionRateDefinition="IEC_HEAD", SpecificAbsorptionRateValue=0.3
                    )
                ],
                OperatingModeSequence=[
                    _item(OperatingModeType="STATIC FIELD", OperatingMode="IEC_NORMAL")
                ],
            )
        ],
        MREchoSequence=[_item(EffectiveEchoTime=3.7)],
        MRModifierSequence=[
            _item(
                InversionRecovery="YES",
                InversionTimes=[950.0],
                FlowCompensation="NONE",
                Spoiling="RF",
                T2Preparation="NO",
                SpectrallySelectedExcitation="NONE",
                SpatialPresaturation="NONE",
                PartialFourier="NO",
                ParallelAcquisition="NO",
            )
        ],
        MRImagingModifierSequence=[
            _item(
                MagnetizationTransfer="NONE",
                BloodSignalNulling="NO",
                Tagging="NONE",
                TransmitterFrequency=127.8,
                PixelBandwidth="190",
            )
        ],
        MRFOVGeometrySequence=[
            _item(
                InPlanePhaseEncodingDirection="ROW",
                MRAcquisitionFrequencyEncodingSteps=where.shape[1],
                MRAcquisitionPhaseEncodingStepsInPlane=where.shape[0],
                MRAcquisitionPhaseEncodingStepsOutOfPlane=where.shape[2],
                PercentSampling="100",
                PercentPhaseFieldOfView="100",
            )
        ],
        MRReceiveCoilSequence=[
            _item(
                ReceiveCoilName="HEAD",
                ReceiveCoilManufacturerName="",
                ReceiveCoilType="MULTICOIL",
                QuadratureReceiveCoil="NO",
                MultiCoilDefinitionSequence=[
                    _item(MultiCoilElementName="1", MultiCoilElementUsed="YES")
                ],
            )
        ],
        MRTransmitCoilSequence=[
            _item(TransmitCoilName="BODY", TransmitCoilManufacturerName="", TransmitCoilType="BODY")
        ],
        MRAveragesSequence=[_item(NumberOfAverages=1.0)],
    )


def _item(**elements: object) -> Dataset:
    result = Dataset()
    for keyword, value in elements.items():
        setattr(result, keyword, value)
    return result
