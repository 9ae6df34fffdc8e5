"""Draw the plots that training, evaluation and the laboratory share."""
