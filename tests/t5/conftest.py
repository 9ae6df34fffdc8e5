from hub_server import hub
from t5_fixtures import frozen_modules, place, poisoned_memory

__all__ = ["frozen_modules", "hub", "place", "poisoned_memory"]
