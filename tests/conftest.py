import os; from pathlib import Path; import pytest
@pytest.fixture(scope="session")
def shared_session(): return Path('/work/shared')
