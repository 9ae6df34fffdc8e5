"""Operations on an attached model: attach, save, load, export, squeeze, add and remove scenarios."""
