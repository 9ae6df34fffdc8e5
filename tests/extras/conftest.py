from t5_fixtures import frozen_modules, poisoned_memory

__all__ = ["frozen_modules", "poisoned_memory"]
