"""Which DICOM elements may identify a person: the Basic Application Level Confidentiality Profile as facts.

DICOM PS3.15 (2024b) Annex E, table E.1-1, lists the elements that a de-identified file does not hold as they were. Most of its
entries follow from the type of their value: names of persons (PN), dates and times (DA, DT, TM, AS) and UIDs are looked at
wherever they stand, so only the others are named here, by keyword, under the reason why they can identify.
"""

from __future__ import annotations

from functools import cache

PATIENT = "the patient"
PERSON = "a person who took part"
PLACE = "an institution, place or address"
DEVICE = "one device, so one place"
NUMBER = "a number that another system knows"
TRIAL = "a clinical trial or its subject"
TEXT = "free text"
PICTURE = "letters or pictures beside the pixels"
HISTORY = "values from before, or signatures over them"

REASONS: dict[str, str] = {
    PATIENT: """
        PatientID IssuerOfPatientID PatientSex PatientSexNeutered PatientAge PatientSize PatientWeight OtherPatientIDs
        OtherPatientIDsSequence PatientAddress MilitaryRank BranchOfService EthnicGroup EthnicGroupCodeSequence
        Occupation SmokingStatus PregnancyStatus PatientReligiousPreference CountryOfResidence RegionOfResidence
        PatientTelephoneNumbers PatientTelecomInformation PatientPrimaryLanguageCodeSequence
        PatientPrimaryLanguageModifierCodeSequence PatientInsurancePlanCodeSequence InsurancePlanIdentification
        MedicalRecordLocator ReferencedPatientPhotoSequence ReferencedPatientSequence ReferencedPatientAliasSequence
        PatientState PatientInstitutionResidence ScheduledPatientInstitutionResidence PatientTransportArrangements
        PatientBirthDateInAlternativeCalendar PatientDeathDateInAlternativeCalendar PatientAlternativeCalendar SpecialNeeds
        PatientSpeciesDescription PatientSpeciesCodeSequence PatientBreedDescription PatientBreedCodeSequence
        StrainDescription BreedRegistrationNumber SelectorASValue""",
    PERSON: """
        ReferringPhysicianIdentificationSequence ConsultingPhysicianIdentificationSequence PhysiciansOfRecordIdentificationSequence
        PerformingPhysicianIdentificationSequence PhysiciansReadingStudyIdentificationSequence OperatorIdentificationSequence
        PersonIdentificationCodeSequence ContentCreatorIdentificationCodeSequence VerifyingObserverIdentificationCodeSequence
        IntendedRecipientsOfResultsIdentificationSequence ScheduledPerformingPhysicianIdentificationSequence
        VerifyingObserverSequence AuthorObserverSequence ParticipantSequence CustodialOrganizationSequence
        ScheduledHumanPerformersSequence ActualHumanPerformersSequence HumanPerformerOrganization InterpretationApproverSequence
        ResultsDistributionListSequence ROICreatorSequence ROIInterpreterSequence TopicAuthor Originator CameraOwnerName
        VerbalSourceIdentifierCodeSequenceTrial ResponsibleOrganization SelectorPNValue""",
    PLACE: """
        InstitutionName InstitutionAddress InstitutionCodeSequence InstitutionalDepartmentName
        InstitutionalDepartmentTypeCodeSequence ReferringPhysicianAddress ReferringPhysicianTelephoneNumbers PersonAddress
        PersonTelephoneNumbers PersonTelecomInformation AddressTrial TelephoneNumberTrial CurrentPatientLocation PerformedLocation
        RequestedProcedureLocation ScheduledProcedureStepLocation ScheduledStudyLocation ScheduledStudyLocationAETitle
        OrderEntererLocation OrderCallbackPhoneNumber OrderCallbackTelecomInformation RequestingService VerifyingOrganization
        DistributionAddress DistributionName TimezoneOffsetFromUTC
        ScheduledStationGeographicLocationCodeSequence PerformedStationGeographicLocationCodeSequence
        GPSVersionID GPSLatitudeRef GPSLatitude GPSLongitudeRef GPSLongitude GPSAltitudeRef GPSAltitude GPSTimeStamp GPSSatellites
        GPSStatus GPSMeasureMode GPSDOP GPSSpeedRef GPSSpeed GPSTrackRef GPSTrack GPSImgDirectionRef GPSImgDirection GPSMapDatum
        GPSDestLatitudeRef GPSDestLatitude GPSDestLongitudeRef GPSDestLongitude GPSDestBearingRef GPSDestBearing
        GPSDestDistanceRef GPSDestDistance GPSProcessingMethod GPSAreaInformation GPSDateStamp GPSDifferential""",
    DEVICE: """
        StationName StationAETitle DeviceSerialNumber DeviceDescription LongDeviceDescription DeviceSettingDescription DeviceLabel
        DeviceAlternateIdentifier ManufacturerDeviceIdentifier UniqueDeviceIdentifier UDISequence PlateID CassetteID GantryID
        GeneratorID DetectorID XRayDetectorID XRayDetectorLabel XRaySourceID ModifyingDeviceID ModifyingSystem SourceSerialNumber
        SourceManufacturer LensMake LensModel LensSerialNumber LensSpecification MakerNote NetworkID RetrieveAETitle DestinationAE
        ReceivingAE RequestingAE ScheduledStationAETitle PerformedStationAETitle ScheduledStationName PerformedStationName
        ScheduledStationNameCodeSequence PerformedStationNameCodeSequence TransducerIdentificationSequence TreatmentMachineName
        RTAccessoryDeviceSlotID RTAccessoryHolderSlotID SourceIdentifier FlowIdentifier FlowIdentifierSequence
        FrameOriginTimestamp SelectorAEValue""",
    NUMBER: """
        AccessionNumber StudyID AdmissionID IssuerOfAdmissionID IssuerOfAdmissionIDSequence ServiceEpisodeID IssuerOfServiceEpisodeID
        IssuerOfServiceEpisodeIDSequence StudyIDIssuer RequestedProcedureID ScheduledProcedureStepID PerformedProcedureStepID
        PlacerOrderNumberImagingServiceRequest FillerOrderNumberImagingServiceRequest ResultsID ResultsIDIssuer InterpretationID
        InterpretationIDIssuer SpecimenIdentifier SpecimenAccessionNumber IssuerOfTheSpecimenIdentifierSequence
        ContainerIdentifier IssuerOfTheContainerIdentifierSequence ContainerComponentID SlideIdentifier BarcodeValue LabelText
        RequestAttributesSequence ReferencedStudySequence ReferencedPerformedProcedureStepSequence ReferencedImageSequence
        SourceImageSequence SourceOfPreviousValues""",
    TRIAL: """
        ClinicalTrialSponsorName ClinicalTrialProtocolID ClinicalTrialProtocolName IssuerOfClinicalTrialProtocolID
        OtherClinicalTrialProtocolIDsSequence ClinicalTrialSiteID IssuerOfClinicalTrialSiteID ClinicalTrialSiteName
        ClinicalTrialSubjectID IssuerOfClinicalTrialSubjectID ClinicalTrialSubjectReadingID IssuerOfClinicalTrialSubjectReadingID
        ClinicalTrialTimePointID IssuerOfClinicalTrialTimePointID ClinicalTrialTimePointDescription
        ClinicalTrialCoordinatingCenterName ClinicalTrialSeriesID IssuerOfClinicalTrialSeriesID ClinicalTrialSeriesDescription
        ClinicalTrialProtocolEthicsCommitteeName ClinicalTrialProtocolEthicsCommitteeApprovalNumber""",
    TEXT: """
        StudyDescription SeriesDescription PyramidDescription PyramidLabel ProtocolName PatientComments AdditionalPatientHistory
        MedicalAlerts Allergies PreMedication ImageComments FrameComments StudyComments VisitComments IdentifyingComments
        ImagePresentationComments ImagingServiceRequestComments RequestedProcedureComments CommentsOnRadiationDose
        CommentsOnThePerformedProcedureStep AcquisitionComments AcquisitionProtocolDescription AcquisitionDeviceProcessingDescription
        AcquisitionFieldOfViewLabel AdmittingDiagnosesDescription AdmittingDiagnosesCodeSequence DischargeDiagnosisDescription
        DerivationDescription ContrastBolusAgent RequestedContrastAgent RequestedProcedureDescription RequestedSeriesDescription
        ReasonForTheRequestedProcedure ReasonForRequestedProcedureCodeSequence ReasonForStudy ReasonForVisit ReasonForVisitCodeSequence
        ReasonForTheImagingServiceRequest ReasonForTheAttributeModification ReasonForOmissionDescription ReasonForSuperseding
        PerformedProcedureStepDescription ScheduledProcedureStepDescription ServiceEpisodeDescription ModifiedImageDescription
        ConfidentialityConstraintOnPatientDataDescription ContributionDescription DecompositionDescription
        MultienergyAcquisitionDescription RespiratoryMotionCompensationTechniqueDescription WaveformFilterDescription
        FilterLookupTableDescription SpecimenShortDescription SpecimenDetailedDescription SpecimenPreparationSequence
        ContainerDescription AcquisitionContextSequence ContentSequence InterpretationText InterpretationDiagnosisDescription
        Impressions ResultsComments Arbitrary TextComments TextString TopicTitle TopicSubject TopicKeywords OverlayComments
        AnnotationGroupLabel AnnotationGroupDescription StructureSetLabel StructureSetName StructureSetDescription ROIName
        ROIDescription ROIGenerationDescription ROIObservationLabel ROIObservationDescription RTPlanLabel RTPlanName
        RTPlanDescription RTPrescriptionLabel RTTreatmentApproachLabel RTToleranceSetLabel RTPhysicianIntentNarrative
        PrescriptionDescription PrescriptionNotes PrescriptionNotesSequence FractionationNotes FractionGroupDescription
        TreatmentSites TreatmentSite TreatmentTechniqueNotes TreatmentPositionGroupLabel TreatmentToleranceViolationDescription
        BeamDescription BolusDescription CompensatorDescription FixationDeviceDescription ShieldingDeviceDescription
        SetupTechniqueDescription PatientSetupPhotoDescription PatientTreatmentPreparationMethodDescription
        PatientTreatmentPreparationProcedureParameterDescription PositionAcquisitionTemplateName
        PositionAcquisitionTemplateDescription PriorTreatmentDoseDescription DoseReferenceDescription DisplacementReferenceLabel
        EquipmentFrameOfReferenceDescription EntityLabel EntityLongLabel EntityName EntityDescription InterlockDescription
        InterlockOriginDescription RadiationDoseIdentificationLabel RadiationDoseInVivoMeasurementLabel RadiationGenerationModeLabel
        RadiationGenerationModeDescription ConceptualVolumeDescription ConceptualVolumeCombinationDescription UserContentLabel
        UserContentLongLabel ContextGroupLocalVersion ContextGroupVersion TemplateVersion TemplateLocalVersion
        SelectorLOValue SelectorLTValue SelectorSHValue SelectorSTValue SelectorUTValue SelectorURValue SelectorOBValue
        SelectorUNValue FunctionalSyncPulse""",
    PICTURE: """
        IconImageSequence OverlayData CurveData GraphicAnnotationSequence EncapsulatedDocument""",
    HISTORY: """
        OriginalAttributesSequence ModifiedAttributesSequence NonconformingModifiedAttributesSequence NonconformingDataElementValue
        DigitalSignaturesSequence ReferencedDigitalSignatureSequence ReferencedSOPInstanceMACSequence CertificateOfSigner
        CertifiedTimestamp MAC InstanceOriginStatus DataSetTrailingPadding""",
}
"""Reason to the keywords of its elements, those of PN, DA, DT, TM and UI left out."""


@cache
def reasons() -> dict[int, str]:
    """Tag to the reason why its element can identify somebody; repeating groups (overlays, curves) by their first group."""
    from pydicom.datadict import tag_for_keyword

    table = {}
    for reason, keywords in REASONS.items():
        for keyword in keywords.split():
            tag = tag_for_keyword(keyword) or _REPEATED.get(keyword)
            if tag is not None:  # a dictionary older than the standard lacks some
                table[int(tag)] = reason
    return table


_REPEATED = {"OverlayData": 0x60003000, "OverlayComments": 0x60004000, "CurveData": 0x50003000}
"""Elements of the groups 60xx and 50xx, which the dictionary keeps apart."""


def reason_of(tag: int) -> str | None:
    """The reason for one element, None where the profile's table does not name it."""
    if 0x50000000 <= tag < 0x51000000:  # a group's number is even and does not matter
        return PICTURE
    if 0x60000000 <= tag < 0x61000000:
        tag = 0x60000000 | tag & 0xFFFF
    return reasons().get(tag)
