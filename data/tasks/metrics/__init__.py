"""T5's metrics: references and predictions to figures in percent."""
