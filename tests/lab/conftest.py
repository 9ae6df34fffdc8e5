from t5_fixtures import place, poisoned_memory

__all__ = ["place", "poisoned_memory"]
