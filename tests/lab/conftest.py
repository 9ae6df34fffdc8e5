from report_page import suite_copy, suite_place
from t5_fixtures import frozen_modules, place, poisoned_memory

__all__ = ["frozen_modules", "place", "poisoned_memory", "suite_copy", "suite_place"]
