"""Every reason for which a test may be skipped, in one place; a skip with another reason fails the run."""

SHARED_ABSENT = "the folder of real scans (../shared) is not beside this checkout"

ALLOWED = {
    SHARED_ABSENT: "the project builds and passes without the real scans; where they stand, no test may skip for this",
}
