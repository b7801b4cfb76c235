"""One run of the whole lab serves all tests of its claims."""

import pytest

from naysay.lab import Finding, LabResult, run_lab


@pytest.fixture(scope="session")
def result() -> LabResult:
    return run_lab(0)


@pytest.fixture(scope="session")
def claims(result: LabResult) -> dict[str, Finding]:
    return {finding.claim: finding for finding in result.findings}
